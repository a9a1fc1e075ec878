"""`make up` and its kin, with a docker that only writes down what it is asked."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.deploy.manifests import ROOT

FAKE = """#!/usr/bin/env bash
mounted="${QUERENT_DATA:-} ${QUERENT_DATA_AT:-} ${QUERENT_DATA_MODE:-}"
echo "$* | ${INFERENCE_CPUS:+cpus=$INFERENCE_CPUS }$mounted" >>"$DOCKER_LOG"
[ "$*" = info ] && [ -n "${NO_ENGINE:-}" ] && exit 1
case "$*" in
    "info --format"*) echo "${NCPU:-}" ;;
    *" ps "*) printf '%b' "${EXITED:-}" ;;
    *" run "*) exit "${RUN_FAILS:-0}" ;;
esac
exit 0
"""


class Stack:
    def __init__(self, folder: Path) -> None:
        self.log = folder / "docker.log"
        self.environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "DOCKER_LOG": str(self.log)}
        docker = folder / "docker"
        docker.write_text(FAKE)
        docker.chmod(0o755)

    def run(self, command: str, **given: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.environment, "DATA": "", "CONFIG": "", **given}
        return subprocess.run([ROOT / "scripts" / "stack.sh", command], env=environment, capture_output=True, text=True)

    def asked(self, word: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if f" {word} " in f" {line} "]


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


def test_up_builds_waits_and_says_what_to_type_next(stack: Stack) -> None:
    answer = stack.run("up")
    assert answer.returncode == 0, answer.stderr
    assert stack.asked("up")[0].startswith("compose up --build --detach --wait")
    assert "127.0.0.1:8001" in answer.stdout
    assert "http://127.0.0.1:3000" in answer.stdout
    assert "docker compose run --rm al-trainer run examples/cifar10-demo.yaml --follow" in answer.stdout


def test_limits_are_what_the_engine_has_unless_they_are_given(stack: Stack) -> None:
    stack.run("up", NCPU="16")
    assert "cpus=16 " in stack.asked("up")[0]
    stack.run("up", NCPU="16", INFERENCE_CPUS="3")
    assert "cpus=3 " in stack.asked("up")[1]


def test_moved_ports_are_told_as_they_are(stack: Stack) -> None:
    assert "127.0.0.1:9901" in stack.run("up", INFERENCE_GRPC_PORT="9901").stdout


def test_a_folder_of_images_is_mounted_and_the_next_command_runs_on_it(stack: Stack, tmp_path: Path) -> None:
    flowers = tmp_path / "my flowers"
    (flowers / "rose").mkdir(parents=True)
    answer = stack.run("up", DATA=str(flowers))
    assert answer.returncode == 0, answer.stderr
    assert stack.asked("up")[0].endswith(f"| {flowers} /data/my-images ro")
    # What was printed can be typed: a shell runs it, and docker is asked with the same mounts.
    told = answer.stdout.split("next, a campaign:\n")[1]
    subprocess.run(["bash", "-c", told], env=stack.environment, check=True)
    line = stack.asked("run")[0]
    assert line == f"compose run --rm al-trainer run examples/folder.yaml --follow | {flowers} /data/my-images ro"


@pytest.mark.parametrize(
    ("mode", "told"), [(None, "is no folder"), (0o700, "chmod -R o+rX")], ids=["missing", "unreadable"]
)
def test_a_folder_that_cannot_be_used_is_refused_with_the_way_out(
    stack: Stack, tmp_path: Path, mode: int | None, told: str
) -> None:
    folder = tmp_path / "images"
    if mode is not None:
        folder.mkdir(mode=mode)
    answer = stack.run("up", DATA=str(folder))
    assert answer.returncode == 1
    assert told in answer.stderr
    assert stack.asked("up") == []


def test_up_gpu_takes_both_files_and_says_so_in_the_next_command(stack: Stack) -> None:
    answer = stack.run("up-gpu")
    files = "-f docker-compose.yml -f docker-compose.gpu.yml"
    assert stack.asked("up")[0].startswith(f"compose {files} up ")
    assert f"docker compose {files} run --rm al-trainer" in answer.stdout


def test_the_demo_runs_a_campaign_in_the_stack(stack: Stack) -> None:
    assert stack.run("demo", CONFIG="examples/digits-demo.yaml").returncode == 0
    assert f"{ROOT}/examples/digits-demo.yaml:/opt/querent/campaign.yaml:ro" in stack.asked("run")[0]


def test_a_demo_that_fails_says_how_to_run_it_without_a_download(stack: Stack) -> None:
    answer = stack.run("demo", RUN_FAILS="1")
    assert answer.returncode == 1
    assert "CONFIG=examples/digits-demo.yaml" in answer.stderr


def test_down_ends_within_ten_seconds_and_tells_who_did_not_end_well(stack: Stack) -> None:
    well = stack.run("down", EXITED="trainer exited 0\\ninference exited 0\\n")
    assert well.returncode == 0, well.stderr
    assert "--timeout 10" in stack.asked("stop")[0]
    assert "--timeout 10" in stack.asked("down")[0]
    badly = stack.run("down", EXITED="trainer exited 137\\ninference exited 0\\n")
    assert badly.returncode == 1
    assert "trainer exited 137" in badly.stderr
    assert "inference" not in badly.stderr


def test_without_an_engine_the_way_out_is_told(stack: Stack) -> None:
    answer = stack.run("up", NO_ENGINE="1")
    assert answer.returncode == 1
    assert "engine does not answer" in answer.stderr
