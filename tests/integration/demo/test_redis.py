"""The demo's own Redis: beside any other, seen by nobody else, and gone afterwards."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from services.demo import redis as demo_redis
from services.demo.ports import HOST, any_free, is_free
from services.demo.processes import ProcessFailed, Supervisor
from services.demo.redis import answers, find_server, start_redis
from tests.integration.demo.test_processes import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.endswith("REDIS_URL")}


@pytest.fixture
def other_redis(tmp_path: Path) -> Iterator[int]:
    """Somebody else's Redis with a value in it."""
    port = any_free()
    command = [str(find_server(os.environ)), "--port", str(port), "--bind", HOST, "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_until(lambda: answers(f"redis://{HOST}:{port}/0"), "the start of the other Redis")
    with Redis(host=HOST, port=port) as client:
        client.set("mine", "untouched")
    yield port
    process.terminate()
    process.wait(20)


def silent(line: str) -> None: ...


def test_it_runs_beside_another_and_touches_nothing(
    tmp_path: Path, other_redis: int, environment: dict[str, str]
) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        url = start_redis(supervisor, tmp_path / "state", environment, silent)
        with Redis.from_url(url) as ours:
            assert f":{other_redis}/" not in url
            assert ours.dbsize() == 0
            ours.set("ours", "1")
        with Redis(host=HOST, port=other_redis) as theirs:
            assert theirs.keys() == [b"mine"]
    assert answers(f"redis://{HOST}:{other_redis}/0")
    assert not answers(url)
    assert list((tmp_path / "state" / "redis").iterdir()) == []


def test_nobody_gets_in_without_the_password(tmp_path: Path, environment: dict[str, str]) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        url = start_redis(supervisor, tmp_path / "state", environment, silent)
        port, password = int(url.rsplit(":", 1)[1].split("/")[0]), url.split(":")[2].split("@")[0]
        with Redis(host=HOST, port=port) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        seen = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert len(password) == 32
    assert password not in seen


def test_a_redis_that_the_user_names_is_taken(tmp_path: Path, other_redis: int, environment: dict[str, str]) -> None:
    named = f"redis://{HOST}:{other_redis}/0"
    with Supervisor(tmp_path / "logs") as supervisor:
        assert start_redis(supervisor, tmp_path / "state", {**environment, "REDIS_URL": named}, silent) == named
    assert answers(named)


def test_a_named_redis_that_is_away_is_told_and_replaced(tmp_path: Path, environment: dict[str, str]) -> None:
    said: list[str] = []
    dead = {**environment, "TRAINER_REDIS_URL": f"redis://{HOST}:{any_free()}/0"}
    with Supervisor(tmp_path / "logs") as supervisor:
        url = start_redis(supervisor, tmp_path / "state", dead, said.append)
        assert answers(url)
    assert "TRAINER_REDIS_URL is set, but nothing answers there" in said[0]


def test_a_port_lost_to_another_program_is_tried_again(
    tmp_path: Path, other_redis: int, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = iter([other_redis, other_redis, any_free()])
    monkeypatch.setattr(demo_redis, "any_free", lambda: next(offered))
    with Supervisor(tmp_path / "logs") as supervisor:
        url = start_redis(supervisor, tmp_path / "state", environment, silent)
        assert answers(url)
    assert next(offered, None) is None
    assert not is_free(other_redis)


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path, environment: dict[str, str]) -> None:
    broken = tmp_path / "bin" / "redis-server"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'bad configuration' >&2\nexit 3\n")
    broken.chmod(0o755)
    path = f"{broken.parent}:{environment['PATH']}"
    with Supervisor(tmp_path / "logs") as supervisor, pytest.raises(ProcessFailed, match="bad configuration"):
        start_redis(supervisor, tmp_path / "state", {**environment, "PATH": path}, silent)
