"""Each row of the status table, over a real channel."""

import asyncio
import gc
import struct
import time
import zlib

import grpc
import psutil
import pytest
from grpc import StatusCode

from services.common import errors
from services.common.pb.model_registry_pb2 import GetModelRequest, WatchModelRequest
from services.common.pb.pool_scoring_pb2 import EmbedRequest, ScorePoolRequest
from services.common.pb.prediction_pb2 import EncodedImages, PredictRequest, RawImages
from services.inference.boundary import INTERNAL_TEXT, status_of
from tests.integration.inference.harness import Served, serving
from tests.tiny_models import Folders, TinyModel, png, publish


def encoded(*images: bytes, **fields: object) -> PredictRequest:
    return PredictRequest(encoded=EncodedImages(images=images), **fields)


def raw(data: bytes, count: int, height: int = 8, width: int = 8) -> PredictRequest:
    return PredictRequest(raw=RawImages(data=data, count=count, height=height, width=width))


def bomb(side: int) -> bytes:
    """A PNG of a few bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


async def refusal(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value


@pytest.fixture
async def served(folders: Folders):
    publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders, max_images=16, queue_limit=16) as running:
        yield running


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (encoded(png(), b""), ["image 1", "0 bytes"]),
        (encoded(png(), png(), b"no image at all"), ["image 2", "not an image"]),
        (encoded(png(size=64)[:-40]), ["image 0", "truncated"]),
        (encoded(bomb(9_000)), ["image 0", "9000 x 9000", "64000000"]),
        (encoded(bomb(60_000)), ["image 0", "64000000"]),
        (encoded(), ["no images"]),
        (encoded(*[png()] * 17), ["17 images", "16", "INFERENCE_MAX_IMAGES"]),
        (PredictRequest(), ["encoded", "raw"]),
        (raw(bytes(8 * 8 * 3), 1, 9, 8), ["9 x 8", "8 x 8"]),
        (raw(bytes(8 * 8 * 3 * 2 - 1), 2), ["383 bytes", "384", "image 1"]),
        (raw(bytes(8 * 8 * 3 * 3), 2), ["576 bytes", "384"]),
        (raw(b"", 0), ["no images"]),
        (raw(b"", 4_000_000_000), ["4000000000 images", "16"]),
        (encoded(png(), acquisition="margn"), ["'margn'", "did you mean 'margin'"]),
        (encoded(png(), version=-1), ["version -1"]),
    ],
)
async def test_a_bad_request_is_invalid_and_names_the_image_and_the_limit(
    served: Served, request_: PredictRequest, says: list[str]
) -> None:
    error = await refusal(served.prediction.Predict(request_))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert all(text in (error.details() or "") for text in says), error.details()
    answer = await served.prediction.Predict(encoded(png()))
    assert len(answer.predictions) == 1


async def test_unknown_models_and_versions_are_not_found_and_the_message_names_what_there_is(served: Served) -> None:
    for name, version, says in [
        ("tinny", 0, "did you mean 'tiny'"),
        ("tiny", 7, "published: 1"),
        ("../registry/tiny", 0, "tiny"),
        ("../registry/tiny", 1, "no model"),
        ("tiny", 2**62, "published: 1"),
    ]:
        error = await refusal(served.prediction.Predict(encoded(png(), model=name, version=version)))
        assert error.code() is StatusCode.NOT_FOUND
        assert says in (error.details() or "")
    error = await refusal(served.models.GetModel(GetModelRequest(model="nobody")))
    assert error.code() is StatusCode.NOT_FOUND


async def test_unknown_sources_splits_and_samples_are_not_found(served: Served, folders: Folders) -> None:
    source = folders.source()
    for changes, says in [
        ({"source_id": "elsewhere"}, "'elsewhere'"),
        ({"source_id": "../sources/tiny-source"}, "no source"),
        ({"split": "train"}, "pool, test"),
        ({"sample_ids": [source.ids["pool"][0], "beef"]}, "'beef'"),
    ]:
        request = ScorePoolRequest(**{"source_id": source.source_id, "acquisition": "margin", **changes})
        error = await refusal(_drain(served.pool.ScorePool(request)))
        assert error.code() is StatusCode.NOT_FOUND
        assert says in (error.details() or "")
    error = await refusal(_drain(served.pool.Embed(EmbedRequest(source_id=source.source_id, sample_ids=["beef"]))))
    assert error.code() is StatusCode.NOT_FOUND


async def test_a_source_of_another_size_and_a_broken_sample_are_invalid(served: Served, folders: Folders) -> None:
    folders.source(source_id="larger", size=16)
    error = await refusal(_drain(served.pool.ScorePool(ScorePoolRequest(source_id="larger", acquisition="margin"))))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert "16 x 16" in (error.details() or "")

    broken = folders.source(source_id="broken", replaced={3: png(size=64)[:-40]})
    call = served.pool.ScorePool(ScorePoolRequest(source_id="broken", acquisition="margin"))
    error = await refusal(_drain(call))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert broken.ids["pool"][3] in (error.details() or "")


async def test_nothing_promoted_is_unavailable(folders: Folders) -> None:
    async with serving(folders) as served:
        error = await refusal(served.prediction.Predict(encoded(png())))
        assert (error.code(), error.details()) == (StatusCode.UNAVAILABLE, "no model promoted yet")
        publish(folders.registry, TinyModel())
        error = await refusal(served.prediction.Predict(encoded(png(), model="tiny")))
        assert error.code() is StatusCode.UNAVAILABLE
        assert "no model promoted yet" in (error.details() or "")
        assert (await served.prediction.Predict(encoded(png(), model="tiny", version=1))).version == 1


async def test_a_full_queue_is_resource_exhausted(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=20), promote=True)
    async with serving(folders, max_images=8, queue_limit=8) as served:
        pixels = raw(bytes(8 * 8 * 3 * 8), 8)
        calls = [served.prediction.Predict(pixels) for _ in range(6)]
        codes = [await call.code() for call in calls]
        assert set(codes) == {StatusCode.OK, StatusCode.RESOURCE_EXHAUSTED}
        assert (await served.prediction.Predict(pixels)).version == 1


async def test_more_calls_at_once_than_allowed_are_resource_exhausted(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=50), promote=True)
    async with serving(folders, max_concurrent_rpcs=2) as served:
        pixels = raw(bytes(8 * 8 * 3 * 8), 8)
        calls = [served.prediction.Predict(pixels) for _ in range(6)]
        codes = [await call.code() for call in calls]
        assert codes.count(StatusCode.OK) >= 2
        assert codes.count(StatusCode.RESOURCE_EXHAUSTED) >= 1
        assert (await served.prediction.Predict(pixels)).version == 1


async def test_an_unknown_priority_is_an_invalid_argument(served: Served) -> None:
    for priority in (0, 1, 2, 3):
        request = encoded(png())
        request.priority = priority
        assert (await served.prediction.Predict(request)).version == 1
    request.priority = 4
    error = await refusal(served.prediction.Predict(request))
    assert error.code() is StatusCode.INVALID_ARGUMENT
    assert "no priority 4" in (error.details() or "")


async def test_a_call_of_high_priority_overtakes_those_that_wait(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=300), promote=True)  # some 300 ms a call
    async with serving(folders, threads=1, max_batch=1) as served, asyncio.timeout(60):
        order: list[str] = []

        async def call(name: str, priority: int) -> None:
            request = raw(bytes(8 * 8 * 3), 1)
            request.priority = priority
            await served.prediction.Predict(request)
            order.append(name)

        calls = [asyncio.create_task(call("low", 3)) for _ in range(4)]
        while served.metric("inference_queue_depth") < 3:
            await asyncio.sleep(0.001)
        calls.append(asyncio.create_task(call("high", 1)))
        await asyncio.gather(*calls)
        assert order.index("high") < 3


async def test_a_damaged_version_is_a_failed_precondition(served: Served, folders: Folders) -> None:
    damaged = publish(folders.registry, TinyModel(version=2))
    (damaged / "model.onnx").write_bytes(b"\0" * 100)
    error = await refusal(served.prediction.Predict(encoded(png(), model="tiny", version=2)))
    assert error.code() is StatusCode.FAILED_PRECONDITION
    assert "checksum" in (error.details() or "")


async def test_a_passed_deadline_drops_the_work_before_it_is_computed(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=100), promote=True)
    async with serving(folders, threads=1, max_batch=1) as served:
        one = raw(bytes(8 * 8 * 3), 1)
        busy = served.prediction.Predict(one)
        waiting = [served.prediction.Predict(one, timeout=0.02) for _ in range(5)]
        assert {await call.code() for call in waiting} == {StatusCode.DEADLINE_EXCEEDED}
        await busy
        assert served.metric("inference_images_total", model="tiny", version="1", round="0", purpose="predict") <= 2
        assert served.metric(
            "inference_rpcs_total", method="querent.v1.PredictionService/Predict", code="DEADLINE_EXCEEDED"
        )


async def test_anything_else_is_internal_with_a_constant_text(
    served: Served, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*arguments: object) -> None:
        raise ZeroDivisionError("a secret detail")

    monkeypatch.setattr("services.inference.predicting.codec.decode", surprise)
    error = await refusal(served.prediction.Predict(encoded(png())))
    assert (error.code(), error.details()) == (StatusCode.INTERNAL, INTERNAL_TEXT)
    assert served.metric("inference_rpcs_total", method="querent.v1.PredictionService/Predict", code="INTERNAL") == 1


async def test_a_message_over_the_limit_is_resource_exhausted(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders, max_message_bytes=10_000) as served:
        error = await refusal(served.prediction.Predict(encoded(bytes(20_000))))
        assert error.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_several_models_must_be_named(folders: Folders) -> None:
    for name in ("one", "two"):
        publish(folders.registry, TinyModel(campaign=name), promote=True)
    async with serving(folders) as served:
        error = await refusal(served.prediction.Predict(encoded(png())))
        assert error.code() is StatusCode.INVALID_ARGUMENT
        assert "one, two" in (error.details() or "")
        assert (await served.prediction.Predict(encoded(png(), model="two"))).model == "two"
    async with serving(folders, models=("two",)) as served:
        assert (await served.prediction.Predict(encoded(png()))).model == "two"
        error = await refusal(served.prediction.Predict(encoded(png(), model="one")))
        assert error.code() is StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.BadImage("x"), StatusCode.INVALID_ARGUMENT),
        (errors.NotFound("x"), StatusCode.NOT_FOUND),
        (errors.ModelNotReady("x"), StatusCode.UNAVAILABLE),
        (errors.Stopped("x"), StatusCode.UNAVAILABLE),
        (errors.Overloaded("x"), StatusCode.RESOURCE_EXHAUSTED),
        (errors.DeadlineExpired("x"), StatusCode.DEADLINE_EXCEEDED),
        (errors.Unauthenticated("x"), StatusCode.UNAUTHENTICATED),
        (errors.Forbidden("x"), StatusCode.PERMISSION_DENIED),
        (errors.DamagedArtefact("x"), StatusCode.FAILED_PRECONDITION),
        (errors.Conflict("x"), StatusCode.FAILED_PRECONDITION),
        (errors.LeaseLost("x"), StatusCode.INTERNAL),
    ],
)
def test_every_error_of_the_tree_has_its_status(error: errors.QuerentError, status: StatusCode) -> None:
    assert status_of(error) is status


async def _drain(call: object) -> None:
    async for _ in call:  # type: ignore[attr-defined]
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    "method",
    [
        "querent.v1.PredictionService/Predict",
        "querent.v1.PredictionService/Feedback",
        "querent.v1.ModelRegistryService/GetModel",
        "querent.v1.PoolScoringService/ScorePool",
    ],
)
async def test_bytes_that_are_no_message_are_invalid_and_counted(served: Served, method: str) -> None:
    open_call = served.channel.unary_stream if method.endswith("ScorePool") else served.channel.unary_unary
    call = open_call(f"/{method}")(b"\x0a\x05abc")
    assert await call.code() is StatusCode.INVALID_ARGUMENT
    assert "cannot be parsed" in await call.details()
    assert served.metric("inference_rpcs_total", method=method, code="INVALID_ARGUMENT") == 1


async def test_a_name_of_a_megabyte_is_answered_at_once_and_shortly(served: Served, folders: Folders) -> None:
    source = folders.source()
    name = "n" * 1_000_000
    scored = {"source_id": source.source_id, "acquisition": "margin"}
    for call in (
        served.prediction.Predict(encoded(png(), model=name)),
        served.prediction.Predict(encoded(png(), acquisition=name)),
        served.models.GetModel(GetModelRequest(model=name, version=1)),
        served.models.WatchModel(WatchModelRequest(model=name)),
        served.pool.ScorePool(ScorePoolRequest(**scored, model=name)),
        served.pool.ScorePool(ScorePoolRequest(**{**scored, "source_id": name})),
        served.pool.ScorePool(ScorePoolRequest(**scored, split=name)),
    ):
        async with asyncio.timeout(5):
            assert await call.code() in {StatusCode.NOT_FOUND, StatusCode.INVALID_ARGUMENT}
        assert "nnn'... (1000000 characters)" in await call.details()
        assert len(await call.details()) < 300


async def test_a_message_that_lists_very_many_things_is_cut(served: Served, folders: Folders) -> None:
    for version in range(1000, 2000):
        (folders.registry.root / "tiny" / str(version)).mkdir()
    error = await refusal(served.prediction.Predict(encoded(png(), model="tiny", version=7)))
    assert error.code() is StatusCode.NOT_FOUND
    assert (error.details() or "").startswith("no version 7 of 'tiny'; published: 1, 1000, 1001")
    assert len(error.details() or "") < 1100


async def test_only_methods_that_carry_images_or_ids_take_large_messages(served: Served) -> None:
    large = b"".join([b"\x0a\x00"] * 2_500_000)  # as FeedbackItems they would take some 200 MB
    call = served.channel.unary_unary("/querent.v1.PredictionService/Feedback")(large)
    assert await call.code() is StatusCode.INVALID_ARGUMENT
    assert "5000000 bytes; the limit of this method is 4194304" in await call.details()
    error = await refusal(served.prediction.Predict(encoded(bytes(5_000_000))))
    assert "image 0: not an image" in (error.details() or "")


async def test_millions_of_images_are_counted_before_they_are_looked_at(served: Served) -> None:
    empty = b"\x0a\x00" * 8_000_000
    length = len(empty)
    prefix = b"\x1a" + bytes((length >> 7 * i) & 127 | (128 if i < 3 else 0) for i in range(4))
    started = time.process_time()
    call = served.channel.unary_unary("/querent.v1.PredictionService/Predict")(prefix + empty)
    assert "the request has 8000000 images; the limit is 16" in await call.details()
    assert time.process_time() - started < 1.0  # a Python object of each would take 64 MB more and as long again


@pytest.mark.parametrize(
    "refused",
    [
        encoded(bytes(8_000_000)),
        encoded(png(), bytes(8_000_000)),
        encoded(png(size=100)[:-20] + bytes(8_000_000)),
        raw(bytes(8_000_000), 1),
        encoded(png(), acquisition="n" * 8_000_000),
        PredictRequest(model="n" * 8_000_000),
    ],
)
async def test_a_refused_request_leaves_no_memory_behind_for_the_garbage_collector(
    served: Served, refused: PredictRequest
) -> None:
    data = refused.SerializeToString()
    predict = served.channel.unary_unary("/querent.v1.PredictionService/Predict")
    process = psutil.Process()
    before = 0
    gc.collect()
    gc.disable()
    try:
        for repeat in range(23):
            assert await predict(data).code() in {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND}
            before = before if repeat > 2 else process.memory_info().rss
        assert process.memory_info().rss - before < 60e6  # twenty of them are 160 MB
    finally:
        gc.enable()
