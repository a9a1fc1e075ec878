"""`al-inference serve` as a real process."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.client.aio import AsyncQuerentClient
from services.client.client import QuerentClient
from services.common.errors import QuerentError
from services.common.pb import prediction_pb2, prediction_pb2_grpc
from tests.integration.inference.harness import serving
from tests.tiny_models import Folders, RunningInference, TinyModel, png, publish, running_inference

pytestmark = pytest.mark.slow


def health(channel: grpc.Channel, service: str) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_not_ready_at_once_and_no_call_is_lost(folders: Folders, number: signal.Signals) -> None:
    publish(folders.registry, TinyModel(work=50), promote=True)
    with running_inference(folders, INFERENCE_LAME_DUCK_SECONDS="1.5") as server:
        channel = grpc.insecure_channel(server.address, options=[("grpc.enable_retries", 0)])
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)
        request = prediction_pb2.PredictRequest(encoded=prediction_pb2.EncodedImages(images=[png()] * 8))
        assert health(channel, "readiness") == health_pb2.HealthCheckResponse.SERVING
        running = [stub.Predict.future(request, timeout=10) for _ in range(4)]
        server.process.send_signal(number)
        server.wait_for_log("draining")
        for service in ("", "readiness", "querent.v1.PredictionService"):
            assert health(channel, service) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert len(stub.Predict(request, timeout=10).predictions) == 8  # lame duck: it goes on serving
        assert all(len(call.result().predictions) == 8 for call in running)
        assert server.process.wait(timeout=10) == 0


def test_a_second_signal_ends_the_lame_duck_time(folders: Folders) -> None:
    with running_inference(folders, INFERENCE_LAME_DUCK_SECONDS="60") as server:
        server.process.terminate()
        server.wait_for_log("draining")
        server.process.terminate()
        assert server.process.wait(timeout=10) == 0


async def test_a_retrying_client_loses_nothing_while_the_server_is_replaced(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    answered: list[int] = []
    lost: list[Exception] = []
    done = threading.Event()

    def caller(address: str) -> None:
        with QuerentClient(address, timeout_s=20) as client:
            while not done.is_set():
                try:
                    answered.append(client.predict([png()]).version)
                except QuerentError as error:
                    lost.append(error)

    with running_inference(folders, INFERENCE_GRPC_PORT=port) as first:
        callers = [threading.Thread(target=caller, args=(first.address,), daemon=True) for _ in range(3)]
        for thread in callers:
            thread.start()
        while len(answered) < 20:
            await asyncio.sleep(0.01)
        first.process.terminate()
        assert await asyncio.to_thread(first.process.wait, 10) == 0
    # In this process, which has imported all that it needs: retries go on for three seconds, and a busy machine may
    # take longer than that to start another one.
    async with serving(folders, grpc_port=int(port)), asyncio.timeout(30):
        before = len(answered)
        while len(answered) < before + 20:
            await asyncio.sleep(0.01)
        done.set()
        for thread in callers:
            await asyncio.to_thread(thread.join)
    assert lost == []


async def test_a_replica_that_ends_under_load_loses_no_call_of_a_client_that_knows_two(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    lame_duck = {"INFERENCE_LAME_DUCK_SECONDS": "1"}
    answered, lost = 0, list[Exception]()
    with running_inference(folders, **lame_duck) as leaving, running_inference(folders, **lame_duck) as staying:
        done = asyncio.Event()

        async def caller(client: AsyncQuerentClient) -> None:
            nonlocal answered
            while not done.is_set():
                try:
                    await client.predict([png()])
                    answered += 1
                except QuerentError as error:
                    lost.append(error)

        async def at_least(more: int) -> None:
            wanted = answered + more
            while answered < wanted:
                await asyncio.sleep(0.01)

        target = f"ipv4:{leaving.address},{staying.address}"
        async with (
            asyncio.timeout(60),
            AsyncQuerentClient(target, timeout_s=20) as client,
            AsyncQuerentClient(leaving.address, timeout_s=5) as of_leaving,
            grpc.aio.insecure_channel(leaving.address) as channel,
        ):
            callers = [asyncio.create_task(caller(client)) for _ in range(8)]
            await at_least(50)
            before = await images_of(leaving)
            assert before > 0
            assert await images_of(staying) > 0
            leaving.process.terminate()
            await asyncio.to_thread(leaving.wait_for_log, "draining")
            status = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="readiness"))
            assert status.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await of_leaving.predict([png()])).version == 1  # lame duck: it goes on serving
            assert await images_of(leaving) > before
            assert await asyncio.to_thread(leaving.process.wait, 20) == 0
            await at_least(50)
            done.set()
            await asyncio.gather(*callers)
    assert lost == []


async def images_of(server: RunningInference) -> float:
    """How many images it has predicted."""
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(server.metrics_url, timeout=5).read().decode())
    name = "inference_images_total{"
    return sum(float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name))


@pytest.mark.parametrize("variable", ["INFERENCE_GRPC_PORT", "INFERENCE_METRICS_PORT"])
def test_a_port_in_use_is_one_clear_line(folders: Folders, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = serve(folders, **{variable: port})
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, ended.stderr
    assert f"port {port} on 127.0.0.1 is in use" in lines[0]
    assert variable in lines[0]


def test_two_servers_do_not_share_a_port(folders: Folders) -> None:
    with running_inference(folders) as first:
        ended = serve(folders, INFERENCE_GRPC_PORT=first.address.rsplit(":", 1)[1])
    assert ended.returncode == 1


def test_every_mistake_in_the_environment_is_told_at_once(folders: Folders) -> None:
    ended = serve(folders, INFERENCE_GRPC_PORT="many", INFERENCE_DEVICE="abacus", INFERENCE_MODELS="../x")
    assert ended.returncode == 1
    for variable in ("INFERENCE_GRPC_PORT", "INFERENCE_DEVICE", "INFERENCE_MODELS"):
        assert variable in ended.stderr
    assert "Traceback" not in ended.stderr


def test_security_files_that_cannot_be_used_are_one_clear_line(folders: Folders, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    for variable, others in [
        ("INFERENCE_ADMIN_TOKEN_FILE", {}),
        ("INFERENCE_TLS_CERT_FILE", {"INFERENCE_TLS_KEY_FILE": nowhere}),
    ]:
        ended = serve(folders, **{variable: nowhere}, **others)
        assert ended.returncode == 1
        assert ended.stderr.strip() == f"al-inference: {variable}: cannot read {nowhere}: No such file or directory"


def test_metrics_are_served(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    with running_inference(folders) as server:
        text = urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()
    labels = 'model="tiny",precision="fp32",provider="CPUExecutionProvider",round="0",version="1"'
    assert f"inference_model_info{{{labels}}} 1.0" in text
    assert "process_resident_memory_bytes" in text


def test_neither_service_nor_client_imports_torch_or_celery() -> None:
    code = (
        "import sys, services.inference.server, services.client.predict_cli, services.client.aio;"
        "print([m for m in ('torch', 'torchvision', 'timm', 'celery', 'sqlalchemy') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.strip() == "[]"


def serve(folders: Folders, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "services.inference.server", "serve"],
        env={**os.environ, **folders.environment(), **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
