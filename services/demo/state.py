"""Where a checkout keeps its state, what that means for the services' environment, and the demo's lock."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import Conflict
from services.common.files import digest


@dataclass(frozen=True)
class State:
    """The folders below .querent/."""

    root: Path

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    @property
    def sources(self) -> Path:
        return self.root / "sources"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def downloads(self) -> Path:
        return self.root / "data"

    @property
    def running_campaign(self) -> Path:
        """Names the demo's campaign while it runs."""
        return self.root / "demo.campaign"

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with both services looking at these folders, whatever else it says about them."""
        folders = {
            "TRAINER_DATABASE_URL": f"sqlite:///{self.root / 'trainer.db'}",
            # On a Redis that others use too, another checkout's worker must not take this one's messages.
            "TRAINER_QUEUE": f"querent-{digest(str(self.root.resolve()))}",
            "TRAINER_REGISTRY_DIR": self.registry,
            "TRAINER_SOURCES_DIR": self.sources,
            "TRAINER_EMBEDDINGS_DIR": self.root / "embeddings",
            "TRAINER_CACHE_DIR": self.root / "cache",
            "TRAINER_REPORTS_DIR": self.reports,
            "INFERENCE_REGISTRY_DIR": self.registry,
            "INFERENCE_SOURCES_DIR": self.sources,
            "INFERENCE_EMBEDDINGS_DIR": self.root / "embeddings",
            # The demo's log files and `tail -f` are for people.
            "TRAINER_LOG_STYLE": "console",
            "INFERENCE_LOG_STYLE": "console",
        }
        return {**base, **{name: str(value) for name, value in folders.items()}}


@contextmanager
def only_demo(state: State) -> Iterator[None]:
    """Holds the checkout's demo lock. Raises Conflict while another demo runs on the same state.

    The kernel gives the lock back however the process ends.
    """
    state.root.mkdir(parents=True, exist_ok=True)
    handle = os.open(state.root / "demo.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise Conflict(
                f"another demo (process {owner}) is running on {state.root}; wait for it or end it. "
                "A second demo can run in another checkout."
            ) from None
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)
