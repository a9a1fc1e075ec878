import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.common.manifest import Manifest
from services.common.pb import prediction_pb2, prediction_pb2_grpc
from services.common.registry import Registry
from services.inference.probe import trouble
from tests.authorities import Authority
from tests.integration.inference.harness import Served, serving
from tests.tiny_models import Folders, TinyModel, png, publish

SERVICES = [
    "querent.v1.PredictionService",
    "querent.v1.PoolScoringService",
    "querent.v1.ModelRegistryService",
    "inference.GRPCInferenceService",
]


async def status(served: Served, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(served.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


@pytest.mark.parametrize("promoted", [False, True])
async def test_an_empty_registry_is_as_healthy_as_a_full_one(folders: Folders, promoted: bool) -> None:
    if promoted:
        publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders) as served:
        for service in ("", "readiness", *SERVICES):
            assert await status(served, service) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status(served, "nothing.of.ours")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_gpu_that_was_asked_for_and_is_not_there_makes_the_replica_not_ready(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    async with serving(folders, device="cuda") as served:
        assert await status(served, "") == health_pb2.HealthCheckResponse.SERVING
        assert await status(served, "readiness") == health_pb2.HealthCheckResponse.NOT_SERVING
        assert served.metric("inference_provider_fallback") == 1


# onnxruntime says it twice: it warns too.
@pytest.mark.filterwarnings("ignore:Specified provider")
async def test_a_gpu_provider_that_onnxruntime_silently_gives_up_is_noticed(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders, device="cuda") as served:
        assert await status(served, "readiness") == health_pb2.HealthCheckResponse.NOT_SERVING
        assert served.metric("inference_provider_fallback") == 1


async def test_reflection_lists_every_service(folders: Folders) -> None:
    async with serving(folders) as served:
        stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        async for answer in stub.ServerReflectionInfo(requests):
            names = {service.name for service in answer.list_services_response.service}
    assert {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} == names


async def test_a_replica_is_not_ready_until_a_promoted_version_that_could_not_be_read_is_loaded(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    readable = Registry.manifest

    def unreadable(registry: Registry, campaign: str, version: int) -> Manifest:
        raise OSError("the share is away")

    monkeypatch.setattr(Registry, "manifest", unreadable)
    monkeypatch.setattr("services.inference.loading._RETRY_SECONDS", 0.0)
    async with serving(folders) as served:
        assert await status(served, "startup") == health_pb2.HealthCheckResponse.SERVING
        assert await status(served, "readiness") == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await status(served, "liveness") == health_pb2.HealthCheckResponse.SERVING
        monkeypatch.setattr(Registry, "manifest", readable)
        async with asyncio.timeout(10):
            while await status(served, "readiness") != health_pb2.HealthCheckResponse.SERVING:
                await asyncio.sleep(0.02)


async def test_a_version_that_is_refused_for_good_does_not_take_the_other_campaigns_away(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    damaged = publish(folders.registry, TinyModel(campaign="other"), promote=True)
    (damaged / "model.onnx").write_bytes(b"no graph")
    async with serving(folders) as served:
        assert await status(served, "readiness") == health_pb2.HealthCheckResponse.SERVING
        assert await status(served, "tiny") == health_pb2.HealthCheckResponse.SERVING
        assert await status(served, "other") == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_full_queue_takes_readiness_away_while_it_is_full(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=200), promote=True)
    async with serving(folders, queue_limit=10, max_images=10, max_batch=1) as served:
        assert await status(served, "readiness") == health_pb2.HealthCheckResponse.SERVING
        busy = asyncio.create_task(served.client.predict([png()] * 10, model="tiny"))
        async with asyncio.timeout(10):
            while await status(served, "readiness") == health_pb2.HealthCheckResponse.SERVING:
                assert not busy.done()
                await asyncio.sleep(0)
        await busy
        assert await status(served, "readiness") == health_pb2.HealthCheckResponse.SERVING


async def test_probes_without_tls_have_a_port_that_answers_nothing_else(folders: Folders, tmp_path: Path) -> None:
    cert, key = Authority(tmp_path / "authority").issue()
    async with serving(folders, health_port=0, tls_cert_file=cert, tls_key_file=key) as served:
        port = served.server.health_port
        for name in ("startup", "readiness", "liveness"):
            assert await asyncio.to_thread(trouble, port, name) == ""
        assert "NOT_FOUND" in await asyncio.to_thread(trouble, port, "nothing.of.ours")
        assert "UNAVAILABLE" in await asyncio.to_thread(trouble, served.server.grpc_port, "readiness")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = prediction_pb2_grpc.PredictionServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Predict(prediction_pb2.PredictRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
