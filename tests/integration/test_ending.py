"""SIGTERM before a service serves: told to end in the first second of its life, it ends with 0 all the same."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT, free_port, wait_for

pytestmark = pytest.mark.slow


def hears_sigterm(pid: int) -> bool:
    """Whether the process has a handler of its own."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << signal.SIGTERM - 1)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="asks /proc for the signals of a process")
@pytest.mark.parametrize(
    ("service", "command"), [("inference", "serve"), ("trainer", "worker"), ("trainer", "metrics")]
)
def test_a_service_that_is_still_starting_ends_at_once_and_well(tmp_path: Path, service: str, command: str) -> None:
    environment = os.environ | {
        "TRAINER_DATABASE_URL": f"sqlite:///{tmp_path}/trainer.db",
        "TRAINER_METRICS_PORT": str(free_port()),
        "INFERENCE_REGISTRY_DIR": str(tmp_path / "registry"),
    }
    program = [sys.executable, "-m", f"services.{service}", command]
    process = subprocess.Popen(program, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: hears_sigterm(process.pid), "its first handler")
        process.terminate()
        said, _ = process.communicate(timeout=5)
        assert (process.returncode, said) == (0, b"")
    finally:
        process.kill()
        process.wait()
