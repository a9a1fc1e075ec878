"""Both clients against a real server."""

import asyncio
import inspect
from pathlib import Path

import grpc
import numpy as np
import pytest

from services.client.aio import AsyncQuerentClient
from services.client.client import QuerentClient
from services.client.messages import Feedback, Progress
from services.common.errors import BadRequest, DeadlineExpired, NotFound, Unavailable
from tests.integration.inference.harness import serving
from tests.tiny_models import Folders, TinyModel, png, probabilities, publish


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path)
    publish(made.registry, TinyModel(), promote=True)
    return made


async def test_the_sync_client_does_all_calls(folders: Folders, tmp_path: Path) -> None:
    source = folders.source()
    (tmp_path / "image.png").write_bytes(png())
    pixels = np.full((1, 8, 8, 3), (200, 30, 30), np.uint8)

    def calls(address: str) -> None:
        told: list[Progress] = []
        with QuerentClient(address) as client:
            answer = client.predict(
                [tmp_path / "image.png", png()], top=2, acquisition="margin", with_embedding=True, priority=1
            )
            assert (answer.model, answer.version, answer.round) == ("tiny", 1, 0)
            expected = probabilities(TinyModel(), pixels)[0]
            for prediction in answer.predictions:
                assert len(prediction.classes) == 2
                assert prediction.probability == pytest.approx(expected.max(), abs=1e-5)
                assert prediction.label == TinyModel().classes[expected.argmax()]
                assert prediction.uncertainty is not None
                assert prediction.embedding is not None
            assert client.predict(pixels).predictions[0].probability == pytest.approx(expected.max(), abs=1e-5)
            scores = client.score_pool(source.source_id, "margin", top=5, on_progress=told.append)
            assert (scores.version, len(scores.sample_ids), scores.scores.shape) == (1, 5, (5,))
            assert told[-1] == Progress("score", 100, 100)
            assert client.embed(source.source_id, source.ids["test"]) == "tiny-embedding"
            assert client.get_model().name == "tiny"
            assert [m.name for m in client.list_models()] == ["tiny"]
            with pytest.raises(NotFound):
                client.get_model("nobody")
            with pytest.raises(BadRequest, match="image 1"):
                client.predict([png(), b"broken"])
            with pytest.raises(BadRequest, match="uint8"):
                client.predict(pixels.astype(np.float32))

    async with serving(folders) as served:
        await asyncio.to_thread(calls, served.address)


async def test_both_clients_have_the_same_calls_with_the_same_arguments() -> None:
    calls = {name for name in vars(QuerentClient) if not name.startswith("_")}
    assert calls == {name for name in vars(AsyncQuerentClient) if not name.startswith("_")}
    for name in calls:
        sync, other = getattr(QuerentClient, name), getattr(AsyncQuerentClient, name)
        assert inspect.signature(sync).parameters.keys() == inspect.signature(other).parameters.keys()
        assert inspect.iscoroutinefunction(other) or inspect.isasyncgenfunction(other)


async def test_errors_of_the_async_client_are_ours(folders: Folders) -> None:
    async with serving(folders) as served, AsyncQuerentClient(served.address) as client:
        with pytest.raises(NotFound):
            await client.predict([png()], version=9)
        with pytest.raises(NotFound):
            await client.score_pool("nowhere", "margin")
        with pytest.raises(NotFound):
            await client.embed("nowhere", [])


class Refusing(grpc.GenericRpcHandler):
    """Refuses every call; remembers how many seconds each would have waited."""

    def __init__(self) -> None:
        self.waits: dict[str, float | None] = {}

    def service(self, details: grpc.HandlerCallDetails) -> object:
        package, _, method = details.method.rpartition("/")

        async def refuse(_requests: object, context: grpc.aio.ServicerContext) -> None:
            self.waits[method] = context.time_remaining()
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "as told")

        return grpc.stream_stream_rpc_method_handler(refuse) if package.startswith("/querent.") else None


CALLS = {
    "Predict": lambda client: client.predict([png()]),
    "Feedback": lambda client: client.feedback([Feedback("id", 0)]),
    "ScorePool": lambda client: client.score_pool("source", "margin"),
    "Embed": lambda client: client.embed("source", []),
    "GetModel": lambda client: client.get_model(),
    "ListModels": lambda client: client.list_models(),
}


@pytest.mark.parametrize("kind", [QuerentClient, AsyncQuerentClient])
async def test_every_call_has_a_deadline_and_watching_one_if_told(kind: type) -> None:
    async def waits() -> dict[str, float | None]:
        if kind is QuerentClient:
            await asyncio.to_thread(blocking)
            return refusing.waits
        async with AsyncQuerentClient(address, timeout_s=20, pool_timeout_s=600) as client:
            for call in CALLS.values():
                with pytest.raises(BadRequest):
                    await call(client)
            with pytest.raises(BadRequest):
                await anext(client.watch_model(timeout_s=5))
        return refusing.waits

    def blocking() -> None:
        with QuerentClient(address, timeout_s=20, pool_timeout_s=600) as client:
            for call in CALLS.values():
                with pytest.raises(BadRequest):
                    call(client)
            with pytest.raises(BadRequest):
                next(client.watch_model(timeout_s=5))

    refusing = Refusing()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((refusing,))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    limits = {**dict.fromkeys(CALLS, 20), "ScorePool": 600, "Embed": 600, "WatchModel": 5}
    waited = await waits()
    await server.stop(None)
    assert waited.keys() == limits.keys()
    for method, limit in limits.items():
        wait = waited[method]
        assert wait is not None, method
        assert limit / 2 < wait < limit * 1.1, method  # gRPC rounds what it sends


async def test_a_call_that_takes_too_long_ends_with_its_deadline(folders: Folders) -> None:
    publish(folders.registry, TinyModel(version=2, work=60), promote=True)
    async with serving(folders) as served, AsyncQuerentClient(served.address, timeout_s=0.03) as client:
        with pytest.raises(DeadlineExpired, match="did not answer in time"):
            await client.predict([png()] * 8)


@pytest.mark.slow
async def test_an_unreachable_server_is_named() -> None:
    async with AsyncQuerentClient("127.0.0.1:1", timeout_s=10) as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await client.list_models()
