"""`al-inference serve` as a real process."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.client.client import QuerentClient
from services.common.errors import Unavailable
from services.common.pb import prediction_pb2, prediction_pb2_grpc
from tests.tiny_models import Folders, TinyModel, png, publish, running_inference

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


def test_a_retrying_client_loses_nothing_while_the_server_is_replaced(folders: Folders) -> None:
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
                except Unavailable as error:
                    lost.append(error)

    with running_inference(folders, INFERENCE_GRPC_PORT=port) as first:
        callers = [threading.Thread(target=caller, args=(first.address,)) for _ in range(3)]
        for thread in callers:
            thread.start()
        time.sleep(0.3)
        first.process.terminate()
        assert first.process.wait(timeout=10) == 0
    with running_inference(folders, INFERENCE_GRPC_PORT=port):
        before = len(answered)
        deadline = time.monotonic() + 10
        while len(answered) < before + 20 and time.monotonic() < deadline:
            time.sleep(0.02)
        done.set()
        for thread in callers:
            thread.join()
    assert len(answered) >= before + 20
    assert lost == []


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


def test_metrics_are_served(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    with running_inference(folders) as server:
        text = urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()
    assert 'inference_model_info{model="tiny",provider="CPUExecutionProvider",round="0",version="1"} 1.0' in text
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
