"""The two services as child processes: started, and waited for until they can work."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.demo.ports import HOST, answers
from services.demo.processes import Child, Supervisor

INFERENCE_PORT, INFERENCE_METRICS_PORT, WORKER_METRICS_PORT = 8001, 8002, 8003
# Importing torch for the first time on a cold disk takes most of this.
_DEADLINE_S = 120


@dataclass(frozen=True)
class Ports:
    inference: int
    inference_metrics: int
    worker_metrics: int

    @property
    def address(self) -> str:
        return f"{HOST}:{self.inference}"

    def environment(self) -> dict[str, str]:
        return {
            "INFERENCE_GRPC_HOST": HOST,
            "INFERENCE_GRPC_PORT": str(self.inference),
            "INFERENCE_METRICS_HOST": HOST,
            "INFERENCE_METRICS_PORT": str(self.inference_metrics),
            "TRAINER_INFERENCE_ADDRESS": self.address,
            "TRAINER_METRICS_HOST": HOST,
            "TRAINER_METRICS_PORT": str(self.worker_metrics),
            # Both services use all cores: threads that spin while they wait would take them from each other
            # (a training step was measured 7 times slower).
            "OMP_WAIT_POLICY": "PASSIVE",
        }


def tool(name: str) -> str:
    """The command of this project that lies beside the running Python."""
    return str(Path(sys.executable).parent / name)


def start_inference(supervisor: Supervisor, env: Mapping[str, str], ports: Ports) -> Child:
    child = supervisor.start("inference", [tool("al-inference"), "serve"], env)
    supervisor.wait_ready(child, lambda: is_serving(ports.address), _DEADLINE_S)
    return child


def start_worker(supervisor: Supervisor, env: Mapping[str, str], ports: Ports) -> Child:
    child = supervisor.start("worker", [tool("al-trainer"), "worker"], env)
    supervisor.wait_ready(child, lambda: answers(ports.worker_metrics), _DEADLINE_S)
    return child


def is_serving(address: str) -> bool:
    """Whether the gRPC health service says SERVING."""
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
