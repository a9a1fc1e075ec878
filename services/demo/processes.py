"""Starting processes, waiting until they are ready, and ending every one of them whatever happens."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from services.common.errors import Stopped, Unavailable
from services.demo import bound

_TAIL_LINES = 25
_POLL_S = 0.1
_SAME_WISH_S = 1.0
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ProcessFailed(Unavailable):
    """A child ended or did not become ready; the message holds the end of its log."""


class Interrupted(Stopped):
    """Ctrl-C or a signal that asks to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


@dataclass(frozen=True)
class Child:
    name: str
    process: "subprocess.Popen[bytes]"
    # None: its output goes to the terminal.
    log: Path | None
    # What asks it to end in good order.
    ask_with: signal.Signals = signal.SIGTERM

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def failure(self, what: str) -> ProcessFailed:
        if self.log is None:
            return ProcessFailed(f"{self.name} {what}")
        lines = self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:] if self.log.is_file() else []
        tail = "\n".join(f"  | {line}" for line in lines) or "  | (empty)"
        return ProcessFailed(f"{self.name} {what}. The end of {self.log}:\n{tail}")


@contextmanager
def ending_signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise Interrupted in the main thread, so that `with` blocks are left in order."""
    raised_at = -math.inf

    def interrupt(signum: int, _frame: FrameType | None) -> None:
        nonlocal raised_at
        # One wish to end may come twice, from make and from whoever signals the whole group.
        if time.monotonic() > raised_at + _SAME_WISH_S:
            raised_at = time.monotonic()
            raise Interrupted(signum)

    before = {s: signal.signal(s, interrupt) for s in _ENDING_SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


class Supervisor:
    """Children in process groups of their own. Leaving the `with` block ends all that still run, newest first."""

    def __init__(self, logs: Path, grace_s: float = 15.0) -> None:
        self._logs = logs
        self._grace_s = grace_s
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def start(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        stdin: bytes = b"",
        on_terminal: bool = False,
    ) -> Child:
        """Start a child. Its output goes to <logs>/<name>.log, or to the terminal."""
        self._logs.mkdir(parents=True, exist_ok=True)
        log = None if on_terminal else self._logs / f"{name}.log"
        output = None if log is None else log.open("wb")
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", bound.__file__, str(os.getpid()), *command],
                env=dict(env),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                # Its own group: Ctrl-C reaches us alone, and we end the children in the right order.
                process_group=0,
            )
        finally:
            if output is not None:
                output.close()
        # What draws on the terminal tidies it up (the cursor) on SIGINT.
        child = Child(name, process, log, signal.SIGINT if on_terminal else signal.SIGTERM)
        self._children.append(child)
        _feed(process, stdin)
        return child

    def wait_ready(self, child: Child, ready: Callable[[], bool], deadline_s: float) -> None:
        """Raises ProcessFailed when the child ends first or the deadline passes."""
        deadline = time.monotonic() + deadline_s
        while True:
            self.check(expected=child)
            if not child.alive:
                raise child.failure(f"ended at once {_how(child.process.returncode)}")
            if ready():
                return
            if time.monotonic() > deadline:
                raise child.failure(f"was not ready within {deadline_s:.0f} s")
            time.sleep(_POLL_S)

    def wait_end(self, child: Child) -> int:
        """The exit code of a child, while all others are watched. Raises ProcessFailed when one of them ends."""
        while child.alive:
            self.check(expected=child)
            time.sleep(_POLL_S)
        self._children.remove(child)
        return child.process.returncode

    def run(self, name: str, command: Sequence[str], env: Mapping[str, str], timeout_s: float) -> int:
        """The exit code of a command that ends by itself, -9 when it took too long."""
        child = self.start(name, command, env)
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout_s)
        _signal_group(child, signal.SIGKILL)
        self._children.remove(child)
        return child.process.wait()

    def check(self, expected: Child | None = None) -> None:
        """Raises ProcessFailed when a child has ended that should still run."""
        for child in self._children:
            if child is not expected and not child.alive:
                raise child.failure(f"ended unexpectedly {_how(child.process.returncode)}")

    def end(self, child: Child) -> None:
        """End one child in good order, and no longer expect it to run."""
        self._end([child])
        self._children.remove(child)

    def stop_all(self) -> None:
        """Ask each child to end, newest first, and kill those that do not; a second Ctrl-C kills at once."""
        hurry = []
        before = {s: signal.signal(s, lambda signum, _frame: hurry.append(signum)) for s in _ENDING_SIGNALS}
        try:
            for child in reversed(self._children):
                self._end([child], lambda: bool(hurry))
        finally:
            # Also what a child left behind in its group, and whatever an error above left running.
            for child in self._children:
                _signal_group(child, signal.SIGKILL)
                child.process.wait()
            self._children.clear()
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _end(self, children: Sequence[Child], hurry: Callable[[], bool] = lambda: False) -> None:
        for child in children:
            if child.alive:
                _signal_group(child, child.ask_with)
        deadline = time.monotonic() + self._grace_s
        while any(c.alive for c in children) and time.monotonic() < deadline and not hurry():
            time.sleep(_POLL_S / 5)
        for child in children:
            _signal_group(child, signal.SIGKILL)
            child.process.wait()


def _feed(process: "subprocess.Popen[bytes]", content: bytes) -> None:
    if process.stdin is not None:
        # A broken pipe: it has ended already, and waiting for it tells why.
        with suppress(BrokenPipeError):
            process.stdin.write(content)
            process.stdin.close()


def _signal_group(child: Child, signum: signal.Signals) -> None:
    # Nobody may be left in the group; macOS says so with EPERM.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, signum)


def _how(code: int) -> str:
    return f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
