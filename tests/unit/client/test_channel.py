"""What both clients' channel does with statuses and addresses, against servers that count their calls."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import grpc
import pytest

from services.client.aio import AsyncQuerentClient
from services.client.client import QuerentClient
from services.common.errors import QuerentError, Unavailable
from services.common.pb import model_registry_pb2, model_registry_pb2_grpc

Servicer = TypeVar("Servicer", bound=model_registry_pb2_grpc.ModelRegistryServiceServicer)

CALLERS = ["sync", "asyncio"]


class CountingRegistry(model_registry_pb2_grpc.ModelRegistryServiceServicer):
    """Answers `refusals` first, one a call, then well; remembers each call's deadline in seconds."""

    def __init__(self, *refusals: grpc.StatusCode) -> None:
        self._refusals = list(refusals)
        self.port = 0
        self.deadlines: list[float | None] = []

    async def ListModels(self, request, context):
        self.deadlines.append(context.time_remaining())
        if self._refusals:
            await context.abort(self._refusals.pop(0), "as told")
        return model_registry_pb2.ListModelsResponse()


@asynccontextmanager
async def listening(servicer: Servicer) -> AsyncIterator[Servicer]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    model_registry_pb2_grpc.add_ModelRegistryServiceServicer_to_server(servicer, server)
    servicer.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield servicer
    finally:
        await server.stop(None)


async def list_models(caller: str, target: str, times: int = 1) -> None:
    if caller == "asyncio":
        async with AsyncQuerentClient(target, timeout_s=20) as client:
            for _ in range(times):
                await client.list_models()
        return

    def blocking() -> None:
        with QuerentClient(target, timeout_s=20) as client:
            for _ in range(times):
                client.list_models()

    await asyncio.to_thread(blocking)


@pytest.mark.parametrize("caller", CALLERS)
async def test_unavailable_is_tried_again_with_the_deadline_of_the_call(caller: str) -> None:
    async with listening(CountingRegistry(grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE)) as replica:
        await list_models(caller, f"127.0.0.1:{replica.port}")
    assert len(replica.deadlines) == 3
    assert all(left is not None and 10 < left < 22 for left in replica.deadlines)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize(
    "status", [s for s in grpc.StatusCode if s not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)]
)
async def test_no_other_status_is_tried_again(caller: str, status: grpc.StatusCode) -> None:
    async with listening(CountingRegistry(status)) as replica:
        with pytest.raises(QuerentError, match="as told"):
            await list_models(caller, f"127.0.0.1:{replica.port}")
    assert len(replica.deadlines) == 1


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_call_that_a_stopping_service_cancels_is_unavailable(caller: str) -> None:
    async with listening(CountingRegistry(grpc.StatusCode.CANCELLED)) as replica:
        with pytest.raises(Unavailable, match=rf"{replica.port} was cancelled before its answer.*as told"):
            await list_models(caller, f"127.0.0.1:{replica.port}")


class NeverAnswers(model_registry_pb2_grpc.ModelRegistryServiceServicer):
    def __init__(self) -> None:
        self.port = 0
        self.called = asyncio.Event()

    async def ListModels(self, request, context):
        self.called.set()
        await asyncio.Event().wait()


async def test_a_client_that_is_closed_under_a_call_ends_it_as_unavailable() -> None:
    async with listening(NeverAnswers()) as replica:
        client = AsyncQuerentClient(f"127.0.0.1:{replica.port}", timeout_s=20)
        call = asyncio.create_task(client.list_models())
        await replica.called.wait()
        await client.close()
        with pytest.raises(Unavailable, match="was closed before the answer"):
            await call

        replica.called.clear()
        blocking = QuerentClient(f"127.0.0.1:{replica.port}", timeout_s=20)
        call = asyncio.create_task(asyncio.to_thread(blocking.list_models))
        await replica.called.wait()
        blocking.close()
        with pytest.raises(Unavailable, match="was cancelled before its answer"):
            await call


async def test_the_callers_own_cancellation_stays_one() -> None:
    async with listening(NeverAnswers()) as replica, AsyncQuerentClient(f"127.0.0.1:{replica.port}") as client:
        call = asyncio.create_task(client.list_models())
        await replica.called.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize("caller", CALLERS)
async def test_calls_take_turns_over_the_addresses_of_a_target(caller: str) -> None:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(listening(CountingRegistry())) for _ in range(2)]
        target = "ipv4:" + ",".join(f"127.0.0.1:{replica.port}" for replica in replicas)
        # The first calls may go to the replica that was connected first.
        await list_models(caller, target, times=40)
        counts = [len(replica.deadlines) for replica in replicas]
    assert sum(counts) == 40
    assert min(counts) >= 10
