"""The compose files: by the specification's schema, and in step with the images, the services and each other."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.manifests import (
    FOLDERS,
    ROOT,
    SETTINGS,
    compose,
    image_environment,
    mounts,
    ours,
    variables,
    writable,
)

# Of the compose specification (Apache-2.0), as PyPI's check-jsonschema 0.39.0 carries it.
SCHEMA = json.loads((Path(__file__).parent / "compose-spec.json").read_text())
OURS = {"inference": "inference", "trainer": "trainer", "al-trainer": "trainer"}
STACK = compose()


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
@pytest.mark.parametrize("data", ["", "/home/me/flowers"])
def test_the_files_hold_to_the_specification(name: str, data: str) -> None:
    given = {"QUERENT_DATA": data, "QUERENT_DATA_AT": "/data/my-images"} if data else {}
    problems = list(jsonschema.Draft202012Validator(SCHEMA).iter_errors(compose(name, **given)))
    assert not problems, problems[0].message


def test_images_are_pinned_and_only_ours_are_built() -> None:
    for name, service in STACK["services"].items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), name
        assert ("build" in service) is (name in OURS)
        assert service.get("pull_policy") != "always"
        assert "@sha256" not in service["image"]
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("name", STACK["services"])
def test_a_service_may_do_no_more_than_it_must(name: str) -> None:
    service = STACK["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service["init"] is True
    if "profiles" not in service:
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}


def test_ports_are_this_machine_s_alone_and_can_all_be_moved() -> None:
    raw = (ROOT / "docker-compose.yml").read_text()
    for name, service in STACK["services"].items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
            inside = port.rsplit(":", 1)[1]
            assert re.search(r'"127\.0\.0\.1:\$\{\w+_PORT:-\d+\}:' + inside + '"', raw), name


def test_redis_and_the_database_are_reached_from_inside_only() -> None:
    assert STACK["networks"]["backend"]["internal"] is True
    for name in ("redis", "postgres"):
        assert STACK["services"][name]["networks"] == ["backend"]
        assert "ports" not in STACK["services"][name]


def test_what_a_service_waits_for_can_tell_that_it_is_well() -> None:
    with_check_in_image = {"inference", "trainer"}
    for name, service in STACK["services"].items():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert other in with_check_in_image or "start_interval" in STACK["services"][other]["healthcheck"]
    assert STACK["services"]["trainer"]["depends_on"].keys() == {"redis", "postgres", "inference"}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("files", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.gpu.yml")])
def test_settings_read_every_variable_and_take_its_value(
    name: str, files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = OURS[name]
    given: dict[str, str] = {}
    for file in files:
        given |= compose(file)["services"].get(name, {}).get("environment", {})
    assert given.keys() == ours(given)
    assert given.keys() <= variables(service)
    for variable, value in {**image_environment(service), **given}.items():
        monkeypatch.setenv(variable, value)
    settings: Any = SETTINGS[service]()
    mounted = mounts(STACK["services"][name])
    for folder, writes in FOLDERS[service].items():
        expected = True if (name, folder) == ("al-trainer", "data_dir") else writes
        assert writable(getattr(settings, folder), mounted) is expected, folder
    if service == "trainer":
        assert writable(settings.heartbeat_file, mounted) is True
        host, port = settings.inference_address.split(":")
        assert (host, port) == ("inference", image_port("inference", "INFERENCE_GRPC_PORT", "8001"))
        assert "@postgres:" in settings.database_url
        assert "@redis:" in settings.redis_url


def image_port(service: str, variable: str, default: str) -> str:
    return {**image_environment(service), **STACK["services"][service]["environment"]}.get(variable, default)


def test_a_folder_of_one_s_own_is_mounted_for_everybody_and_never_written() -> None:
    given = {"QUERENT_DATA": "/home/me/flowers", "QUERENT_DATA_AT": "/data/my-images", "QUERENT_DATA_MODE": "ro"}
    for name in OURS:
        service = compose(**given)["services"][name]
        assert "/home/me/flowers:/data/my-images:ro" in service["volumes"], name


def test_every_volume_and_network_is_declared_and_used() -> None:
    used = {v.split(":")[0] for s in STACK["services"].values() for v in s.get("volumes", ()) if v[0] not in "./"}
    assert used == STACK["volumes"].keys()
    assert {n for s in STACK["services"].values() for n in s["networks"]} == STACK["networks"].keys()


def test_a_stop_leaves_both_services_the_time_to_end_well() -> None:
    given = STACK["services"]["inference"]["environment"]
    assert float(given["INFERENCE_LAME_DUCK_SECONDS"]) + float(given["INFERENCE_GRACE_SECONDS"]) <= 8
    assert float(STACK["services"]["trainer"]["environment"]["TRAINER_GRACE_SECONDS"]) <= 8
    assert {service["stop_grace_period"] for service in STACK["services"].values()} == {"10s"}


def test_gpus_are_asked_for_in_the_second_file_only_and_as_a_whole() -> None:
    gpu = compose("docker-compose.gpu.yml")
    assert gpu["services"].keys() <= STACK["services"].keys()
    assert "nvidia" not in json.dumps(STACK)
    for name in ("inference", "trainer"):
        (device,) = gpu["services"][name]["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    for name in gpu["services"]:
        assert gpu["services"][name]["build"]["args"]["RUNTIME"] == "gpu"
        assert gpu["services"][name]["image"].endswith("-gpu")


def test_files_that_are_mounted_exist_and_name_services_by_their_names() -> None:
    for name, service in STACK["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith("./") or (ROOT / source).exists(), f"{name}: {source}"
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = {t for job in scraped["scrape_configs"] for group in job["static_configs"] for t in group["targets"]}
    assert targets >= {"trainer:8003", "inference:8002"}
    assert {t.split(":")[0] for t in targets} - {"localhost"} <= STACK["services"].keys()
    provider = yaml.safe_load(next((ROOT / "deploy/grafana/provisioning/dashboards").glob("*.yml")).read_text())
    assert provider["providers"][0]["options"]["path"] in mounts(STACK["services"]["grafana"])
