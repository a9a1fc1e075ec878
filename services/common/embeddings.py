"""Embeddings on disk: memory-mapped float16 shards, shared by every campaign on a source.

<root>/<embedding_id>/<source_id>/<shard>.{ids.npy,f16.npy,json}

The JSON names both files' checksums and is written last: a shard without it does not exist yet. A shard
whose files do not match it is left out, so that its samples are missing again and are embedded anew.
Inference writes; the trainer only reads.
"""

import errno
import hashlib
import io
import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import structlog

from services.common.cpus import available_cpus
from services.common.errors import BadRequest, NotFound
from services.common.files import sha256_file, write_atomically
from services.common.ids import ID, IdIndex, Ids, pack, unpack

log = structlog.get_logger()

FLOAT16_MAX = 65_504.0
# A block of 1,280 dimensions is 2.6 MB, and 5.2 MB as float32: about what a core's caches hold.
BLOCK_ROWS = 1024
# What this process or machine has run out of says nothing of a file.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class EmbeddingStore:
    """Rows of one embedding of one source, looked up by sample id. Safe to use from several threads."""

    def __init__(self, root: Path, embedding_id: str, source_id: str) -> None:
        self.folder = root / embedding_id / source_id
        self._lock = threading.Lock()
        # Shards that were looked at, damaged ones too.
        self._seen: frozenset[str] = frozenset()
        self._rows = _Rows()
        self.refresh()

    def __len__(self) -> int:
        return len(self._rows)

    def refresh(self) -> None:
        """Take in the shards that were finished since the last look; each is verified once.

        When some are gone (somebody has freed the disk) what is left is taken in anew: theirs are missing again.
        """
        with self._lock:
            there = _finished(self.folder)
            rows, seen = (self._rows, self._seen) if self._seen <= there else (_Rows(), frozenset[str]())
            commits = sorted(self.folder / f"{name}.json" for name in there - seen)
            if len(commits) > 1:
                # Hashing leaves the interpreter's lock: a second or two for a million samples.
                with ThreadPoolExecutor(available_cpus()) as threads:
                    opened = list(threads.map(_open, commits))
            else:
                opened = [_open(commit) for commit in commits]
            self._rows, self._seen = rows.joined_by([shard for shard in opened if shard]), there

    def has(self, ids: Ids) -> np.ndarray:
        """bool (N,): which have a stored embedding."""
        return self._rows.find(pack(ids)) >= 0

    def missing(self, ids: Ids) -> list[str]:
        """Those of `ids` that have no stored embedding, in the order given."""
        packed = pack(ids)
        return unpack(packed[~self.has(packed)])

    def append(self, ids: Ids, embeddings: np.ndarray, prefix: str = "") -> None:
        """Store float32 (N, D) rows as one shard. Raises BadRequest for values that float16 cannot hold."""
        packed = pack(ids)
        if len(packed) != len(embeddings):
            raise BadRequest(f"{len(packed)} ids for {len(embeddings)} embeddings")
        largest = np.abs(embeddings).max(initial=0.0)
        if not np.isfinite(largest) or largest > FLOAT16_MAX:
            raise BadRequest(
                f"embeddings must be finite and at most {FLOAT16_MAX:.0f} to be stored as float16; "
                f"the largest is {largest}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / f"{prefix}{uuid.uuid4().hex}"
        try:
            checksums = {
                "ids": _save(stem.with_suffix(".ids.npy"), packed),
                "f16": _save(stem.with_suffix(".f16.npy"), embeddings.astype(np.float16)),
            }
            write_atomically(stem.with_suffix(".json"), json.dumps(checksums).encode())
        except BaseException:
            # A disk that is full must not be filled by each further attempt. The last name is the one that commits.
            for path in sorted(self.folder.glob(f"{stem.name}.*"), reverse=True):
                path.unlink(missing_ok=True)
            raise
        self.refresh()

    def remove_unfinished(self, prefix: str) -> None:
        """Delete what a writer that died has left under this prefix; its caller keeps other writers away."""
        for rows in self.folder.glob(f"{prefix}*.npy"):
            if not rows.with_suffix("").with_suffix(".json").exists():
                rows.unlink(missing_ok=True)

    def read(self, ids: Ids) -> np.ndarray:
        """float32 (N, D), aligned with `ids`. Raises NotFound naming the first id that is not stored."""
        rows, packed = self._rows, pack(ids)
        blocks = rows.blocks(packed)
        out = np.empty((len(packed), rows.shards[0].shape[1] if rows.shards else 0), np.float32)
        for where, block in blocks:
            out[where] = block
        return out

    def blocks(self, ids: Ids) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All of `ids` in the order in which they are stored: (places in `ids` (n,), float16 (n, D)), n <= 1,024.

        Neighbours on disk are given as a view of the memory map. Raises NotFound, at once, naming the first
        id that is not stored.
        """
        return self._rows.blocks(pack(ids))


@dataclass(frozen=True)
class _Rows:
    """What a store has taken in. A row's number counts through all shards in the order in which they came."""

    shards: tuple[np.ndarray, ...] = ()
    # Number of the first row of each shard, and of the one that is still to come.
    starts: tuple[int, ...] = (0,)
    # One after the other they hold the ids of all rows.
    indexes: tuple[IdIndex, ...] = ()

    def __len__(self) -> int:
        return self.starts[-1]

    def joined_by(self, opened: Sequence[tuple[np.ndarray, np.ndarray]]) -> "_Rows":
        """`opened`: ids (n,) and embeddings (n, D) of each new shard."""
        if not opened:
            return self
        indexes = [*self.indexes, IdIndex(np.concatenate([ids for ids, _ in opened]))]
        # Each index is at least twice the next one: a handful to ask, and each id is sorted a handful of times.
        while len(indexes) > 1 and len(indexes[-2]) < 2 * len(indexes[-1]):
            last, before = indexes.pop(), indexes.pop()
            indexes.append(IdIndex(np.concatenate([before.ids, last.ids])))
        sizes = [len(ids) for ids, _ in opened]
        return _Rows(
            (*self.shards, *(embeddings for _, embeddings in opened)),
            (*self.starts, *(len(self) + end for end in accumulate(sizes))),
            tuple(indexes),
        )

    def find(self, ids: np.ndarray) -> np.ndarray:
        """int64 (N,): row numbers, -1 where there is none."""
        found = np.full(len(ids), -1, np.int64)
        first = 0
        for index in self.indexes:
            left = np.flatnonzero(found < 0)
            here = index.find(ids[left])
            found[left] = np.where(here >= 0, here + first, -1)
            first += len(index)
        return found

    def blocks(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """As `EmbeddingStore.blocks`."""
        rows = self.find(ids)
        if len(absent := np.flatnonzero(rows < 0)):
            raise NotFound(f"no stored embedding of sample {ids[absent[0]].decode()!r}")
        order = np.argsort(rows, kind="stable")
        return _walk(self.shards, np.array(self.starts), rows[order], order)


def _finished(folder: Path) -> frozenset[str]:
    """Names of the shards that are whole, without a suffix."""
    try:
        return frozenset(path.stem for path in folder.iterdir() if path.suffix == ".json")
    except FileNotFoundError:
        return frozenset()


def _open(commit: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """ids S40 (N,) and the memory map float16 (N, D); None when the files are not those of the checksums."""
    files = {s: commit.with_suffix(f".{s}.npy") for s in ("ids", "f16")}
    try:
        checksums = json.loads(commit.read_bytes())
        if all(sha256_file(files[s]) == checksums[s] for s in files):
            return np.load(files["ids"], allow_pickle=False).astype(ID, copy=False), _mapped(files["f16"])
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise
    except (ValueError, KeyError):
        pass
    log.warning("embedding_shard_damaged", shard=str(commit), consequence="its samples are embedded anew")
    return None


def _mapped(path: Path) -> np.ndarray:
    """The array of a .npy file, read where it lies.

    numpy's own memory map keeps a file descriptor each: a million samples are a thousand shards, and 1,024
    descriptors are all that a process usually has.
    """
    with pa.memory_map(str(path)) as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        values = file.read_buffer()  # outlives the open file
    return np.frombuffer(values, dtype).reshape(shape)


def _save(path: Path, array: np.ndarray) -> str:
    """Gives the file's sha256, by which what a power cut took is found missing: nothing waits for the disk."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    path.write_bytes(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _walk(
    shards: Sequence[np.ndarray], starts: np.ndarray, rows: np.ndarray, order: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`rows` ascend; `order` says where each was asked for."""
    ends = np.searchsorted(rows, starts)
    for shard, (first, end) in enumerate(pairwise(ends)):
        for begin in range(first, end, BLOCK_ROWS):
            part = slice(begin, min(begin + BLOCK_ROWS, end))
            here = rows[part] - starts[shard]
            neighbours = bool((np.diff(here) == 1).all())
            yield order[part], shards[shard][here[0] : here[-1] + 1] if neighbours else shards[shard][here]
