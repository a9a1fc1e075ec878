"""Ports, lock, data choice and texts of the demo."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.errors import BadConfig, Conflict, NotFound, Unavailable
from services.demo import data, ports, redis, scrape
from services.demo.__main__ import main
from services.demo.samples import save_test_images
from services.demo.state import State, only_demo


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as server:
        server.bind((ports.HOST, 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to stand in, where no data lies."""
    for variable in ("QUERENT_DATA_DIR", "TRAINER_REDIS_URL", "REDIS_URL"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "checkout"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_free_port_is_taken_and_a_busy_one_is_replaced(listener: int) -> None:
    free = ports.any_free()
    chosen = ports.choose((listener, free, free))
    assert chosen[1] == free
    assert len(set(chosen)) == 3
    assert listener not in chosen


def test_a_port_in_use_names_the_variable_to_change(listener: int) -> None:
    with pytest.raises(Conflict, match=rf"port {listener} is in use.*INFERENCE_GRPC_PORT"):
        ports.require_free(listener, "INFERENCE_GRPC_PORT")


def test_a_second_demo_on_the_same_state_is_refused(tmp_path: Path) -> None:
    state = State(tmp_path / ".querent")
    with (
        only_demo(state),
        pytest.raises(Conflict, match=rf"another demo \(process {os.getpid()}\)"),
        only_demo(state),
    ):
        pytest.fail("the lock was given twice")
    with only_demo(state):
        pass


def test_both_services_look_at_the_same_folders() -> None:
    env = State(Path(".querent")).environment({"TRAINER_REGISTRY_DIR": "/elsewhere", "HOME": "/home/me"})
    assert env["TRAINER_REGISTRY_DIR"] == env["INFERENCE_REGISTRY_DIR"] == ".querent/registry"
    assert env["TRAINER_EMBEDDINGS_DIR"] == env["INFERENCE_EMBEDDINGS_DIR"]
    assert env["HOME"] == "/home/me"


def test_a_redis_server_on_the_path_comes_first(tmp_path: Path) -> None:
    server = tmp_path / "valkey-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(server.stat().st_mode | stat.S_IXUSR)
    assert redis.find_server({"PATH": str(tmp_path)}) == server


def test_without_one_the_embedded_server_is_taken(tmp_path: Path) -> None:
    assert redis.find_server({"PATH": str(tmp_path)}).name == "redis-server"


def test_a_dead_redis_url_does_not_answer() -> None:
    assert not redis.answers(f"redis://127.0.0.1:{ports.any_free()}/0")
    assert not redis.answers("this is not a url")


def test_serve_without_a_model_says_what_to_do(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 1
    assert "make demo" in capsys.readouterr().err


def test_a_config_that_does_not_exist_is_named(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "no-such.yaml"]) == 1
    assert "no-such.yaml cannot be read" in capsys.readouterr().err


def test_cifar10_is_preferred(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_obtain", lambda kind, data_dir, state: Path("somewhere"))
    said: list[str] = []
    chosen = data.choose(None, State(Path(".querent")), {}, said.append)
    assert chosen == data.Chosen(data.CIFAR10_CONFIG, Path("somewhere"))
    assert said == []


def test_without_cifar10_the_demo_says_so_and_takes_digits(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def obtain(kind: str, data_dir: Path, state: State) -> Path:
        if kind == "cifar10":
            raise Unavailable("no connection to the [server]")
        return state.downloads

    monkeypatch.setattr(data, "_obtain", obtain)
    said: list[str] = []
    chosen = data.choose(None, State(Path(".querent")), {}, said.append)
    assert chosen.config == data.DIGITS_CONFIG
    assert "QUERENT_DATA_DIR" in said[0]
    assert r"no connection to the \[server]" in said[0]


def test_a_config_of_own_images_needs_nothing_obtained(checkout: Path) -> None:
    config = checkout / "own.yaml"
    config.write_text("source: {kind: folder, location: flowers}\n")
    chosen = data.choose(config, State(Path(".querent")), {"QUERENT_DATA_DIR": "/photos"}, print)
    assert chosen == data.Chosen(config, Path("/photos"))


def test_a_missing_config_is_a_bad_config(checkout: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be read"):
        data.choose(Path("missing.yaml"), State(Path(".querent")), {}, print)


def test_metrics_lines_are_of_the_campaign_and_its_last_round() -> None:
    page = "\n".join(
        [
            "# HELP al_round_accuracy Accuracy",
            'al_round_labelled_samples{campaign="a-1",round="2"} 200.0',
            'al_round_labelled_samples{campaign="a-1",round="1"} 100.0',
            'al_round_accuracy{campaign="a-1",round="2",split="test"} 0.7',
            'al_round_accuracy{campaign="b-1",round="2",split="test"} 0.1',
            'al_campaign_state{campaign="a-1",state="failed"} 0.0',
        ]
    )
    lines = scrape.select(page, scrape.TRAINER_METRICS, "a-1")
    assert [line.split("{")[0] for line in lines] == ["al_round_accuracy", "al_round_labelled_samples"]


def test_a_report_without_a_source_gives_no_images(tmp_path: Path) -> None:
    state = State(tmp_path)
    (state.reports / "a-1").mkdir(parents=True)
    (state.reports / "a-1" / "report.json").write_text('{"source_id": ""}')
    with pytest.raises(NotFound, match="a-1"):
        save_test_images(state, "a-1", tmp_path, 10)
