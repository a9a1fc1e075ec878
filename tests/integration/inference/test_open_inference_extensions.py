"""Triton's extensions of the Open Inference Protocol over a real channel, with Triton's own client."""

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.aio import InferenceServerClient

from tests.integration.inference.harness import Served, serving
from tests.integration.inference.open_inference import MODEL, PIXELS, image_input, refusal
from tests.tiny_models import Folders, TinyModel, next_version, publish


async def test_the_calls_of_perf_analyzer_in_its_order(served: Served, client: InferenceServerClient) -> None:
    extensions = (await client.get_server_metadata()).extensions
    metadata = await client.get_model_metadata("tiny", "")
    config = (await client.get_model_config("tiny", "")).config
    assert config.max_batch_size == 8
    assert [i.name for i in config.input] == [i.name for i in metadata.inputs]
    # With a batch size over 0 the first dimension of the metadata is the batch's.
    assert [list(i.shape) for i in metadata.inputs] == [[-1, *config.input[0].dims]]
    assert "statistics" in extensions
    before = (await client.get_inference_statistics("tiny", "")).model_stats[0]
    calls = [client.infer("tiny", [image_input(PIXELS[:1])], request_id=str(i)) for i in range(10)]
    assert [r.get_response().id for r in await asyncio.gather(*calls)] == [str(i) for i in range(10)]
    after = (await client.get_inference_statistics("tiny", "")).model_stats[0]
    assert after.inference_count - before.inference_count == 10
    assert after.inference_stats.success.count - before.inference_stats.success.count == 10
    assert after.inference_stats.success.ns > before.inference_stats.success.ns


# ---- ModelConfig --------------------------------------------------------------------------------------


