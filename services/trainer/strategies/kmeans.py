"""k-means: Lloyd's iterations from k-means++ seeds (Arthur & Vassilvitskii 2007), on few dimensions.

The distances of a block of rows to all centers are one matrix product. The seeds are drawn from a random part of the
rows, SEED_ROWS for each center: k-means++ over everything would cost more than the clustering itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MAX_ITERATIONS = 15
SEED_ROWS = 20
_BLOCK = 2048


@dataclass(frozen=True)
class Clustering:
    labels: np.ndarray  # int64 (N,)
    centers: np.ndarray  # float32 (K, R); K clusters at most, some may be empty

    def nearest(self, points: np.ndarray) -> np.ndarray:
        """The cluster of each of some points.  (n, R) -> int64 (n,)"""
        return _assign(points, self.centers, lambda: None)


def kmeans(
    points: np.ndarray,
    count: int,
    rng: np.random.Generator,
    look: Callable[[], None],
    weights: np.ndarray | None = None,
) -> Clustering:
    """float32 (N, R) -> at most `count` clusters. `weights` (N,): how much each point pulls its center."""
    centers = _seeds(points, min(count, len(points)), rng, look, weights)
    labels = _assign(points, centers, look)
    for _ in range(MAX_ITERATIONS):
        centers = _means(points, labels, centers, weights)
        before, labels = labels, _assign(points, centers, look)
        if np.array_equal(before, labels):
            break
    return Clustering(labels, centers)


def nearest_to_centers(points: np.ndarray, clustering: Clustering) -> np.ndarray:
    """The point of each cluster that is nearest to its center, largest clusters first: int64 (n,), all distinct."""
    difference = points - clustering.centers[clustering.labels]
    distance = np.einsum("nr,nr->n", difference, difference)
    order = np.lexsort((distance, clustering.labels))
    clusters, first, sizes = np.unique(clustering.labels[order], return_index=True, return_counts=True)
    return np.asarray(order[first[np.lexsort((clusters, -sizes))]])


def _seeds(
    points: np.ndarray, count: int, rng: np.random.Generator, look: Callable[[], None], weights: np.ndarray | None
) -> np.ndarray:
    """k-means++ on a random part of the rows."""
    some = rng.permutation(len(points))[: SEED_ROWS * count]
    points = np.ascontiguousarray(points[some])
    pull = np.ones(len(points)) if weights is None else weights[some].astype(np.float64)
    squared = np.einsum("nr,nr->n", points, points)
    distance = np.full(len(points), np.inf)
    chosen: list[int] = []
    for number in range(count):
        if number % 64 == 0:
            look()
        chances = pull if not chosen else pull * distance
        new = draw(chances, rng)
        chosen.append(new)
        np.minimum(distance, np.maximum(squared - 2 * (points @ points[new]) + squared[new], 0), out=distance)
        distance[new] = 0
    return points[chosen]


def draw(chances: np.ndarray, rng: np.random.Generator) -> int:
    """One place, with chances in proportion to (N,) values; uniformly where all of them are zero."""
    sums = np.cumsum(chances, dtype=np.float64)
    if not sums[-1] > 0:
        return int(rng.integers(len(chances)))
    # Below the sum also after rounding; with side="right" it then never lands on a place whose chance is zero.
    at = min(rng.random() * sums[-1], np.nextafter(sums[-1], 0))
    return int(np.searchsorted(sums, at, side="right"))


def _assign(points: np.ndarray, centers: np.ndarray, look: Callable[[], None]) -> np.ndarray:
    """The nearest center of each point.  (N, R), (K, R) -> int64 (N,)"""
    half = np.einsum("kr,kr->k", centers, centers) / 2
    turned = np.ascontiguousarray(centers.T)
    labels = np.empty(len(points), np.int64)
    for first in range(0, len(points), _BLOCK):
        look()
        products = points[first : first + _BLOCK] @ turned
        products -= half
        labels[first : first + _BLOCK] = products.argmax(axis=1)
    return labels


def _means(points: np.ndarray, labels: np.ndarray, centers: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """An empty cluster keeps its center."""
    order = np.argsort(labels, kind="stable")
    clusters, first = np.unique(labels[order], return_index=True)
    rows = points[order]
    if weights is not None:
        rows = rows * weights[order, None]
        mass = np.add.reduceat(weights[order].astype(np.float64), first)
    else:
        mass = np.diff(np.append(first, len(labels))).astype(np.float64)
    sums = np.add.reduceat(rows, first, axis=0)
    moved = centers.copy()
    full = mass > 0
    moved[clusters[full]] = sums[full] / mass[full, None]
    return moved
