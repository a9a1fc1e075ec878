"""k-center greedy core-set: again and again the sample that is farthest from everything chosen so far.

Sener & Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018; the greedy
2-approximation is Gonzalez 1985. Time O(M D (L + B)) in the first round and O(M D B) in later ones, which know the
distances of the earlier ones; memory O(M D). Distances to chosen samples only fall, so the next picks are looked for
among the samples that were farthest a moment ago, as long as one of them is still farther than all others: the same
picks, in a few large matrix products in the place of B passes over the embeddings.
Where we differ: of pools above MAX_SAMPLES only the samples with the smallest ids are looked at.
Far below random sampling on CIFAR-10 with frozen features: it prefers outliers.
"""

import numpy as np

from services.trainer.strategies.core import ROWS_AT_ONCE, ScoredPool, Strategy, filled_up
from services.trainer.strategies.landscape import considered, digest_of

MAX_SAMPLES = 50_000
_BLOCK = 1024
# Products of one shape round alike, wherever a row lies: kept distances are those of a fresh computation, bit by bit.
_TILE_ROWS, _TILE_CENTERS = 1024, 64


def pick_k_center(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    """Greedy farthest-first traversal in Euclidean distance, starting from the labelled samples."""
    ids = considered(pool, MAX_SAMPLES)
    unlabelled = set(pool.ids)
    is_open = np.array([i in unlabelled for i in ids], bool)
    budget = min(budget, len(pool.ids))
    if not budget or not is_open.any():
        return filled_up([], pool, budget, rng)
    points = pool.embeddings(ids)  # (M, D)
    distances = _Distances(points, pool)
    key = ("k_center", digest_of(pool, ids))
    _know_the_labelled(distances, key, pool)
    chosen: list[int] = []
    if not pool.labelled:
        # Any sample is as far as any other.
        chosen = [int(rng.choice(np.flatnonzero(is_open)))]
        distances.add(points[chosen])
    is_open[chosen] = False
    measured = len(chosen)
    while len(chosen) < budget and is_open.any():
        distances.add(points[chosen[measured:]])
        measured = len(chosen)
        new = _next_picks(points, np.where(is_open, distances.nearest, -1.0), budget - measured, pool)
        is_open[new] = False
        chosen += new
    picked = [ids[i] for i in chosen]
    # The last picks are measured from when they are bought.
    pool.kept.put(key, (frozenset((*pool.labelled, *picked[:measured])), distances.nearest))
    return filled_up(picked, pool, budget, rng)


class _Distances:
    """Of each of M points, the squared distance to the nearest center so far: `nearest` float32 (M,)."""

    def __init__(self, points: np.ndarray, pool: ScoredPool) -> None:
        self.nearest = np.full(len(points), np.inf, np.float32)
        self._points = points
        self._squared = np.einsum("md,md->m", points, points)
        self._look = pool.look

    def add(self, centers: np.ndarray) -> None:
        """(n, D); the array that `nearest` was before stays as it is."""
        self.nearest = self.nearest.copy()
        for first in range(0, len(centers), _TILE_CENTERS):
            self._add_tile(_padded(centers[first : first + _TILE_CENTERS], _TILE_CENTERS))

    def _add_tile(self, centers: np.ndarray) -> None:
        half = np.einsum("nd,nd->n", centers, centers) / 2
        turned = np.ascontiguousarray(centers.T)
        for first in range(0, len(self._points), _TILE_ROWS):
            self._look()
            rows = slice(first, first + _TILE_ROWS)
            points = self._points[rows]
            products = _padded(points, _TILE_ROWS) @ turned
            products -= half
            found = self._squared[rows] - 2 * products.max(axis=1)[: len(points)]
            np.minimum(self.nearest[rows], np.maximum(found, 0), out=self.nearest[rows])


def _know_the_labelled(distances: _Distances, key: tuple[str, str], pool: ScoredPool) -> None:
    known: frozenset[str] = frozenset()
    kept = pool.kept.get(key)
    # A batch that was picked and never bought, or another campaign's labels: begin from nothing.
    if kept is not None and kept[0] <= set(pool.labelled):
        known, distances.nearest = kept
    new = [i for i in pool.labelled if i not in known]
    for first in range(0, len(new), ROWS_AT_ONCE):
        distances.add(pool.embeddings(new[first : first + ROWS_AT_ONCE]))


def _next_picks(points: np.ndarray, nearest: np.ndarray, budget: int, pool: ScoredPool) -> list[int]:
    """The next picks, at least one, as far as they can be told from the farthest _BLOCK points alone."""
    size = min(_BLOCK, len(nearest))
    order = np.argpartition(-nearest, size - 1)
    block, others = np.sort(order[:size]), order[size:]
    limit = float(nearest[others].max(initial=-1.0))
    here = points[block]
    squared = np.einsum("md,md->m", here, here)
    distance = nearest[block]
    chosen: list[int] = []
    while len(chosen) < budget:
        pool.look()
        farthest = int(distance.argmax())
        # Negative: no open sample.
        if distance[farthest] < max(limit, 0.0):
            break
        chosen.append(farthest)
        found = squared + squared[farthest] - 2 * (here @ here[farthest])
        np.minimum(distance, np.maximum(found, 0), out=distance)
        distance[farthest] = -1.0  # below every real distance, also between exact duplicates
    return [int(i) for i in block[chosen]]


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """With copies of the first row, so that every product has the same shape."""
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.repeat(rows[:1], count - len(rows), axis=0)])


K_CENTER = Strategy("k_center", pick_k_center, uses_embeddings=True)
