"""An inference service for as long as a command runs: `--local` needs nothing that runs already."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.access import Access
from services.common.errors import Unavailable
from services.trainer.channel import open_channel
from services.trainer.learning import Watch
from services.trainer.pool_scorer import GrpcPoolScorer, Version
from services.trainer.settings import Settings

_HOST = "127.0.0.1"
_DEADLINE_S = 120.0
_GRACE_S = 10.0
_TAIL = 2000


class LocalScorer:
    """A PoolScorer with an inference service of its own, which starts when something must be embedded.

    Also where another one runs: that one may be of another registry.
    """

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._scorer: GrpcPoolScorer | None = None

    def score(self, at: Version, ids: Sequence[str], acquisition: str, watch: Watch) -> np.ndarray:
        return self._started().score(at, ids, acquisition, watch)

    def embeddings(self, at: Version, ids: Sequence[str], watch: Watch) -> np.ndarray:
        return self._started().embeddings(at, ids, watch)

    def close(self) -> None:
        if self._scorer is not None:
            self._scorer.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _started(self) -> GrpcPoolScorer:
        """Raises Unavailable with the end of its log when it does not come up."""
        if self._scorer is None:
            settings, address = self._settings, f"{_HOST}:{_free_port()}"
            log = settings.cache_dir / "inference.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            self._say(f"an inference service is started to embed the images; its log: {log}")
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "services.inference.server", "serve"],
                    env=_environment(settings, address, _free_port()),
                    stdout=output,
                    stderr=output,
                    # Its own group: Ctrl-C reaches us alone, and we end it.
                    process_group=0,
                )
            _wait(self._process, address, log)
            # On the loopback address and of this command alone: no TLS and no token, whatever others ask for.
            self._scorer = GrpcPoolScorer(address, settings.embeddings_dir, 1)
        return self._scorer


def _environment(settings: Settings, address: str, metrics_port: int) -> Mapping[str, str]:
    """The same folders; what else INFERENCE_* says of the usual service is not for this one."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("INFERENCE_")}
    host, port = address.rsplit(":", 1)
    return others | {
        "INFERENCE_GRPC_HOST": host,
        "INFERENCE_GRPC_PORT": port,
        "INFERENCE_METRICS_PORT": str(metrics_port),
        "INFERENCE_REGISTRY_DIR": str(settings.registry_dir),
        "INFERENCE_SOURCES_DIR": str(settings.sources_dir),
        "INFERENCE_EMBEDDINGS_DIR": str(settings.embeddings_dir),
        "INFERENCE_FEEDBACK_DIR": str(settings.cache_dir / "feedback"),
        "INFERENCE_THREADS": str(settings.thread_count),
        "INFERENCE_LAME_DUCK_SECONDS": "0",
        "QUERENT_DATA_DIR": str(settings.data_dir),
    }


def _wait(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not _serves(address):
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            told = log.read_text(errors="replace")[-_TAIL:].strip()
            raise Unavailable(
                f"the inference service did not come up ({'it ended' if ended else 'too slow'}); is the extra "
                f"`inference-cpu` or `inference` installed? The end of {log}:\n{told}"
            )
        time.sleep(0.2)


def _serves(address: str) -> bool:
    with open_channel(address, Access()) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
