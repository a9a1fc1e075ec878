"""Every overlay, rendered as it would be applied: valid, whole, restricted, and in step with the services."""

import importlib.util
import re
import textwrap
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy import manifests
from tests.deploy.manifests import (
    CRDS,
    FOLDERS,
    K8S,
    ROOT,
    SETTINGS,
    Object,
    containers,
    environment,
    name_of,
    of_kind,
    overlay,
    pod_templates,
    port_names,
    selected,
    service_of,
)

# The oldest that has everything (the pause of preStop is there from 1.30 on), and a new one.
VERSIONS = ("1.31", "1.37")
DEPLOYMENT = ROOT / "docs" / "deployment.md"
CUSTOM = ("PodMonitor", "PrometheusRule", "ScaledObject")


def gpu_with(folder: Path, component: str) -> tuple[Object, ...]:
    """The overlay gpu with one more component, as docs/deployment.md tells people to write it."""
    relative = Path(*[".."] * len(folder.parts[1:]), *K8S.parts[1:])
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(relative / "overlays" / "gpu")],
        "components": [str(relative / "components" / component)],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return manifests.rendered(folder)


@pytest.fixture(scope="module", params=["local", "gpu", "gpu with TLS"])
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Object, ...]:
    if request.param == "gpu with TLS":
        return gpu_with(tmp_path_factory.mktemp("overlay"), "tls")
    return overlay(request.param)


