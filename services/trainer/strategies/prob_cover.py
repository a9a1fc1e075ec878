"""ProbCover: again and again the sample whose ball covers the most samples that no ball covers yet.

Yehuda, Dekel, Hacohen & Weinshall, "Active learning through a covering lens", NeurIPS 2022. Balls of one radius on unit
vectors; the radius is the largest at which 95% of the balls hold samples of a single pseudo-label of k-means with as
many clusters as there are classes. That is the 5% quantile of the distance to the nearest sample of another
pseudo-label, so that no grid of radii is tried. Needs no model: for the first labels; once everything is covered it
draws at random.
Where we differ: distances are those of the landscape, and at most MAX_SAMPLES samples, those with the smallest ids,
cover and are covered. The graph is never stored: how many each ball covers is counted once for an embedding, in
tiles, O(M^2 R), and a sample that gets covered is taken off its neighbours' counts, which costs no more again.
Memory O(M R).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy, filled_up
from services.trainer.strategies.landscape import Landscape, landscape

MAX_SAMPLES = 50_000
PURITY = 0.95
_PROBES = 2048
_TILE = 1024


def pick_prob_cover(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    budget = min(budget, len(pool.ids))
    if not budget:
        return []
    land = landscape(pool)
    ids = land.ids[:MAX_SAMPLES]
    graph: _Balls = pool.kept.made(("prob_cover", land.key, pool.class_count), lambda: _balls(land, pool))
    cover = _Cover(graph, pool)
    cover.add(land.points_of(pool.labelled, pool))
    unlabelled = set(pool.ids)
    is_open = np.array([i in unlabelled for i in ids], bool)
    chosen: list[int] = []
    while len(chosen) < budget:
        best = int(np.where(is_open, cover.gains, 0).argmax())
        if not is_open[best] or cover.gains[best] <= 0:
            break  # all is covered
        is_open[best] = False
        chosen.append(best)
        cover.add(graph.points[best : best + 1])
    return filled_up([ids[i] for i in chosen], pool, budget, rng)


@dataclass(frozen=True)
class _Balls:
    points: np.ndarray  # (M, R)
    radius: float
    degrees: np.ndarray  # int64 (M,): samples within the radius, itself included


def _balls(land: Landscape, pool: ScoredPool) -> _Balls:
    points = land.points[:MAX_SAMPLES]
    pseudo = land.clusters(pool.class_count, pool).labels[:MAX_SAMPLES]
    radius = pure_radius(points, pseudo, pool)
    degrees = np.zeros(len(points), np.int64)
    for rows, columns, within in _pairs_within(points, points, radius, pool, upper=True):
        degrees[rows] += np.count_nonzero(within, axis=1)
        if columns.start > rows.start:
            degrees[columns] += np.count_nonzero(within, axis=0)
    return _Balls(points, radius, degrees)


def pure_radius(points: np.ndarray, pseudo: np.ndarray, pool: ScoredPool) -> float:
    """The largest radius at which PURITY of the balls hold one pseudo-label; 0 where there is only one at all."""
    probes = np.linspace(0, len(points) - 1, min(len(points), _PROBES)).astype(int)
    nearest = np.full(len(probes), np.inf)
    for first in range(0, len(points), _TILE):
        pool.look()
        columns = slice(first, first + _TILE)
        squared = _squared_distances(points[probes], points[columns])
        squared[pseudo[probes][:, None] == pseudo[columns]] = np.inf
        np.minimum(nearest, squared.min(axis=1), out=nearest)
    squared_radius = float(np.quantile(nearest, 1 - PURITY, method="lower"))
    return float(np.sqrt(max(squared_radius, 0.0))) if np.isfinite(squared_radius) else 0.0


class _Cover:
    """Which samples lie in a ball already, and how many more each ball would add: `gains` int64 (M,)."""

    def __init__(self, balls: _Balls, pool: ScoredPool) -> None:
        self.gains = balls.degrees.copy()
        self._balls = balls
        self._covered = np.zeros(len(balls.points), bool)
        self._pool = pool

    def add(self, centers: np.ndarray) -> None:
        """(n, R)"""
        points, radius = self._balls.points, self._balls.radius
        new = np.zeros(len(points), bool)
        for _, columns, within in _pairs_within(centers, points, radius, self._pool):
            new[columns] |= within.any(axis=0)
        new &= ~self._covered
        self._covered |= new
        for rows, _, within in _pairs_within(points, points[new], radius, self._pool):
            self.gains[rows] -= np.count_nonzero(within, axis=1)


def _pairs_within(
    a: np.ndarray, b: np.ndarray, radius: float, pool: ScoredPool, upper: bool = False
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Tile by tile: (rows of `a`, rows of `b`, bool (n, m): are they nearer than the radius?)."""
    for first in range(0, len(a), _TILE):
        for second in range(first if upper else 0, len(b), _TILE):
            pool.look()
            rows, columns = slice(first, first + _TILE), slice(second, second + _TILE)
            yield rows, columns, _squared_distances(a[rows], b[columns]) < radius**2


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, R), (m, R) -> (n, m)"""
    squares = np.einsum("nr,nr->n", a, a)[:, None], np.einsum("mr,mr->m", b, b)[:, None]
    ones = np.ones_like(squares[0]), np.ones_like(squares[1])
    # One product and no pass over (n, m) behind it.
    return np.asarray(np.hstack([a, squares[0], ones[0]]) @ np.hstack([-2 * b, ones[1], squares[1]]).T)


PROB_COVER = Strategy("prob_cover", pick_prob_cover, uses_embeddings=True)
