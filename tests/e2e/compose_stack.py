"""The stack as docker-compose.yml configures it, in processes: PostgreSQL, Redis with a password, both services."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import psutil

from services.trainer.campaign_store import CampaignStore
from services.trainer.database import open_database
from tests.deploy.manifests import SETTINGS, compose, image_environment, ours
from tests.e2e.held_worker import hold_file
from tests.e2e.stack import Stack, free_port, wait_for
from tests.postgres import Postgres

# In the order in which compose lets them begin.
PARTS = ("redis", "postgres", "inference", "worker")
REDIS_PASSWORD = "querent"
# What a container gets to end, after which the engine kills it.
LIMIT_S = 10.0
# With which the engine asks a container to end: its image's own wish.
STOP_SIGNALS = dict.fromkeys(PARTS, signal.SIGTERM) | {"postgres": signal.SIGINT}


class ComposeStack(Stack):
    """With the variables of the images and of compose; only addresses, folders and the number of threads are of here.

    `changes`: variables that a test sets otherwise, such as shorter leases.
    """

    def __init__(self, folder: Path, **changes: str) -> None:
        super().__init__(folder)
        self.postgres = Postgres()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._holds = folder / "holds"
        own = ("TRAINER_", "INFERENCE_", "QUERENT_")
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        for service in SETTINGS:
            given = {**image_environment(service), **compose()["services"][service]["environment"]}
            self.environment |= {name: self._of_here(given[name]) for name in ours(given)}
        self.environment |= {
            "INFERENCE_GRPC_PORT": str(self.grpc_port),
            "INFERENCE_HEALTH_PORT": str(free_port()),
            "INFERENCE_METRICS_PORT": str(self.inference_metrics_port),
            "TRAINER_METRICS_PORT": str(self.trainer_metrics_port),
            # Two services share the machine's cores.
            "INFERENCE_THREADS": "1",
            "TRAINER_THREADS": "1",
            **changes,
        }

    def _of_here(self, value: str) -> str:
        for there, here in {
            "@postgres:5432": f"@127.0.0.1:{self.postgres.port}",
            "@redis:6379": f"@127.0.0.1:{self.redis_port}",
            "inference:8001": f"127.0.0.1:{self.grpc_port}",
            "0.0.0.0": "127.0.0.1",
        }.items():
            value = value.replace(there, here)
        for there in ("/var/lib/querent", "/tmp", "/data", "/weights"):
            if value.startswith(there):
                return f"{self.folder}/{value.removeprefix('/var/lib/querent').lstrip('/')}"
        return value

    # ---- parts ---------------------------------------------------------------------------------------

    def begin(self, *parts: str) -> None:
        starts: dict[str, Callable[[], subprocess.Popen[bytes]]] = {
            "redis": self.start_redis,
            "inference": self.start_inference,
            "worker": self.start_worker,
        }
        for part in parts:
            if part == "postgres":
                self.postgres.start()
            else:
                self._running[part] = starts[part]()

    def stop(self, part: str, sent: signal.Signals) -> None:
        """Asked as the engine asks, it has to end in time and with 0."""
        asked = time.monotonic()
        code = self.postgres.stop(sent) if part == "postgres" else self.end(self._running[part], sent)
        seconds = time.monotonic() - asked
        if sent == STOP_SIGNALS[part]:
            assert (code, seconds < LIMIT_S) == (0, True), f"{part}: exit code {code} after {seconds:.1f} s"

    def process(self, part: str) -> psutil.Process:
        return psutil.Process(self.postgres.pid if part == "postgres" else self._running[part].pid)

    def end_all(self) -> None:
        super().end_all()
        self.postgres.remove()

    def start_redis(self) -> subprocess.Popen[bytes]:
        """As compose's, but in memory alone: whoever ends it makes it forget everything."""
        limits = ("--maxmemory", "256mb", "--maxmemory-policy", "noeviction")
        return super().start_redis(*limits, password=REDIS_PASSWORD)

    def said(self, part: str) -> str:
        """Its log, of all its lives."""
        return (self.folder / f"{part}.log").read_text()

    # ---- campaigns -----------------------------------------------------------------------------------

    @cached_property
    def store(self) -> CampaignStore:  # type: ignore[override] # one engine: a server has so many connections only
        return CampaignStore(open_database(self.postgres.url))


class HeldStack(ComposeStack):
    """Its worker waits at the beginning of the steps that `hold` names."""

    def start_worker(self) -> subprocess.Popen[bytes]:
        self._holds.mkdir(exist_ok=True)
        return self.start("worker", sys.executable, "-m", "tests.e2e.held_worker", str(self._holds))

    def hold(self, step: str, round_no: int) -> None:
        """Before the campaign comes there."""
        self._holds.mkdir(exist_ok=True)
        hold_file(self._holds, step, round_no).touch()

    def wait_until_held(self, step: str, round_no: int) -> None:
        file = hold_file(self._holds, step, round_no)
        wait_for(lambda: file.read_text() == "held", f"the worker at {step} of round {round_no}")

    def release(self, step: str, round_no: int) -> None:
        hold_file(self._holds, step, round_no).unlink()