def secrets_of(kind: str) -> dict[str, set[str]]:
    """Secret -> its keys, as scripts/k8s_secrets.py makes them; and what docs/deployment.md tells people to make."""
    spec = importlib.util.spec_from_file_location("k8s_secrets", ROOT / "scripts" / "k8s_secrets.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.objects(kind, "postgresql+psycopg://u:p@db:5432/querent")["items"]
    for it in made:
        kubernetes_validate.validate(it, VERSIONS[-1], strict=True)
    return {it["metadata"]["name"]: set(it["stringData"]) for it in made} | {
        "querent-tls": {"tls.crt", "tls.key", "ca.crt"}
    }


# ---- valid --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_valid_for_the_api_server(objects: tuple[Object, ...], version: str) -> None:
    for it in objects:
        if it["kind"] not in CUSTOM:
            kubernetes_validate.validate(it, version, strict=True)


@pytest.mark.skipif(not CRDS.is_dir(), reason=f"the schemas of custom resources are not at {CRDS}")
def test_custom_resources_hold_to_their_schemas(objects: tuple[Object, ...]) -> None:
    for it in of_kind(objects, *CUSTOM):
        problems = list(jsonschema.Draft202012Validator(manifests.schema_of(it["kind"])).iter_errors(it))
        assert not problems, f"{name_of(it)}: {problems[0].message}"


@pytest.mark.parametrize("version", VERSIONS)
def test_jobs_are_valid_and_use_what_there_is(version: str) -> None:
    claims = {it["metadata"]["name"] for it in of_kind(overlay("local"), "PersistentVolumeClaim")}
    jobs = manifests.rendered(K8S / "jobs")
    assert {path.stem for path in (K8S / "jobs").glob("*.yaml")} == {"kustomization", *map(_name, jobs)}
    for job in jobs:
        assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "querent-trainer:0.1.0"
        kubernetes_validate.validate(job, version, strict=True)
        _assert_restricted(job["spec"]["template"], name_of(job))
        assert {v["persistentVolumeClaim"]["claimName"] for v in _claims(job["spec"]["template"])} <= claims


def test_what_is_generated_for_the_operator_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("k8s_monitoring", ROOT / "scripts" / "k8s_monitoring.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.out_of_date() == [], "run scripts/k8s_monitoring.py"


def test_rules_and_dashboards_become_objects(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("k8s_monitoring", ROOT / "scripts" / "k8s_monitoring.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rules, dashboards = tmp_path / "deploy/prometheus/rules", tmp_path / "deploy/grafana/dashboards"
    rules.mkdir(parents=True)
    dashboards.mkdir(parents=True)
    groups = {"groups": [{"name": "g", "rules": [{"alert": "A", "expr": "up == 0", "for": "1m"}]}]}
    (rules / "serving.yml").write_text(yaml.safe_dump(groups))
    (dashboards / "fleet.json").write_text('{"title": "Fleet – α"}')
    made = module.files(tmp_path)
    assert made == module.files(tmp_path)
    rule, dashboard = yaml.safe_load(made["rules-serving.yaml"]), yaml.safe_load(made["dashboard-fleet.yaml"])
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == groups
    assert dashboard["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert dashboard["data"] == {"fleet.json": '{"title":"Fleet – α"}'}
    listed = yaml.safe_load(made["kustomization.yaml"])["resources"]
    assert listed == ["dashboard-fleet.yaml", "rules-serving.yaml"]
    if CRDS.is_dir():
        jsonschema.Draft202012Validator(manifests.schema_of("PrometheusRule")).validate(rule)
    (dashboards / "fleet.json").write_text('{"title": "' + "x" * 300_000 + '"}')
    with pytest.raises(ValueError, match="split it"):
        module.files(tmp_path)


def test_a_registry_in_a_bucket_takes_the_place_of_the_volume(tmp_path: Path) -> None:
    found = gpu_with(tmp_path, "s3-registry")
    for it in found:
        if it["kind"] not in CUSTOM:
            kubernetes_validate.validate(it, VERSIONS[-1], strict=True)
    assert "querent-registry" not in {it["metadata"]["name"] for it in of_kind(found, "PersistentVolumeClaim")}
    services = [(t, containers(t)[0]) for w, t in pod_templates(found) if w["metadata"]["name"] != "querent-redis"]
    assert len(services) == 3
    for template, container in services:
        _assert_restricted(template, "with a bucket")
        service = str(service_of(container))
        variable = f"{service.upper()}_REGISTRY_BUCKET"
        assert variable in manifests.variables(service)
        assert {it["name"]: it.get("value") for it in container["env"]}[variable].startswith("s3://")
        assert "emptyDir" in {volume["name"]: volume for volume in template["spec"]["volumes"]}["registry"]
        assert not {m["mountPath"]: m for m in container["volumeMounts"]}["/var/lib/querent/registry"].get("readOnly")
        assert template["metadata"]["labels"]["querent.io/https-out"] == "true"


def test_the_kustomization_that_people_are_shown_does_what_it_says(tmp_path: Path) -> None:
    shown = re.search(r"\n\n((?:    .*\n)*    resources: \[\"…/.*\n(?:    .*\n)*)", DEPLOYMENT.read_text())
    assert shown
    up = Path(*[".."] * len(tmp_path.parts[1:]), *ROOT.parts[1:])
    (tmp_path / "kustomization.yaml").write_text(textwrap.dedent(shown[1]).replace("…", str(up)))
    plain, found = overlay("gpu"), manifests.rendered(tmp_path)
    assert {name_of(it) for it in found} == {name_of(it) for it in plain}
    for it in found:
        if it["kind"] not in CUSTOM:
            kubernetes_validate.validate(it, VERSIONS[-1], strict=True)
        assert it["metadata"]["labels"]["release"] == "kube-prometheus-stack", name_of(it)
    for it in of_kind(found, "PersistentVolumeClaim"):
        assert it["spec"]["storageClassName"] == "YOUR-SHARED-CLASS"
        assert it["spec"]["accessModes"] == ["ReadWriteMany"]
    images = {w["metadata"]["name"]: containers(t)[0]["image"] for w, t in pod_templates(found)}
    assert images["querent-inference"] == "YOUR-REGISTRY/querent-inference:0.1.0-gpu"
    assert images["querent-trainer"] == "YOUR-REGISTRY/querent-trainer:0.1.0-gpu"
    assert images["querent-campaigns"] == "YOUR-REGISTRY/querent-trainer:0.1.0"
    for (_, template), (_, before) in zip(pod_templates(found), pod_templates(plain), strict=True):
        assert template["metadata"] == before["metadata"]  # what is selected stays the same
        assert "runtimeClassName" not in template["spec"]
    triggers = [t for it in of_kind(found, "ScaledObject") for t in it["spec"]["triggers"]]
    assert {t["metadata"]["serverAddress"] for t in triggers} == {"http://YOUR-PROMETHEUS:9090"}


def test_people_are_told_of_every_volume_that_nodes_share() -> None:
    storage = DEPLOYMENT.read_text().partition("### Storage")[2].partition("###")[0]
    claims = {it["metadata"]["name"] for it in of_kind(overlay("gpu"), "PersistentVolumeClaim")}
    assert {f"querent-{name}" for name in re.findall(r"`(?:querent)?-(\w+)`", storage.partition(". ")[0])} == claims


# ---- whole --------------------------------------------------------------------------------------------


def test_selectors_select_the_pods_of_their_own(objects: tuple[Object, ...]) -> None:
    for workload, template in pod_templates(objects):
        chosen = selected(objects, workload["spec"]["selector"])
        assert chosen == [template], f"{name_of(workload)} selects {len(chosen)} templates"
    for it in of_kind(objects, "Service"):
        assert len(selected(objects, {"matchLabels": it["spec"]["selector"]})) == 1, name_of(it)
    for it in of_kind(objects, "PodDisruptionBudget", "PodMonitor"):
        assert len(selected(objects, it["spec"]["selector"])) == 1, name_of(it)
    for it in of_kind(objects, "NetworkPolicy"):
        # Who may call, and who may reach the world, is for people to label.
        if it["metadata"]["name"] not in {"https-out", "client"}:
            assert selected(objects, it["spec"]["podSelector"]), name_of(it)
    for _, template in pod_templates(objects):
        for constraint in template["spec"].get("topologySpreadConstraints", ()):
            assert selected(objects, constraint["labelSelector"]) == [template]


def test_ways_between_pods_lead_to_ports_that_are_there(objects: tuple[Object, ...]) -> None:
    for it in of_kind(objects, "Service"):
        (template,) = selected(objects, {"matchLabels": it["spec"]["selector"]})
        assert {port["targetPort"] for port in it["spec"]["ports"]} <= port_names(template)
    for it in of_kind(objects, "PodMonitor"):
        (template,) = selected(objects, it["spec"]["selector"])
        assert {end["port"] for end in it["spec"]["podMetricsEndpoints"]} <= port_names(template)
    for it in of_kind(objects, "NetworkPolicy"):
        targets = selected(objects, it["spec"]["podSelector"])
        for way in it["spec"].get("ingress", ()):
            for port in _named(way):
                assert all(port in port_names(template) for template in targets), f"{name_of(it)}: {port}"
        for way in it["spec"].get("egress", ()):
            to = [t for p in way.get("to", ()) if "podSelector" in p for t in selected(objects, p["podSelector"])]
            assert to or not _named(way), f"{name_of(it)}: a port has a name in a pod only"
            assert all(port in port_names(template) for port in _named(way) for template in to)
    for workload, template in pod_templates(objects):
        for container in containers(template):
            numbers = {port["containerPort"]: port["name"] for port in container.get("ports", ())}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                if "grpc" in probe:
                    assert numbers[probe["grpc"]["port"]] == "health", name_of(workload)
                    assert probe["grpc"]["service"] == kind.removesuffix("Probe")
                if "tcpSocket" in probe:
                    assert probe["tcpSocket"]["port"] in numbers.values()


def test_every_way_that_a_policy_opens_is_open_on_both_sides(objects: tuple[Object, ...]) -> None:
    policies = of_kind(objects, "NetworkPolicy")
    denied = [p for p in policies if p["spec"]["podSelector"] == {} and p["metadata"]["name"] == "default-deny"]
    assert denied[0]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    opened = [p for p in policies if selected(objects, p["spec"]["podSelector"])]
    for policy in opened:
        (sources, ways) = selected(objects, policy["spec"]["podSelector"]), policy["spec"].get("egress", ())
        for peer, port in [(p, n) for way in ways for p in way.get("to", ()) for n in _named(way)]:
            for target in selected(objects, peer["podSelector"]):
                entries = [
                    (source, name)
                    for other in opened
                    if target in selected(objects, other["spec"]["podSelector"])
                    for way in other["spec"].get("ingress", ())
                    for source_peer in way["from"]
                    if "namespaceSelector" not in source_peer
                    for source in selected(objects, source_peer["podSelector"])
                    for name in _named(way)
                ]
                assert all((source, port) in entries for source in sources)


def test_everything_that_is_referred_to_exists(objects: tuple[Object, ...]) -> None:
    maps = {it["metadata"]["name"]: set(it["data"]) for it in of_kind(objects, "ConfigMap")}
    claims = {it["metadata"]["name"] for it in of_kind(objects, "PersistentVolumeClaim")}
    accounts = {it["metadata"]["name"] for it in of_kind(objects, "ServiceAccount")}
    secrets = secrets_of("gpu" if of_kind(objects, "ScaledObject") else "local")
    for workload, template in pod_templates(objects):
        spec = template["spec"]
        assert spec["serviceAccountName"] in accounts
        for container in containers(template):
            for source in container.get("envFrom", ()):
                assert source["configMapRef"]["name"] in maps, name_of(workload)
            for given in (it["valueFrom"] for it in container.get("env", ()) if it.get("valueFrom")):
                if "secretKeyRef" in given:
                    assert given["secretKeyRef"]["key"] in secrets[given["secretKeyRef"]["name"]], name_of(workload)
                else:
                    kind, _, resource = given["resourceFieldRef"]["resource"].partition(".")
                    assert resource in container["resources"][kind], name_of(workload)
            volumes = {volume["name"] for volume in spec["volumes"]}
            volumes |= {it["metadata"]["name"] for it in workload["spec"].get("volumeClaimTemplates", ())}
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= volumes
        assert {volume["name"] for volume in spec["volumes"]} <= {
            mount["name"] for container in containers(template) for mount in container["volumeMounts"]
        }
        for volume in spec["volumes"]:
            if "secret" in volume:
                keys = {item["key"] for item in volume["secret"].get("items", ())}
                assert keys <= secrets[volume["secret"]["secretName"]]
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
    for it in of_kind(objects, "ScaledObject"):
        assert it["spec"]["scaleTargetRef"]["name"] in {d["metadata"]["name"] for d in of_kind(objects, "Deployment")}


# ---- in step with the services ------------------------------------------------------------------------


def test_settings_read_every_variable_and_take_its_value(
    objects: tuple[Object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for workload, template in pod_templates(objects):
        for container in containers(template):
            service = service_of(container)
            if service is None:
                continue
            given = environment(container, objects)
            # The one that NVIDIA's container runtime reads.
            assert given.keys() - {"NVIDIA_VISIBLE_DEVICES"} <= manifests.variables(service), name_of(workload)
            with monkeypatch.context() as patch:
                for name, value in {**manifests.image_environment(service), **given}.items():
                    patch.setenv(name, value)
                settings: Any = SETTINGS[service]()
            _assert_fits(container, settings, service)


def _assert_fits(container: Object, settings: Any, service: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    mounted = {mount["mountPath"]: not mount.get("readOnly", False) for mount in container["volumeMounts"]}
    assert ports["metrics"] == settings.metrics_port
    for folder, writes in FOLDERS[service].items():
        assert manifests.writable(getattr(settings, folder), mounted) is writes, folder
    if service == "inference":
        assert (ports["grpc"], ports["health"]) == (settings.grpc_port, settings.health_port)
        assert settings.max_connection_age_seconds > 0
        files = [settings.predict_token_file, settings.admin_token_file, settings.tls_cert_file, settings.tls_key_file]
    else:
        files = [settings.inference_token_file, settings.inference_ca_file]
        assert manifests.writable(settings.heartbeat_file, mounted) is True
        for kind in ("startupProbe", "livenessProbe"):
            command = container[kind].get("exec", {}).get("command", ())
            assert not command or str(settings.heartbeat_file) in command
    for file in files:
        assert file is None or str(file.parent) in mounted


def test_pods_get_the_time_that_their_settings_need_to_end(objects: tuple[Object, ...]) -> None:
    (template,) = [t for w, t in pod_templates(objects) if w["metadata"]["name"] == "querent-inference"]
    (container,) = containers(template)
    given = environment(container, objects)
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = float(given["INFERENCE_LAME_DUCK_SECONDS"]) + float(given["INFERENCE_GRACE_SECONDS"])
    assert template["spec"]["terminationGracePeriodSeconds"] > pause + drain
    (template,) = [t for w, t in pod_templates(objects) if w["metadata"]["name"] == "querent-trainer"]
    (container,) = containers(template)
    work = float(environment(container, objects)["TRAINER_GRACE_SECONDS"])
    # Longer than an epoch's last steps and the checkpoint of a large network.
    assert template["spec"]["terminationGracePeriodSeconds"] > work >= 60


# ---- GPUs, images, security ---------------------------------------------------------------------------


def test_each_pod_with_a_gpu_has_one_and_can_be_placed() -> None:
    with_gpu = [
        (w, t) for w, t in pod_templates(overlay("gpu")) if service_of(containers(t)[0]) and _gpus(containers(t)[0])
    ]
    assert {w["metadata"]["name"] for w, _ in with_gpu} == {"querent-inference", "querent-trainer"}
    for workload, template in with_gpu:
        (container,) = containers(template)
        spec = template["spec"]
        assert _gpus(container) == 1
        assert isinstance(_gpus(container), int)
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
        assert "nodeAffinity" in spec["affinity"]
        assert spec["runtimeClassName"] == "nvidia"
        assert workload["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
        assert container["image"].endswith("-gpu")
    shm = {v["name"]: v.get("emptyDir", {}) for v in with_gpu[-1][1]["spec"]["volumes"]}["shm"]
    assert shm["medium"] == "Memory"


def test_nothing_of_a_gpu_is_in_the_local_overlay() -> None:
    for _, template in pod_templates(overlay("local")):
        assert not any(_gpus(container) for container in containers(template))
        assert "runtimeClassName" not in template["spec"]


def test_images_are_pinned_by_a_tag(objects: tuple[Object, ...]) -> None:
    for _, template in pod_templates(objects):
        for container in containers(template):
            _, _, tag = container["image"].rpartition(":")
            assert re.match(r"\d+\.\d+", tag), container["image"]
            assert container.get("imagePullPolicy") != "Always"


def test_every_pod_is_restricted(objects: tuple[Object, ...]) -> None:
    (namespace,) = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for it in objects:
        assert it["kind"] == "Namespace" or it["metadata"]["namespace"] == namespace["metadata"]["name"]
    for it in of_kind(objects, "ServiceAccount"):
        assert it["automountServiceAccountToken"] is False
    for workload, template in pod_templates(objects):
        _assert_restricted(template, name_of(workload))


def _assert_restricted(template: Object, name: str) -> None:
    """The Pod Security Standard `restricted`, and a read-only root."""
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False, name
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
    assert spec["securityContext"]["runAsNonRoot"] is True, name
    assert spec["securityContext"]["runAsUser"] > 0, name
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
    allowed = {"emptyDir", "secret", "configMap", "persistentVolumeClaim"}
    assert all(volume.keys() - {"name"} <= allowed for volume in spec["volumes"]), name
    for container in containers(template):
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["readOnlyRootFilesystem"] is True, name
        assert "privileged" not in security, name
        assert container["resources"]["limits"]["memory"], name
        assert not any("hostPort" in port for port in container.get("ports", ())), name


def _gpus(container: Object) -> Any:
    return container["resources"]["limits"].get("nvidia.com/gpu", 0)


def _name(it: Object) -> str:
    return str(it["metadata"]["name"])


def _claims(template: Object) -> list[Object]:
    return [volume for volume in template["spec"]["volumes"] if "persistentVolumeClaim" in volume]


def _named(way: Object) -> list[str]:
    return [it["port"] for it in way.get("ports", ()) if isinstance(it["port"], str)]
