import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest

from services.common.errors import Stopped
from services.trainer.learning import LabelledSamples


@dataclass
class CountingWatch:
    """Remembers what it was told; says stop at call number `stop_at`."""

    stop_at: int | None = None
    seen: list[tuple[str, int, int]] = field(default_factory=list)

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        self.seen.append((phase, done, total))
        if self.stop_at is not None and len(self.seen) >= self.stop_at:
            raise Stopped("asked to")


@pytest.fixture
def watch() -> CountingWatch:
    return CountingWatch()


def blobs(count: int, size: int = 20, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clouds with dimensions of very different scale: (N, D), (N,)"""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, count)
    truth[:classes] = np.arange(classes)[:count]
    centres = np.random.default_rng(99).normal(size=(classes, size))
    rows = (centres[truth] + rng.normal(size=(count, size)) * 2) * np.geomspace(0.01, 100, size) + 5
    return rows.astype(np.float32), truth


def labelled(truth: np.ndarray, random_share: float = 1.0) -> LabelledSamples:
    drawn = np.arange(len(truth)) < random_share * len(truth)
    return LabelledSamples(tuple(f"s{i}" for i in range(len(truth))), truth, drawn)


CONTENT = b"weights" * 100_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class FileServer(ThreadingHTTPServer):
    """Gives `files` by name, CONTENT for any other; counts its GETs."""

    requests = 0
    files: ClassVar[dict[str, bytes]] = {}


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.path == "/missing":
            self.send_error(404)
            return
        content = self.server.files.get(self.path, CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path == "/cut" else content)

    def do_HEAD(self) -> None:
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def url(server: FileServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/file.pth"
