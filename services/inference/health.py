"""grpc.health.v1 for the process, its services and each campaign.

Our own servicer, because grpcio's forgets every other watcher of a service when one of them leaves, and one slow
watcher of a service holds up the others.
"""

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.inference.changes import Changes

# For probes: what is promoted was loaded or refused; calls should come here; the process answers at all.
STARTUP = "startup"
READINESS = "readiness"
LIVENESS = "liveness"
# What the channels of our clients watch: whether to send calls here. SERVING until the lame-duck time is over.
CONNECTIONS = "connections"
_Response = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[Any, Any]


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # no stubs
    """`answering`: campaign -> the version that answers, 0 while none does. `saturated`: whether a queue is full.

    Both are looked at whenever somebody asks.
    """

    def __init__(
        self,
        services: Collection[str],
        answering: Callable[[], Mapping[str, int]],
        changes: Changes,
        saturated: Callable[[], bool] = lambda: False,
    ) -> None:
        self._services = frozenset((READINESS, *services))
        self._answering = answering
        self._changes = changes
        self._saturated = saturated
        self._started = False
        self._ready = False
        self._leaving = False
        self._sent_away = False

    def set_started(self) -> None:
        self._started = True

    def set_ready(self, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            self._changes.tell()

    def leave(self) -> None:
        """Everything but CONNECTIONS is NOT_SERVING from now on, whatever comes."""
        self._leaving = True
        self._changes.tell()

    def send_away(self) -> None:
        """CONNECTIONS too."""
        self._sent_away = True
        self._changes.tell()

    def status(self, service: str) -> int:
        """A status of HealthCheckResponse; SERVICE_UNKNOWN for a name that is not served here."""
        if service == LIVENESS:
            return int(_Response.SERVING)
        if service == CONNECTIONS:
            return int(_Response.NOT_SERVING if self._sent_away else _Response.SERVING)
        if service == STARTUP:
            return int(_Response.SERVING if self._started else _Response.NOT_SERVING)
        if service == READINESS and self._saturated():
            return int(_Response.NOT_SERVING)
        answering = self._answering()
        if service and service not in self._services and service not in answering:
            return int(_Response.SERVICE_UNKNOWN)
        # The process itself lives whether or not it is ready for work.
        up = not service or (self._ready and (service in self._services or answering[service] > 0))
        return int(_Response.SERVING if up and not self._leaving else _Response.NOT_SERVING)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        status = self.status(request.service)
        if status == _Response.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service or campaign {request.service[:100]!r} here")
        return _Response(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, _context: _Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last = None
        while not self._changes.ended:
            change = self._changes.next
            status = self.status(request.service)
            if status != last:
                last = status
                yield _Response(status=status)
            await change.wait()
