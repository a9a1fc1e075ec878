"""WatchModel and health by campaign, over a real channel."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.client.aio import AsyncQuerentClient
from services.client.client import QuerentClient
from services.common.errors import DeadlineExpired, NotFound, Unavailable
from services.common.pb import model_registry_pb2
from services.inference.service import InferenceServer
from tests.integration.inference.harness import Served, serving, settings
from tests.tiny_models import Folders, TinyModel, next_version, png, publish

MODEL = TinyModel()
SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


async def following(call: AsyncIterator[model_registry_pb2.Model]) -> model_registry_pb2.Model:
    async with asyncio.timeout(10):
        return await anext(call)


def told(model: model_registry_pb2.Model) -> tuple[str, int, int]:
    return model.name, model.version, model.current_version


# ---- WatchModel ---------------------------------------------------------------------------------------


async def test_a_watch_tells_the_state_and_then_each_version_that_takes_over(folders: Folders) -> None:
    publish(folders.registry, MODEL)
    second = next_version(MODEL)
    async with serving(folders) as served:
        watched = served.client.watch_model("tiny")
        assert told(await following(watched)) == ("tiny", 1, 0)
        folders.registry.promote("tiny", 1)
        assert told(await following(watched)) == ("tiny", 1, 1)
        publish(folders.registry, second, promote=True)
        model = await following(watched)
        assert told(model) == ("tiny", 2, 2)
        assert model.loaded
        folders.registry.promote("tiny", 1)
        assert told(await following(watched)) == ("tiny", 1, 1)
        await watched.aclose()  # type: ignore[attr-defined]


async def test_a_version_that_is_told_of_answers_already(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    async with serving(folders) as served:
        watched = served.client.watch_model("tiny")
        await following(watched)
        version = MODEL
        for _ in range(5):
            version = next_version(version)
            publish(folders.registry, version, promote=True)
            assert (await following(watched)).version == version.version
            assert (await served.client.get_model()).version == version.version


async def test_without_a_name_every_campaign_is_watched_as_it_comes_and_goes(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    async with serving(folders) as served:
        watched = served.client.watch_model()
        assert told(await following(watched)) == ("tiny", 1, 1)
        publish(folders.registry, TinyModel(campaign="other"), promote=True)
        while (model := await following(watched)).current_version == 0:
            pass  # the folder of a campaign comes before its version, and that before the promotion
        assert told(model) == ("other", 1, 1)
        folders.registry.delete("tiny")
        assert told(await following(watched)) == ("tiny", 0, 0)


async def test_a_watch_of_an_empty_registry_waits_for_the_first_model(folders: Folders) -> None:
    async with serving(folders) as served:
        waiting = asyncio.ensure_future(following(served.client.watch_model()))
        publish(folders.registry, MODEL, promote=True)
        assert (await waiting).name == "tiny"


async def test_an_unknown_campaign_is_not_found_and_so_is_one_that_is_deleted(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    async with serving(folders) as served:
        with pytest.raises(NotFound, match="no model 'nobody'"):
            await following(served.client.watch_model("nobody"))
        watched = served.client.watch_model("tiny")
        await following(watched)
        folders.registry.delete("tiny")
        with pytest.raises(NotFound, match="no model 'tiny'"):
            await following(watched)


async def test_many_watchers_see_the_same_change(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    async with serving(folders) as served:
        watches = [served.client.watch_model("tiny") for _ in range(100)]
        assert {(await following(watched)).version for watched in watches} == {1}
        publish(folders.registry, next_version(MODEL), promote=True)
        assert {m.version for m in await asyncio.gather(*map(following, watches))} == {2}


async def test_the_sync_client_watches_until_its_deadline(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)

    def watch(address: str) -> list[int]:
        seen = []
        with QuerentClient(address) as client, suppress(DeadlineExpired):
            for model in client.watch_model("tiny", timeout_s=0.3):
                seen.append(model.version)
            raise AssertionError("the watch ended by itself")
        return seen

    async with serving(folders) as served:
        assert await asyncio.to_thread(watch, served.address) == [1]


async def test_shutdown_does_not_wait_for_those_who_watch(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    server = InferenceServer(settings(folders, grace_seconds=30))
    await server.start()
    async with AsyncQuerentClient(f"127.0.0.1:{server.grpc_port}") as client:
        watched = client.watch_model("tiny")
        await following(watched)
        started = time.monotonic()
        ended = asyncio.ensure_future(following(watched))
        await server.stop()
        with pytest.raises(Unavailable, match="shutting down"):
            await ended
        assert time.monotonic() - started < 10


# ---- health -------------------------------------------------------------------------------------------


def health(served: Served) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(served.channel)


async def next_status(call: grpc.aio.UnaryStreamCall) -> int:  # type: ignore[type-arg]
    async with asyncio.timeout(10):
        return int((await call.read()).status)


async def test_the_health_of_a_campaign_follows_its_life(folders: Folders) -> None:
    async with serving(folders) as served:
        request = health_pb2.HealthCheckRequest(service="tiny")
        watched = health(served).Watch(request)
        assert await next_status(watched) == UNKNOWN
        publish(folders.registry, MODEL)
        assert await next_status(watched) == NOT_SERVING
        folders.registry.promote("tiny", 1)
        assert await next_status(watched) == SERVING
        assert (await health(served).Check(request)).status == SERVING
        folders.registry.delete("tiny")
        assert await next_status(watched) == UNKNOWN
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(served).Check(request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_promoted_version_that_cannot_be_loaded_is_not_serving(folders: Folders) -> None:
    (publish(folders.registry, MODEL, promote=True) / "model.onnx").write_bytes(b"broken")
    async with serving(folders) as served:
        answer = await health(served).Check(health_pb2.HealthCheckRequest(service="tiny"))
        assert answer.status == NOT_SERVING


async def test_only_campaigns_that_are_served_here_have_a_health(folders: Folders) -> None:
    for name in ("tiny", "other"):
        publish(folders.registry, TinyModel(campaign=name), promote=True)
    async with serving(folders, models="other") as served:
        assert (await health(served).Check(health_pb2.HealthCheckRequest(service="other"))).status == SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await health(served).Check(health_pb2.HealthCheckRequest(service="tiny"))


async def test_one_watcher_that_leaves_takes_nothing_from_the_others(folders: Folders) -> None:
    publish(folders.registry, MODEL)
    async with serving(folders) as served:
        request = health_pb2.HealthCheckRequest(service="tiny")
        leaving, staying = health(served).Watch(request), health(served).Watch(request)
        assert [await next_status(leaving), await next_status(staying)] == [NOT_SERVING] * 2
        leaving.cancel()
        folders.registry.promote("tiny", 1)
        assert await next_status(staying) == SERVING


@pytest.mark.parametrize("service", ["", "readiness", "querent.v1.PredictionService", "tiny"])
async def test_at_shutdown_everything_is_told_to_be_down_while_calls_still_work(folders: Folders, service: str) -> None:
    publish(folders.registry, MODEL, promote=True)
    server = InferenceServer(settings(folders))
    await server.start()
    served = Served(server)
    async with served.client as client:
        watched = health(served).Watch(health_pb2.HealthCheckRequest(service=service))
        assert await next_status(watched) == SERVING
        hurry = asyncio.Event()
        stopping = asyncio.ensure_future(server.stop(lame_duck_seconds=20, hurry=hurry))
        assert await next_status(watched) == NOT_SERVING
        assert (await client.get_model()).version == 1
        hurry.set()
        await stopping
        assert await watched.read() is grpc.aio.EOF
    await served.channel.close()


async def test_watches_never_take_the_places_of_calls_that_end(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    async with serving(folders, max_concurrent_rpcs=20) as served:
        watches = [served.models.WatchModel(model_registry_pb2.WatchModelRequest()) for _ in range(10)]
        for watch in watches:
            assert told(await following(aiter(watch))) == ("tiny", 1, 1)
        refused = served.models.WatchModel(model_registry_pb2.WatchModelRequest())
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "10 watches are open here" in await refused.details()
        assert (await served.client.predict([png()])).version == 1
        watches[0].cancel()
        async with asyncio.timeout(10):
            while await served.models.WatchModel(model_registry_pb2.WatchModelRequest(), timeout=0.3).code() is (
                grpc.StatusCode.RESOURCE_EXHAUSTED
            ):
                await asyncio.sleep(0.01)
