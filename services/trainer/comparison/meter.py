"""What a stretch of work costs: CPU seconds of all threads, and memory where the system tells."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Cost:
    cpu_seconds: float = 0.0
    # Largest resident size above the one at the beginning, in MB; None where it cannot be read.
    peak_mb: float | None = None


@contextmanager
def measured() -> Iterator[Cost]:
    """Its Cost is filled in when the block ends."""
    cost = Cost()
    before = _resident_mb("VmRSS") if _peak_begins_anew() else None
    started = time.process_time()
    yield cost
    cost.cpu_seconds = time.process_time() - started
    peak = _resident_mb("VmHWM")
    if before is not None and peak is not None:
        cost.peak_mb = max(peak - before, 0.0)


def _peak_begins_anew() -> bool:
    """Linux resets VmHWM for whoever may write here; elsewhere there is no peak of a stretch."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return True


def _resident_mb(field: str) -> float | None:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":")), None)
