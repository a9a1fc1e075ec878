"""Listening on a port of one's own, with one clear line when that cannot be."""

import errno
import socket

import grpc

from services.common.errors import Conflict


def bind(
    server: grpc.aio.Server,
    host: str,
    port: int,
    credentials: grpc.ServerCredentials | None,
    variable: str = "INFERENCE_GRPC_PORT",
) -> int:
    """The port that `server` will listen on, with TLS when there are credentials. Raises Conflict."""
    try:
        # gRPC says in a log line of its own that a port is taken, and not why; a plain socket says it first.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host.strip("[]"), port), family=family):
            pass
        address = f"{host}:{port}"
        return server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except OSError as error:
        raise Conflict(taken("gRPC", host, port, variable, error)) from error
    except RuntimeError as error:
        raise Conflict(f"cannot listen for gRPC on {host}:{port}: {error}; see {variable}") from error


def taken(what: str, host: str, port: int, variable: str, error: OSError) -> str:
    """What to say when a port cannot be had."""
    if error.errno == errno.EADDRINUSE:
        return f"{what} port {port} on {host} is in use by another process; set {variable} to a free port"
    return f"cannot listen for {what} on {host}:{port}: {error.strerror or error}; see {variable}"
