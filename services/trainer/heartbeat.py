"""A file that a living worker touches, and the check of it.

`python -m services.trainer.heartbeat FILE --max-age SECONDS` is for probes: it starts in some ten milliseconds,
since it imports nothing of ours, and asks nobody: a broker or database that is away must not get a worker killed.
"""

import argparse
import sys
import threading
import time
from pathlib import Path

_EVERY_S = 5.0


class Heartbeat:
    """Touches `file` from a side thread, which stops when the process hangs with the interpreter's lock held."""

    def __init__(self, file: Path, every_s: float = _EVERY_S) -> None:
        self._file = file
        self._every_s = every_s
        self._ended = threading.Event()

    def start(self) -> None:
        """Raises OSError for a file that cannot be written."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.touch()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._file.touch()
            except OSError:
                # A full disk for a moment; if it lasts, the file's age tells.
                continue


def trouble(file: Path, max_age_s: float) -> str:
    """Why the worker does not count as alive; empty when it does."""
    try:
        age_s = time.time() - file.stat().st_mtime
    except OSError as error:
        return f"{file}: {error.strerror}; the worker has not begun, or TRAINER_HEARTBEAT_FILE names another file"
    return f"{file} was last touched {age_s:.0f} s ago; the limit is {max_age_s:.0f} s" if age_s > max_age_s else ""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m services.trainer.heartbeat",
        description="Exit with 0 while a worker touches FILE.",
        epilog="Example: python -m services.trainer.heartbeat /tmp/heartbeat --max-age 60",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what TRAINER_HEARTBEAT_FILE names for the worker")
    parser.add_argument("--max-age", type=float, default=60.0, metavar="SECONDS", help="default: 60")
    given = parser.parse_args()
    found = trouble(given.file, given.max_age)
    if found:
        print(f"heartbeat: {found}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
