"""Replicas that fill one embeddings folder share the work: each block of a source is claimed by a file lock.

Block k holds the samples at the positions [k * size, (k + 1) * size) in storage order. A lock ends with its
process, however that ends, so that nothing has to be cleaned up or to time out.
"""

import errno
import fcntl
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import structlog

from services.common.embeddings import EmbeddingStore
from services.common.samples import SampleStore

log = structlog.get_logger()

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
# Each holds a file descriptor, of which a process often has 1,024. So many samples, one from each block, fill a batch.
_MOST_CLAIMS = 32


@dataclass(frozen=True)
class Claim:
    """The right to embed one block."""

    path: Path
    handle: int
    # Its last owner ended without giving it back.
    abandoned: bool

    @classmethod
    def attempt(cls, path: Path) -> "Claim | None":
        """None while another process, or another claim of this one, has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        abandoned = path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Given back in between, its file was deleted: a lock on that keeps nobody away.
            held = os.path.samestat(os.fstat(handle), path.stat())
        except (BlockingIOError, PermissionError, FileNotFoundError):
            held = False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(handle)
                raise
            # Work done twice is better than none: the same rows are stored by both.
            _warn_of_no_locks(path.parent, error.strerror)
            held, abandoned = True, False
        if held:
            return cls(path, handle, abandoned)
        os.close(handle)
        return None

    def release(self) -> None:
        # A file that cannot be deleted does no harm without its lock.
        with suppress(OSError):
            self.path.unlink()
        os.close(self.handle)


@cache
def _warn_of_no_locks(folder: Path, problem: str) -> None:
    """Once for each folder."""
    log.warning("claims_unavailable", folder=str(folder), error=problem)


@dataclass(eq=False)
class Work:
    """Samples that this replica alone may embed now: one shard of the store."""

    ids: np.ndarray  # S40 (N,)
    claims: list[Claim]
    embeddings: list[np.ndarray] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return sum(map(len, self.embeddings)) == len(self.ids)

    @property
    def prefix(self) -> str:
        return f"{self.claims[0].path.stem}-"


class Backlog:
    """The samples without an embedding, given out as work. Its methods read files: call them in threads."""

    def __init__(self, store: EmbeddingStore, samples: SampleStore, cold: np.ndarray, size: int) -> None:
        """`cold`: ascending positions in storage order; `size`: samples of a block and of a shard."""
        self._store = store
        self._samples = samples
        self._size = size
        blocks, starts = np.unique(cold // size, return_index=True)
        self._free = deque(zip(blocks.tolist(), np.split(cold, starts[1:]), strict=True)) if len(cold) else deque()
        self._held: deque[tuple[int, np.ndarray]] = deque()
        self._open: list[Work] = []
        # Samples without an embedding, as far as is known.
        self.left = len(cold)

    @property
    def all_given(self) -> bool:
        return not self._free and not self._held

    def claim(self) -> Work | None:
        """The next work; None when all that is left is held by other replicas, or nothing is left."""
        self._forget_done()
        if not self._free:
            self._free, self._held = self._held, deque()
        while claimed := self._claim_blocks():
            work = self._still_cold(claimed)
            if work:
                return work
        return None

    def done(self, work: Work) -> None:
        """After its rows are stored."""
        self._open.remove(work)
        for claim in work.claims:
            claim.release()

    def close(self) -> None:
        """Give back what was not done."""
        for work in list(self._open):
            self.done(work)

    def _forget_done(self) -> None:
        """What others held when its turn came may be done by now."""
        if not self._held:
            return
        self._store.refresh()
        held, self._held = self._held, deque()
        for block, positions in held:
            cold = positions[~self._store.has(self._samples.ids_at(positions))]
            self.left -= len(positions) - len(cold)
            if len(cold):
                self._held.append((block, cold))

    def _claim_blocks(self) -> list[tuple[Claim, np.ndarray]]:
        """One whole block, or as many parts of blocks as make up a shard, if not too many."""
        claimed: list[tuple[Claim, np.ndarray]] = []
        count = 0
        while self._free and len(claimed) < _MOST_CLAIMS and count + len(self._free[0][1]) <= self._size:
            block, positions = self._free.popleft()
            claim = Claim.attempt(self._store.folder / f"{block:08d}.claim")
            if claim:
                claimed.append((claim, positions))
                count += len(positions)
            else:
                self._held.append((block, positions))
        return claimed

    def _still_cold(self, claimed: list[tuple[Claim, np.ndarray]]) -> Work | None:
        """What nobody has done before it was claimed."""
        work = Work(np.empty(0), [claim for claim, _ in claimed])
        self._open.append(work)
        for claim in work.claims:
            if claim.abandoned:
                self._store.remove_unfinished(f"{claim.path.stem}-")
        self._store.refresh()
        ids = self._samples.ids_at(np.concatenate([positions for _, positions in claimed]))
        work.ids = ids[~self._store.has(ids)]
        self.left -= len(ids) - len(work.ids)
        if len(work.ids):
            return work
        self.done(work)
        return None
