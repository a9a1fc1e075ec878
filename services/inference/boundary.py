"""From exceptions to statuses: the one wrapper around every method of ours, and the one table."""

import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

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
# What a client accepts of a status is 8 kB, where a letter outside ASCII takes three times its bytes and more.
_TEXT_BYTES = 1000
# Of these the messages may be as large as the server takes any; of all others names and ids are the most there is.
# A message takes up to forty times its bytes once it is parsed.
_LARGE = frozenset(
    (
        "/querent.v1.PredictionService/Predict",
        "/querent.v1.PoolScoringService/ScorePool",
        "/querent.v1.PoolScoringService/Embed",
        "/inference.GRPCInferenceService/ModelInfer",
    )
)
_SMALL_BYTES = 4 * 1024 * 1024
INTERNAL_TEXT = "internal error; the server's log has the details"

_Context = grpc.aio.ServicerContext[Any, Any]
# grpc.RpcMethodHandler: generic in the stubs, a plain class when it runs.
_Handler = Any
_Reader = Callable[[bytes], Any]
# Status and text of a call that was not answered.
_Refusal = tuple[grpc.StatusCode, str]


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
        read = _reader(method, handler.request_deserializer)
        serializer = handler.response_serializer
        if handler.unary_unary:
            unary = self._unary(method, read, handler.unary_unary)
            return grpc.unary_unary_rpc_method_handler(unary, response_serializer=serializer)
        if handler.unary_stream:
            stream = self._stream(method, read, handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(stream, response_serializer=serializer)
        return handler

    def _refusing(self, method: str, refusal: errors.QuerentError) -> _Handler:
        call = _Call(self._metrics, method)

        async def refuse(_requests: AsyncIterator[bytes], context: _Context) -> None:
            await context.abort(*call.refused(refusal, time.perf_counter()))

        # As a stream of requests, whatever the method is: so that not one byte is read for a caller without rights.
        return grpc.stream_stream_rpc_method_handler(refuse)

    def _unary(self, method: str, read: _Reader, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        call = _Call(self._metrics, method)

        async def answer(data: bytes, context: _Context) -> Any:
            started = time.perf_counter()
            try:
                response = await behaviour(read(data), context)
            except Exception as error:
                refusal = call.refused(error, started)
            except BaseException:
                call.cancelled(context, started)
                raise
            else:
                call.succeeded(started)
                return response
            del data  # see _Call.refused
            return await context.abort(*refusal)

        return answer

    def _stream(self, method: str, read: _Reader, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        call = _Call(self._metrics, method)

        async def answer(data: bytes, context: _Context) -> AsyncIterator[Any]:
            started = time.perf_counter()
            refusal: _Refusal | None = None
            try:
                # aclosing: a cancelled call ends the work behind it now, not when the garbage is collected.
                async with aclosing(behaviour(read(data), context)) as responses:
                    async for response in responses:
                        yield response
            except Exception as error:
                refusal = call.refused(error, started)
            except BaseException:
                call.cancelled(context, started)
                raise
            else:
                call.succeeded(started)
            del data  # see _Call.refused
            if refusal:
                await context.abort(*refusal)

        return answer


class _Call:
    """The metrics of one method, looked up once."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._method = method
        self._codes = metrics.rpcs
        self._ok = metrics.rpcs.labels(method[1:], grpc.StatusCode.OK.name)
        self._seconds = metrics.rpc_seconds.labels(method[1:])

    def succeeded(self, started: float) -> None:
        self._ok.inc()
        self._seconds.observe(time.perf_counter() - started)

    def refused(self, error: Exception, started: float) -> _Refusal:
        """What to abort the call with.

        The call does so itself, after its request is let go: the runtime keeps the exception that `abort` raises, and
        its traceback all that the frames on its way hold, in a cycle until the garbage is collected. That may be
        hundreds of refused requests of many megabytes later.
        """
        code = status_of(error) if isinstance(error, errors.QuerentError) else grpc.StatusCode.INTERNAL
        text = str(error)
        if code is grpc.StatusCode.INTERNAL:
            text = INTERNAL_TEXT
            log.error("call_failed", method=self._method, exc_info=error)
        self._count(code, started)
        return code, _bounded(text)

    def cancelled(self, context: _Context, started: float) -> None:
        """The runtime cancels a call's task when the caller goes away and when the deadline passes."""
        remaining = context.time_remaining()
        late = remaining is not None and remaining <= 0
        self._count(grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED, started)

    def _count(self, code: grpc.StatusCode, started: float) -> None:
        self._codes.labels(self._method[1:], code.name).inc()
        self._seconds.observe(time.perf_counter() - started)


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


def _reader(method: str, deserializer: _Reader | None) -> _Reader:
    """Reads a request inside the call: bytes that are no message are the caller's error and not an unknown one.

    The servicers of the Open Inference Protocol have no deserializer: they read by themselves.
    """
    limit = math.inf if method in _LARGE else _SMALL_BYTES

    def read(data: bytes) -> Any:
        if len(data) > limit:
            raise errors.BadRequest(f"the message has {len(data)} bytes; the limit of this method is {_SMALL_BYTES}")
        try:
            return deserializer(data) if deserializer else data
        except DecodeError as error:
            raise errors.BadRequest("the message is not a request of this method: it cannot be parsed") from error

    return read


def _bounded(text: str) -> str:
    """The last resort: messages are short, but some list what there is."""
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= _TEXT_BYTES else f"{encoded[:_TEXT_BYTES].decode(errors='ignore')}..."
