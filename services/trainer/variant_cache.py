"""Variants of embedding graphs and what they say about images, kept beside the fp32 graph.

<embedding_id>.<recipe>.<content>.onnx      the variant; `content` begins its own sha256
<content>.embeddings.npz                    ids, the graph's embeddings of them, the largest value seen on the way

A frozen backbone is converted once, and a later round runs only the images that it has not seen.
"""

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from services.common.files import write_atomically

_DIGITS = 16


@dataclass(frozen=True)
class Seen:
    """What one graph says: float32 (N, D), aligned with `ids`."""

    ids: tuple[str, ...]
    embeddings: np.ndarray
    # 0.0 for a graph that does not tell.
    largest: float

    def of(self, ids: Sequence[str]) -> np.ndarray:
        row = {sample: i for i, sample in enumerate(self.ids)}
        return self.embeddings[[row[i] for i in ids]]


class VariantCache:
    """One folder. What is not whole is made again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def graph(self, embedding_id: str, recipe: str, make: Callable[[], bytes]) -> bytes:
        for path in self._folder.glob(f"{embedding_id}.{recipe}.*.onnx"):
            content = path.read_bytes()
            if path.name == f"{embedding_id}.{recipe}.{_name(content)}.onnx":
                return content
        content = make()
        write_atomically(self._folder / f"{embedding_id}.{recipe}.{_name(content)}.onnx", content)
        return content

    def seen(self, graph: bytes, ids: Sequence[str], run: Callable[[Sequence[str]], tuple[np.ndarray, float]]) -> Seen:
        """What `graph` says about `ids`. `run` gives embeddings and the largest value for those not seen before."""
        path = self._folder / f"{_name(graph)}.embeddings.npz"
        known = _read(path)
        missing = sorted(set(ids) - set(known.ids)) if known else sorted(set(ids))
        if known and not missing:
            return known
        embeddings, largest = run(missing)
        if known:
            embeddings = np.concatenate([known.embeddings, embeddings])
            largest = max(known.largest, largest)
        seen = Seen((*(known.ids if known else ()), *missing), embeddings, largest)
        buffer = io.BytesIO()
        np.savez(buffer, ids=np.array(seen.ids), embeddings=seen.embeddings, largest=np.array(seen.largest))
        write_atomically(path, buffer.getvalue())
        return seen


def _name(content: bytes) -> str:
    return sha256(content).hexdigest()[:_DIGITS]


def _read(path: Path) -> Seen | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            return Seen(tuple(kept["ids"].tolist()), kept["embeddings"], float(kept["largest"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
