"""Embeddings on disk: memory-mapped float16 shards, shared by every campaign on a source.

<root>/<embedding_id>/<source_id>/<shard>.{ids.npy,f16.npy,json}

The JSON names both files' checksums and is written last: a shard without it does not exist yet. A shard
whose files do not match it is left out, so that its samples are missing again and are embedded anew.
Inference writes; the trainer only reads.
"""

import json
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import structlog

from services.common.errors import BadRequest, NotFound
from services.common.files import sha256_file, write_atomically

log = structlog.get_logger()

FLOAT16_MAX = 65_504.0


class EmbeddingStore:
    """Rows of one embedding of one source, looked up by sample id. Safe to use from several threads."""

    def __init__(self, root: Path, embedding_id: str, source_id: str) -> None:
        self.folder = root / embedding_id / source_id
        self._lock = threading.RLock()
        self._seen: set[str] = set()
        self._shards: list[np.ndarray] = []
        self._row: dict[str, tuple[int, int]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._row)

    def refresh(self) -> None:
        """Take in the shards that were finished since the last look; each is verified once."""
        with self._lock:
            if not self.folder.is_dir():
                return
            for commit in sorted(self.folder.glob("*.json")):
                if commit.stem not in self._seen:
                    self._seen.add(commit.stem)
                    self._take(commit)

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that have no stored embedding, in the order given."""
        return [i for i in ids if i not in self._row]

    def append(self, ids: Sequence[str], embeddings: np.ndarray) -> None:
        """Store float32 (N, D) rows as one shard. Raises BadRequest for values that float16 cannot hold."""
        if len(ids) != len(embeddings):
            raise BadRequest(f"{len(ids)} ids for {len(embeddings)} embeddings")
        largest = np.abs(embeddings).max(initial=0.0)
        if not np.isfinite(largest) or largest > FLOAT16_MAX:
            raise BadRequest(
                f"embeddings must be finite and at most {FLOAT16_MAX:.0f} to be stored as float16; "
                f"the largest is {largest}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = self.folder / uuid.uuid4().hex
        np.save(stem.with_suffix(".ids.npy"), np.array(ids, dtype="S40"))
        np.save(stem.with_suffix(".f16.npy"), embeddings.astype(np.float16))
        checksums = {s: sha256_file(stem.with_suffix(f".{s}.npy")) for s in ("ids", "f16")}
        write_atomically(stem.with_suffix(".json"), json.dumps(checksums).encode())
        self.refresh()

    def read(self, ids: Sequence[str]) -> np.ndarray:
        """float32 (N, D), aligned with `ids`. Raises NotFound naming the first id that is not stored."""
        shard_of, row_of = self._places(ids)
        with self._lock:
            shards = list(self._shards)
        if not len(ids):
            return np.empty((0, shards[0].shape[1] if shards else 0), np.float32)
        out = np.empty((len(ids), shards[0].shape[1]), np.float32)
        for shard in np.unique(shard_of):
            here = np.flatnonzero(shard_of == shard)
            out[here] = shards[shard][row_of[here]]
        return out

    def chunks(self, ids: Sequence[str], rows: int = 8192) -> Iterator[tuple[slice, np.ndarray]]:
        """`read` in bounded memory: (slice of ids, float32 (n, D)) until all are given."""
        for first in range(0, len(ids), rows):
            part = slice(first, min(first + rows, len(ids)))
            yield part, self.read(ids[part])

    def _places(self, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        try:
            places = np.array([self._row[i] for i in ids], dtype=np.int64).reshape(-1, 2)
        except KeyError as error:
            raise NotFound(f"no stored embedding of sample {error.args[0]!r}") from None
        return places[:, 0], places[:, 1]

    def _take(self, commit: Path) -> None:
        files = {s: commit.with_suffix(f".{s}.npy") for s in ("ids", "f16")}
        try:
            checksums = json.loads(commit.read_bytes())
            whole = all(sha256_file(files[s]) == checksums[s] for s in files)
        except (OSError, ValueError, KeyError):
            whole = False
        if not whole:
            log.warning("embedding_shard_damaged", shard=str(commit), consequence="its samples are embedded anew")
            return
        ids = np.load(files["ids"], allow_pickle=False).astype(str).tolist()
        self._shards.append(np.load(files["f16"], mmap_mode="r", allow_pickle=False))
        shard = len(self._shards) - 1
        self._row.update((sample, (shard, row)) for row, sample in enumerate(ids))
