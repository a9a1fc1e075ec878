"""Verified downloads that give up soon when there is no network."""

import hashlib
import http.client
import queue
import threading
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from services.common.errors import DamagedArtefact, Unavailable
from services.common.files import sha256_file
from services.trainer.learning import SilentWatch, Watch

CONNECT_TIMEOUT_S = 5.0
_CHUNK_BYTES = 1 << 18
_SILENT = SilentWatch()


def download_verified(
    url: str, target: Path, sha256: str, connect_timeout_s: float = CONNECT_TIMEOUT_S, watch: Watch = _SILENT
) -> Path:
    """Download `url` to `target` unless it lies there already; a file that does not match is never kept.

    `sha256`: the digest in hex, or its first digits. Raises Unavailable without a connection and
    DamagedArtefact for a file that is not the expected one.
    """
    if target.is_file() and sha256_file(target).startswith(sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        found = _fetch(url, part, connect_timeout_s, watch)
        if not found.startswith(sha256):
            raise DamagedArtefact(f"{url} gave a file with sha256 {found}; expected {sha256}")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def can_connect(url: str, timeout_s: float = CONNECT_TIMEOUT_S) -> str | None:
    """None when a server answers at `url`, whatever it answers; else why not."""
    try:
        _open(urllib.request.Request(url, method="HEAD"), timeout_s).close()
    except Unavailable as error:
        return str(error)
    return None


def _fetch(url: str, part: Path, timeout_s: float, watch: Watch) -> str:
    """Write what `url` gives to `part`; its sha256 in hex."""
    digest = hashlib.sha256()
    with _open(urllib.request.Request(url), timeout_s) as response, part.open("wb") as file:
        if response.status != http.client.OK:
            raise Unavailable(f"{url}: the server answered {response.status} {response.reason}")
        done, total = 0, int(response.headers.get("Content-Length") or 0)
        while True:
            # The time-out of the connection also bounds each read: a server that falls silent is given up.
            try:
                chunk = response.read1(_CHUNK_BYTES)
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(f"{url}: the connection broke after {done} bytes: {error}") from error
            if not chunk:
                break
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            watch.progress("download", done, max(total, done))
    if done < total:
        raise Unavailable(f"{url}: the connection broke after {done} of {total} bytes")
    return digest.hexdigest()


def _open(request: urllib.request.Request, timeout_s: float) -> Any:
    """The response, an HTTP error included. Raises Unavailable after `timeout_s` at the latest.

    In a thread of its own: a name that does not resolve, or a host with many dead addresses, can hold
    a connection attempt for far longer than the socket's own time-out.
    """
    answer: queue.Queue[Any] = queue.Queue()

    def connect() -> None:
        try:
            # An opener of our own: urlopen's is made once in a process and keeps the proxies of that moment.
            answer.put(urllib.request.build_opener().open(request, timeout=timeout_s))
        except urllib.error.HTTPError as error:
            answer.put(error)
        except Exception as error:
            answer.put(Unavailable(f"no connection to {request.full_url}: {error}"))

    threading.Thread(target=connect, name="download", daemon=True).start()
    try:
        response = answer.get(timeout=timeout_s)
    except queue.Empty:
        raise Unavailable(f"no connection to {request.full_url} within {timeout_s:g} s") from None
    if isinstance(response, Unavailable):
        raise response
    return response
