"""Whatever happens to the demo, nothing that it started goes on running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.demo.processes import Interrupted, ProcessFailed, Supervisor, ending_signals_raise

pytestmark = pytest.mark.slow

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)",
]
# Starts two children and a grandchild, writes their process ids, and then does what it is told.
SUPERVISED = """
import os, sys, time
from pathlib import Path
from services.demo.processes import Supervisor, ending_signals_raise
folder = Path(sys.argv[1])
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
with ending_signals_raise(), Supervisor(folder / "logs") as supervisor:
    children = [supervisor.start(name, sleep, os.environ) for name in ("one", "two")]
    time.sleep(0.5)
    (folder / "pids.part").write_text(" ".join(str(c.process.pid) for c in children))
    (folder / "pids.part").rename(folder / "pids")
    if sys.argv[2] == "fail":
        raise RuntimeError("something went wrong")
    if sys.argv[2] == "child dies":
        children[0].process.kill()
    supervisor.wait_end(children[1])
"""


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = 20) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {deadline_s:.0f} s"
        time.sleep(0.02)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended; only its parent has not looked yet.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def start_supervised(folder: Path, then: str) -> tuple["subprocess.Popen[bytes]", list[int]]:
    process = subprocess.Popen([sys.executable, "-c", SUPERVISED, str(folder), then], stderr=subprocess.DEVNULL)
    wait_until((folder / "pids").is_file, "the start of the children")
    return process, [int(pid) for pid in (folder / "pids").read_text().split()]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_everything(tmp_path: Path, signum: signal.Signals) -> None:
    process, children = start_supervised(tmp_path, "wait")
    assert all(runs(pid) for pid in children)
    process.send_signal(signum)
    assert process.wait(20) != 0
    wait_until(lambda: not any(runs(pid) for pid in children), "the end of the children")


@pytest.mark.parametrize("trouble", ["fail", "child dies"])
def test_a_failure_ends_everything(tmp_path: Path, trouble: str) -> None:
    process, children = start_supervised(tmp_path, trouble)
    assert process.wait(20) != 0
    wait_until(lambda: not any(runs(pid) for pid in children), "the end of the children")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of their parent's end")
def test_killing_the_supervisor_outright_ends_everything(tmp_path: Path) -> None:
    process, children = start_supervised(tmp_path, "wait")
    process.kill()
    process.wait(20)
    wait_until(lambda: not any(runs(pid) for pid in children), "the end of the children")


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    with Supervisor(tmp_path, grace_s=0.3) as supervisor:
        child = supervisor.start("stubborn", STUBBORN, os.environ)
        wait_until(lambda: "deaf" in (tmp_path / "stubborn.log").read_text(), "its start")
    assert child.process.returncode == -signal.SIGKILL


def test_what_a_child_leaves_behind_in_its_group_ends_too(tmp_path: Path) -> None:
    leaves = f"import subprocess, sys; print(subprocess.Popen({SLEEP!r}).pid, flush=True)"
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("leaver", [sys.executable, "-c", leaves], os.environ)
        wait_until(lambda: (tmp_path / "leaver.log").read_text().strip() != "", "its grandchild")
        wait_until(lambda: not child.alive, "its end")
        grandchild = int((tmp_path / "leaver.log").read_text())
        assert runs(grandchild)
    wait_until(lambda: not runs(grandchild), "the end of the grandchild")


def test_a_child_that_ends_early_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("broken", [sys.executable, "-c", "raise SystemExit('no such table')"], os.environ)
        with pytest.raises(ProcessFailed, match=r"exit code 1[\s\S]*no such table"):
            supervisor.wait_ready(child, lambda: False, deadline_s=20)


def test_a_child_that_never_gets_ready_is_reported(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("slow", SLEEP, os.environ)
        with pytest.raises(ProcessFailed, match="not ready within 0 s"):
            supervisor.wait_ready(child, lambda: False, deadline_s=0.2)
    assert child.process.returncode == -signal.SIGTERM


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        assert supervisor.run("slow", SLEEP, os.environ, timeout_s=0.2) == -signal.SIGKILL
        assert supervisor.run("fast", [sys.executable, "-c", "raise SystemExit(3)"], os.environ, timeout_s=20) == 3


def test_a_program_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        child = supervisor.start("missing", ["/no/such/program"], os.environ)
        with pytest.raises(ProcessFailed, match="No such file"):
            supervisor.wait_ready(child, lambda: False, deadline_s=20)


def test_signal_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM"), ending_signals_raise():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