async def test_the_configuration_is_the_models_and_the_batchers(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    async with (
        serving(folders, max_batch=4, max_delay_ms=1.5) as served,
        InferenceServerClient(served.address) as client,
    ):
        config = (await client.get_model_config("tiny")).config
        assert (config.name, config.platform, config.backend) == ("tiny", "onnxruntime_onnx", "onnxruntime")
        assert config.max_batch_size == 4
        assert config.dynamic_batching.max_queue_delay_microseconds == 1500
        assert config.dynamic_batching.priority_levels == 3
        assert config.dynamic_batching.default_priority_level == 2
        [image] = config.input
        assert (image.name, image.data_type, list(image.dims)) == ("image", model_config_pb2.TYPE_UINT8, [8, 8, 3])
        assert {o.name: list(o.dims) for o in config.output} == {
            "probabilities": [3],
            "logits": [2, 3],
            "embedding": [6],
        }
        assert {o.data_type for o in config.output} == {model_config_pb2.TYPE_FP32}


# ---- ModelStatistics ----------------------------------------------------------------------------------


async def test_statistics_count_requests_images_runs_and_failures(client: InferenceServerClient) -> None:
    empty = (await client.get_inference_statistics("tiny")).model_stats[0]
    assert (empty.name, empty.version, empty.inference_count, empty.last_inference) == ("tiny", "1", 0, 0)
    for _ in range(2):
        await client.infer("tiny", [image_input()])
    await refusal(client.infer("tiny", [image_input()], timeout=1))
    known = (await client.get_inference_statistics("tiny", "1")).model_stats[0]
    assert (known.inference_count, known.execution_count) == (6, 2)
    assert known.last_inference > 1_700_000_000_000
    durations = known.inference_stats
    assert (durations.success.count, durations.fail.count) == (2, 1)
    assert {durations.queue.count, durations.compute_input.count, durations.compute_infer.count} == {2}
    assert durations.compute_output.count == 2
    assert durations.success.ns >= durations.compute_infer.ns > 0
    [batch] = known.batch_stats
    assert (batch.batch_size, batch.compute_infer.count) == (3, 2)
    assert batch.compute_infer.ns == durations.compute_infer.ns


async def test_statistics_are_of_every_version_in_memory_unless_one_is_named(folders: Folders) -> None:
    for name in ("one", "two"):
        publish(folders.registry, TinyModel(campaign=name), promote=True)
        publish(folders.registry, TinyModel(campaign=name, version=2))
    async with serving(folders) as served, InferenceServerClient(served.address) as client:
        await client.infer("two", [image_input()], model_version="2")

        async def versions(name: str = "", version: str = "") -> list[tuple[str, str]]:
            return [(s.name, s.version) for s in (await client.get_inference_statistics(name, version)).model_stats]

        assert await versions() == [("one", "1"), ("two", "1"), ("two", "2")]
        assert await versions("two") == [("two", "1"), ("two", "2")]
        assert await versions("two", "2") == [("two", "2")]
        assert await versions("one", "2") == []


# ---- the repository -----------------------------------------------------------------------------------


async def test_the_index_lists_every_published_version_and_why_one_is_not_ready(
    client: InferenceServerClient, folders: Folders
) -> None:
    publish(folders.registry, next_version(MODEL))
    damaged = publish(folders.registry, TinyModel(version=3))
    (damaged / "manifest.json").write_text("{}")
    index = (await client.get_model_repository_index()).models
    assert [(m.name, m.version, m.state) for m in index] == [
        ("tiny", "1", "READY"),
        ("tiny", "2", "UNAVAILABLE"),
        ("tiny", "3", "UNAVAILABLE"),
    ]
    assert index[0].reason == ""
    assert "not in memory" in index[1].reason
    assert "manifest.json" in index[2].reason
    await client.infer("tiny", [image_input()], model_version="2")
    index = (await client.get_model_repository_index()).models
    assert [m.version for m in index if m.state == "READY"] == ["1", "2"]


async def test_only_the_campaigns_that_are_served_are_listed(folders: Folders) -> None:
    for name in ("one", "two"):
        publish(folders.registry, TinyModel(campaign=name), promote=True)
    async with serving(folders, models=("two",)) as served, InferenceServerClient(served.address) as client:
        assert [m.name for m in (await client.get_model_repository_index()).models] == ["two"]
        status, _ = await refusal(client.load_model("one"))
        assert status == "NOT_FOUND"


async def test_loading_brings_the_promoted_version_before_the_next_look_at_the_registry(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    async with serving(folders, poll_seconds=3600) as served, InferenceServerClient(served.address) as client:
        publish(folders.registry, next_version(MODEL), promote=True)
        assert (await client.infer("tiny", [image_input()])).get_response().model_version == "1"
        await client.load_model("tiny")
        assert (await client.infer("tiny", [image_input()])).get_response().model_version == "2"


async def test_loading_tells_why_a_promoted_version_does_not_answer(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    second = publish(folders.registry, next_version(MODEL), promote=True)
    async with serving(folders) as served, InferenceServerClient(served.address) as client:
        folders.registry.promote("tiny", 1)
        await client.load_model("tiny")
        folders.registry.promote("tiny", 2)
        content = (second / "model.onnx").read_bytes()
        (second / "model.onnx").write_bytes(content[:-1])
        status, text = await refusal(client.load_model("tiny"))
        assert status == "FAILED_PRECONDITION"
        assert "checksum" in text
        status, _ = await refusal(client.load_model("nobody"))
        assert status == "NOT_FOUND"


async def test_unloading_what_answers_is_refused_with_the_way_out(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    publish(folders.registry, TinyModel(campaign="idle"))
    async with serving(folders) as served, InferenceServerClient(served.address) as client:
        status, text = await refusal(client.unload_model("tiny"))
        assert status == "FAILED_PRECONDITION"
        assert "al-trainer models promote" in text
        assert await client.is_model_ready("tiny")
        await client.unload_model("idle")
        status, _ = await refusal(client.unload_model("nobody"))
        assert status == "NOT_FOUND"


async def test_unloading_drops_the_versions_that_requests_have_loaded(folders: Folders) -> None:
    publish(folders.registry, TinyModel(campaign="idle"))
    async with serving(folders) as served, InferenceServerClient(served.address) as client:

        async def ready() -> list[str]:
            return [m.version for m in (await client.get_model_repository_index()).models if m.state == "READY"]

        for _ in range(2):
            assert (await client.infer("idle", [image_input()], model_version="1")).get_response().model_version == "1"
            assert await ready() == ["1"]
            await client.unload_model("idle")
            assert await ready() == []


async def test_options_of_the_repository_that_are_not_there_are_invalid(client: InferenceServerClient) -> None:
    for call, says in (
        (client.load_model("tiny", config="{}"), "'config'"),
        (client.load_model("tiny", config="{}", files={"file:1/model.onnx": b"x"}), "is not supported"),
    ):
        status, text = await refusal(call)
        assert status == "INVALID_ARGUMENT"
        assert says in text


# ---- what the others count ----------------------------------------------------------------------------


async def test_calls_are_counted_by_method_and_status(served: Served, client: InferenceServerClient) -> None:
    await client.infer("tiny", [image_input()])
    await refusal(client.infer("nobody", [image_input()]))
    method = "inference.GRPCInferenceService/ModelInfer"
    assert served.metric("inference_rpcs_total", method=method, code="OK") == 1
    assert served.metric("inference_rpcs_total", method=method, code="NOT_FOUND") == 1
    assert served.metric("inference_images_total", model="tiny", version="1", round="0", purpose="predict") == 3


async def test_a_reflection_client_calls_methods_of_both_pools_knowing_nothing_of_them(served: Served) -> None:
    def calls() -> tuple[Any, Any]:
        with grpc.insecure_channel(served.address) as channel:
            reflected = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(reflected)

            def call(service: str, method: str, **fields: object) -> Any:
                described = pool.FindServiceByName(service).methods_by_name[method]
                given, answer = GetMessageClass(described.input_type), GetMessageClass(described.output_type)
                path = f"/{service}/{method}"
                return channel.unary_unary(path, given.SerializeToString, answer.FromString)(given(**fields), timeout=5)

            for service in reflected.get_services():
                assert pool.FindServiceByName(service).methods
            assert list(reflected.FindAllExtensionNumbers("inference.ModelInferRequest")) == []
            with pytest.raises(KeyError):
                reflected.FindFileContainingSymbol("nothing.Of.Ours")
            return (
                call("inference.GRPCInferenceService", "ModelConfig", name="tiny"),
                call("querent.v1.ModelRegistryService", "GetModel", model="tiny"),
            )

    config, model = await asyncio.to_thread(calls)
    assert list(config.config.input[0].dims) == [8, 8, 3]
    assert model.version == 1


async def test_versions_that_change_under_load_answer_every_call(folders: Folders) -> None:
    version = TinyModel()
    publish(folders.registry, version, promote=True)
    async with serving(folders) as served, InferenceServerClient(served.address) as client:
        done = asyncio.Event()
        seen: set[int] = set()

        async def calling() -> None:
            while not done.is_set():
                seen.add(int((await client.infer("tiny", [image_input()])).get_response().model_version))

        callers = [asyncio.create_task(calling()) for _ in range(4)]
        for _ in range(5):
            version = next_version(version)
            publish(folders.registry, version, promote=True)
            async with asyncio.timeout(20):
                while version.version not in seen:
                    await asyncio.sleep(0.001)
        done.set()
        await asyncio.gather(*callers)
        assert seen == set(range(1, 7))
