"""Ports on the loopback address."""

import socket
from collections.abc import Iterable

from services.common.errors import Conflict

HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # A port whose last connections are still fading can be listened on; one with a listener cannot.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def answers(port: int) -> bool:
    """Whether something listens."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def any_free() -> int:
    """A port that is free now; whoever uses it must be ready to lose the race for it."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def choose(preferred: Iterable[int]) -> list[int]:
    """Each preferred port when it is free, else one that the system chooses; all different."""
    chosen: list[int] = []
    for port in preferred:
        while port in chosen or not is_free(port):
            port = any_free()
        chosen.append(port)
    return chosen


def require_free(port: int, variable: str) -> None:
    """Raises Conflict naming the variable that chooses another port."""
    if not is_free(port):
        raise Conflict(f"port {port} is in use by another program; choose another one with {variable}=PORT")
