"""The pool on a map of few dimensions: unit vectors in their principal axes, what model-free strategies cluster.

Distances in the first 64 axes order neighbours nearly as all 1,280 dimensions do, and a clustering costs a twentieth.
The axes come from a random range finder (Halko, Martinsson & Tropp 2011, SIAM Review 53) on 4,096 rows, so that no
D x D matrix is taken apart. Pools above MAX_SAMPLES are cut to the samples with the smallest ids: ids are content
hashes, so that is a random draw, and the same one in every round.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from services.common.ids import pack
from services.trainer.strategies.core import ROWS_AT_ONCE, ScoredPool, in_chunks
from services.trainer.strategies.kmeans import Clustering, kmeans

MAX_SAMPLES = 200_000
DIMENSIONS = 64
_ROWS_FOR_AXES = 4096
_OVERSAMPLING = 32
_POWER_ITERATIONS = 2


@dataclass(frozen=True)
class Axes:
    mean: np.ndarray  # (D,)
    axes: np.ndarray  # (D, R)

    @staticmethod
    def of(rows: np.ndarray, size: int = DIMENSIONS) -> "Axes":
        """The first `size` principal axes of (N, D) rows; all of them where D is no larger."""
        rows = _unit(rows)
        mean = rows.mean(axis=0)
        if rows.shape[1] <= size:
            return Axes(mean, np.eye(rows.shape[1], dtype=np.float32))
        centred = rows - mean
        width = min(size + _OVERSAMPLING, *rows.shape)
        basis = np.random.default_rng(0).standard_normal((rows.shape[1], width), np.float32)
        for _ in range(_POWER_ITERATIONS):
            basis, _ = np.linalg.qr(centred.T @ (centred @ basis))
        _, _, right = np.linalg.svd(centred @ basis, full_matrices=False)
        return Axes(mean, np.ascontiguousarray((basis @ right.T[:, :size]).astype(np.float32)))

    def project(self, rows: np.ndarray) -> np.ndarray:
        """(N, D) -> float32 (N, R)"""
        return np.asarray((_unit(rows) - self.mean) @ self.axes)


@dataclass(frozen=True)
class Landscape:
    """Every sample of the pool that a model-free strategy considers, labelled or not."""

    key: str
    ids: tuple[str, ...]
    points: np.ndarray  # float32 (M, R)
    axes: Axes

    @cached_property
    def place_of(self) -> dict[str, int]:
        return {sample: place for place, sample in enumerate(self.ids)}

    def places(self, ids: Sequence[str]) -> np.ndarray:
        """Those of `ids` that are on the map: int64 (n,)."""
        return np.array([self.place_of[i] for i in ids if i in self.place_of], np.int64)

    def points_of(self, ids: Sequence[str], pool: ScoredPool) -> np.ndarray:
        """float32 (n, R) of any samples; those that are not on the map are put there from their embeddings."""
        places = np.array([self.place_of.get(i, -1) for i in ids], np.int64)
        points = self.points[places]
        absent = np.flatnonzero(places < 0)
        for first in range(0, len(absent), ROWS_AT_ONCE):
            pool.look()
            some = absent[first : first + ROWS_AT_ONCE]
            points[some] = self.axes.project(pool.embeddings([ids[i] for i in some]))
        return points

    def clusters(self, count: int, pool: ScoredPool) -> Clustering:
        """Into at most `count` clusters; the same ones for everybody who asks about this map."""
        count = min(count, len(self.ids))

        def make() -> Clustering:
            return kmeans(self.points, count, np.random.default_rng(count), pool.look)

        clustering: Clustering = pool.kept.made(("clusters", self.key, count), make)
        return clustering


def landscape(pool: ScoredPool) -> Landscape:
    ids = considered(pool, MAX_SAMPLES)
    key = digest_of(pool, ids)

    def make() -> Landscape:
        spread = [ids[i] for i in np.linspace(0, len(ids) - 1, min(len(ids), _ROWS_FOR_AXES)).astype(int)]
        axes = Axes.of(pool.embeddings(spread))
        parts = []
        for some in in_chunks(ids):
            pool.look()
            parts.append(axes.project(pool.embeddings(some)))
        return Landscape(key, ids, np.concatenate(parts), axes)

    made: Landscape = pool.kept.made(("landscape", key), make)
    return made


def considered(pool: ScoredPool, limit: int) -> tuple[str, ...]:
    """The `limit` smallest ids of the whole pool, in ascending order, whatever has been labelled since."""
    return tuple(sorted((*pool.ids, *pool.labelled))[:limit])


def digest_of(pool: ScoredPool, ids: Sequence[str]) -> str:
    return hashlib.sha256(pool.embedding_key.encode() + pack(ids).tobytes()).hexdigest()


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]
    return np.asarray(rows / np.where(lengths > 0, lengths, 1.0), np.float32)
