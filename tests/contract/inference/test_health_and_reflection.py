import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.integration.inference.harness import Served, serving
from tests.tiny_models import Folders, TinyModel, publish

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
