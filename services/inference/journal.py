"""A replica's own feedback journal: appended to, made durable, rotated by size."""

import os
import re
import socket
import threading
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

import structlog

from services.common.errors import Unavailable
from services.common.feedback import SUFFIX, Feedback, to_line
from services.common.files import fsync_dir

log = structlog.get_logger()

ROTATE_BYTES = 64 * 1024 * 1024


class Journal:
    """One file at a time, named after host, process and start: replicas may share the folder. Thread-safe."""

    def __init__(self, folder: Path, rotate_bytes: int = ROTATE_BYTES) -> None:
        self._folder = folder
        self._rotate_bytes = rotate_bytes
        host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())
        self._stem = f"{host}-{os.getpid()}-{time.time_ns()}"
        self._files = 0
        self._file: FileIO | None = None
        self._lock = threading.Lock()

    def append(self, entries: Sequence[Feedback]) -> None:
        """On the disk when it returns. Blocks: call it in a thread. Raises Unavailable; nothing is kept then."""
        content = b"".join(map(to_line, entries))
        with self._lock:
            try:
                file = self._file = self._file or self._open()
                _append_durably(file, content)
                if file.tell() >= self._rotate_bytes:
                    self._leave()
            except OSError as error:
                self._leave()
                log.error("feedback_not_kept", folder=str(self._folder), error=str(error))
                raise Unavailable(
                    f"feedback cannot be kept in {self._folder} ({error.strerror or error}) and nothing of this "
                    "request is: mount a writable folder there or set INFERENCE_FEEDBACK_DIR, then send it again"
                ) from error

    def close(self) -> None:
        with self._lock:
            self._leave()

    def _open(self) -> FileIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._stem}-{self._files:03d}{SUFFIX}"
        file = FileIO(path, "x")
        self._files += 1
        fsync_dir(self._folder)
        return file

    def _leave(self) -> None:
        """The next entry begins a new file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _append_durably(file: FileIO, content: bytes) -> None:
    """All of it or nothing, as far as the disk lets us. Raises OSError."""
    before = file.tell()
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError:
        # A full disk may have taken half: the caller will send everything again.
        file.truncate(before)
        raise
