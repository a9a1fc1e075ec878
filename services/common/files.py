"""Small things about files that must be exact: checksums, canonical JSON, writes that cannot be seen half done."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON form of a value, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:16]


def signature(*paths: Path) -> tuple[tuple[int, int, int], ...]:
    """Changes whenever a file is written or replaced, also behind a link. Raises OSError."""
    return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in (path.stat() for path in paths))


def write_atomically(path: Path, content: bytes) -> None:
    """Readers see the old file or the new one, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
