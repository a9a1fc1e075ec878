"""How our processes end: with exit code 0 and in time, whatever their threads are doing."""

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn


def leave(code: int = 0) -> NoReturn:
    """End the process now, without waiting for threads.

    The interpreter's own end joins pools whose work nobody waits for, walks through all that torch made, and takes C++
    down under threads that are still in it: SIGABRT, when an export was left.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):  # closed, or in the middle of a write
            stream.flush()
    os._exit(code)


def leave_on_sigterm() -> None:
    """For the time before a service has a way of its own to end: nothing has begun, so nothing has to be finished."""
    signal.signal(signal.SIGTERM, lambda *_: leave())
