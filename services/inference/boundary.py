"""From exceptions to statuses: the one interceptor around every method of ours, and the one table."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
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
_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]]


def status_of(error: errors.QuerentError) -> grpc.StatusCode:
    return next((status for kind, status in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class Boundary(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Counts, times and translates the calls of services whose names begin with one of `packages`.

    What the gate refuses is refused in every package.
    """

    def __init__(self, metrics: Metrics, gate: Gate, packages: tuple[str, ...] = ("querent.",)) -> None:
        self._metrics = metrics
        self._gate = gate
        self._prefixes = tuple(f"/{package}" for package in packages)

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> _Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return handler
        refusal = self._gate(method, handler_call_details.invocation_metadata or ())
        if refusal:
            return self._refusing(method, refusal)
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
        async def call(_requests: AsyncIterator[bytes], context: _Context) -> None:
            async with self._watched(method, context):
                raise refusal

        # As a stream of requests, whatever the method is: so that not one byte is read for a caller without rights.
        return grpc.stream_stream_rpc_method_handler(call)

    def _unary(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: _Context) -> Any:
            async with self._watched(method, context):
                return await behaviour(request, context)

        return call

    def _stream(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: _Context) -> AsyncIterator[Any]:
            # aclosing: a cancelled call ends the work behind it now, not when the garbage is collected.
            async with self._watched(method, context), aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response

        return call

    @asynccontextmanager
    async def _watched(self, method: str, context: _Context) -> AsyncIterator[None]:
        started = time.perf_counter()
        code, text = grpc.StatusCode.CANCELLED, ""
        try:
            yield
            code = grpc.StatusCode.OK
        except errors.QuerentError as error:
            code, text = status_of(error), str(error)
            if code is grpc.StatusCode.INTERNAL:
                text = INTERNAL_TEXT
                log.exception("call_failed", method=method)
        except Exception:
            code, text = grpc.StatusCode.INTERNAL, INTERNAL_TEXT
            log.exception("call_failed", method=method)
        finally:
            # The runtime cancels our task when the caller goes away and when the deadline passes.
            remaining = context.time_remaining()
            if code is grpc.StatusCode.CANCELLED and remaining is not None and remaining <= 0:
                code = grpc.StatusCode.DEADLINE_EXCEEDED
            self._metrics.rpcs.labels(method[1:], code.name).inc()
            self._metrics.rpc_seconds.labels(method[1:]).observe(time.perf_counter() - started)
        if code is not grpc.StatusCode.OK:
            await context.abort(code, text)
