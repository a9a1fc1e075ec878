"""From exceptions to statuses: the one wrapper around every method of ours, and the one table."""

import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

import grpc
import structlog

from services.common import errors
from services.inference.metrics import Metrics
from services.inference.security import Gate

log = structlog.get_logger()

_STATUS: tuple[tuple[type[errors.QuerentError], grpc.StatusCode], ...] = (
    (errors.BadRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
    (errors.Stopped, grpc.StatusCode.UNAVAILABLE),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.DeadlineExpired, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.Forbidden, grpc.StatusCode.PERMISSION_DENIED),
    (errors.DamagedArtefact, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Conflict, grpc.StatusCode.FAILED_PRECONDITION),
)
INTERNAL_TEXT = "internal error; the server's log has the details"

_Context = grpc.aio.ServicerContext[Any, Any]
# grpc.RpcMethodHandler: generic in the stubs, a plain class when it runs.
_Handler = Any


def status_of(error: errors.QuerentError) -> grpc.StatusCode:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class Boundary:
    """Counts, times and translates the calls of services whose names begin with one of `packages`.

    What the gate refuses is refused in every package. Handlers are wrapped once, when they are registered: an
    interceptor of grpc.aio would be asked anew, and make new handlers, for every call.
    """

    def __init__(self, metrics: Metrics, gate: Gate, packages: tuple[str, ...] = ("querent.",)) -> None:
        self._metrics = metrics
        self._gate = gate
        self._prefixes = tuple(f"/{package}" for package in packages)

    def around(self, server: grpc.aio.Server) -> Any:
        """What to register services with, in place of `server`."""
        return _Registrar(self, server)

    def refusal(self, details: grpc.HandlerCallDetails) -> _Handler | None:
        """A handler that refuses the call, when the gate does."""
        refusal = self._gate(details.method, details.invocation_metadata or ())
        return self._refusing(details.method, refusal) if refusal else None

    def guarded(self, method: str, handler: _Handler) -> _Handler:
        if not method.startswith(self._prefixes):
            return handler
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler.unary_unary), **codec)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream), **codec)
        return handler

    def _refusing(self, method: str, refusal: errors.QuerentError) -> _Handler:
        call = _Call(self._metrics, method)

        async def refuse(_requests: AsyncIterator[bytes], context: _Context) -> None:
            await call.failed(refusal, context, time.perf_counter())

        # As a stream of requests, whatever the method is: so that not one byte is read for a caller without rights.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _unary(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        call = _Call(self._metrics, method)

        async def answer(request: Any, context: _Context) -> Any:
            started = time.perf_counter()
            try:
                response = await behaviour(request, context)
            except BaseException as error:
                await call.failed(error, context, started)
                raise
            call.succeeded(started)
            return response

        return answer

    def _stream(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        call = _Call(self._metrics, method)

        async def answer(request: Any, context: _Context) -> AsyncIterator[Any]:
            started = time.perf_counter()
            try:
                # aclosing: a cancelled call ends the work behind it now, not when the garbage is collected.
                async with aclosing(behaviour(request, context)) as responses:
                    async for response in responses:
                        yield response
            except BaseException as error:
                await call.failed(error, context, started)
                raise
            call.succeeded(started)

        return answer


class _Call:
    """The metrics of one method, looked up once, and its one way to fail."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._method = method
        self._codes = metrics.rpcs
        self._ok = metrics.rpcs.labels(method[1:], grpc.StatusCode.OK.name)
        self._seconds = metrics.rpc_seconds.labels(method[1:])

    def succeeded(self, started: float) -> None:
        self._ok.inc()
        self._seconds.observe(time.perf_counter() - started)

    async def failed(self, error: BaseException, context: _Context, started: float) -> None:
        """Ends the call with the status of `error`; gives back those that are none: a cancelled call has no answer."""
        code, text = grpc.StatusCode.CANCELLED, ""
        if isinstance(error, errors.QuerentError):
            code, text = status_of(error), str(error)
        elif isinstance(error, Exception):
            code = grpc.StatusCode.INTERNAL
        if code is grpc.StatusCode.INTERNAL:
            text = INTERNAL_TEXT
            log.error("call_failed", method=self._method, exc_info=error)
        # The runtime cancels our task when the caller goes away and when the deadline passes.
        remaining = context.time_remaining() if code is grpc.StatusCode.CANCELLED else None
        if remaining is not None and remaining <= 0:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        self._codes.labels(self._method[1:], code.name).inc()
        self._seconds.observe(time.perf_counter() - started)
        if isinstance(error, Exception):
            await context.abort(code, text)


class _Registrar:
    """Stands in for the server while services are registered."""

    def __init__(self, boundary: Boundary, server: grpc.aio.Server) -> None:
        self._boundary = boundary
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        self._server.add_generic_rpc_handlers(tuple(_Guarded(self._boundary, handler) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """grpc.aio has no use for it, and generated code calls it."""


class _Guarded(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs alone
    def __init__(self, boundary: Boundary, inner: Any) -> None:
        self._boundary = boundary
        self._inner = inner
        self._guarded: dict[str, _Handler] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler | None:
        method = handler_call_details.method
        handler = self._guarded.get(method)
        if handler is None:
            inner = self._inner.service(handler_call_details)
            if inner is None:
                return None
            handler = self._guarded[method] = self._boundary.guarded(method, inner)
        return self._boundary.refusal(handler_call_details) or handler
