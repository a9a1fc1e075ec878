"""ProbCover: again and again the sample whose ball covers the most samples that no ball covers yet.

Yehuda, Dekel, Hacohen & Weinshall, "Active learning through a covering lens", NeurIPS 2022. Balls of one radius on unit
vectors; the radius is the largest at which 95% of the balls hold samples of a single pseudo-label of k-means with as
many clusters as there are classes. That is the 5% quantile of the distance to the nearest sample of another
pseudo-label, so that no grid of radii is tried. Needs no model: for the first labels; once everything is covered it
draws at random.
Where we differ: distances are those of the landscape, and at most MAX_SAMPLES samples, those with the smallest ids,
cover and are covered. Who lies in whose ball is computed once for an embedding, in tiles, O(M^2 R), and kept as one bit
a pair: 313 MB for 50,000 samples, however dense the graph. A ball's gain only falls as others are chosen, so that the
gain it had when it was last counted bounds it, and only balls that could still be the best are counted again (lazy
greedy, Minoux 1978): the same picks.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy, filled_up
from services.trainer.strategies.landscape import Landscape, landscape

MAX_SAMPLES = 50_000
PURITY = 0.95
_PROBES = 2048
_TILE = 1024  # a multiple of 64, and of 8 in a test: tiles begin at whole bytes
# Balls whose gain is counted in one go.
_RECOUNTED = 256


def pick_prob_cover(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    budget = min(budget, len(pool.ids))
    if not budget:
        return []
    land = landscape(pool)
    ids = land.ids[:MAX_SAMPLES]
    balls = _kept_balls(land, pool)
    cover = _Cover(balls)
    cover.add(balls.around(land.points_of(pool.labelled, pool), pool))
    unlabelled = set(pool.ids)
    cover.close([place for place, i in enumerate(ids) if i not in unlabelled])
    chosen: list[int] = []
    while len(chosen) < budget and (best := cover.best()) is not None:
        pool.look()
        chosen.append(best)
        cover.add(balls.members[best])
        cover.close([best])
    return filled_up([ids[i] for i in chosen], pool, budget, rng)


@dataclass(frozen=True)
class _Balls:
    points: np.ndarray  # (M, R)
    radius: float
    # A bit for each sample nearer to the center than the radius, the center included: uint8 (M, bytes).
    members: np.ndarray

    def around(self, centers: np.ndarray, pool: ScoredPool) -> np.ndarray:
        """What the balls around (n, R) centers cover together: uint8 (bytes,)."""
        inside = np.zeros((1, len(self.points)), bool)
        for _, columns, within in _pairs_within(centers, self.points, self.radius, pool):
            inside[0, columns] |= within.any(axis=0)
        union = np.zeros_like(self.members[:1])
        _put(union, slice(1), slice(0, len(self.points)), np.packbits(inside, axis=1))
        return np.asarray(union[0])


def _kept_balls(land: Landscape, pool: ScoredPool) -> _Balls:
    """Those of the last embedding alone are kept: they are large."""
    key = (land.key, pool.class_count)
    kept = pool.kept.get(("prob_cover",))
    if kept is None or kept[0] != key:
        kept = (key, _balls(land, pool))
        pool.kept.put(("prob_cover",), kept)
    balls: _Balls = kept[1]
    return balls


def _balls(land: Landscape, pool: ScoredPool) -> _Balls:
    points = land.points[:MAX_SAMPLES]
    pseudo = land.clusters(pool.class_count, pool).labels[:MAX_SAMPLES]
    radius = pure_radius(points, pseudo, pool)
    members = np.zeros((len(points), 8 * -(-len(points) // 64)), np.uint8)  # whole words of 64 bits
    for rows, columns, within in _pairs_within(points, points, radius, pool, upper=True):
        bits = np.packbits(within, axis=1)
        _put(members, rows, columns, bits)
        if columns.start > rows.start:  # then the tile has all of its rows
            _put(members, columns, rows, transposed(bits))
    return _Balls(points, radius, members)


def _put(members: np.ndarray, rows: slice, columns: slice, bits: np.ndarray) -> None:
    target = members[rows, columns.start // 8 : columns.start // 8 + bits.shape[1]]
    target[:] = bits[: len(target)]


def transposed(bits: np.ndarray) -> np.ndarray:
    """A bit matrix with rows and columns changed over, a twentieth of the time that bytes take: (8 n, m) -> (8 m, n).

    8 x 8 bits lie in a word, and in three steps its quarters, sixteenths and single bits change places (Warren,
    "Hacker's Delight", 7-3).
    """
    rows, width = len(bits) // 8, bits.shape[1]
    words = np.ascontiguousarray(bits.reshape(rows, 8, width)[:, ::-1].transpose(0, 2, 1)).view("<u8")
    for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        changed = (words ^ (words >> np.uint64(shift))) & np.uint64(mask)
        words ^= changed ^ (changed << np.uint64(shift))
    return words.view(np.uint8)[..., ::-1].transpose(1, 2, 0).reshape(8 * width, rows)


def pure_radius(points: np.ndarray, pseudo: np.ndarray, pool: ScoredPool) -> float:
    """The largest radius at which PURITY of the balls hold one pseudo-label; 0 where there is only one at all."""
    probes = np.linspace(0, len(points) - 1, min(len(points), _PROBES)).astype(int)
    nearest = np.full(len(probes), np.inf)
    left = _left(points[probes])
    for first in range(0, len(points), _TILE):
        pool.look()
        columns = slice(first, first + _TILE)
        squared = left @ _right(points[columns])
        squared[pseudo[probes, None] == pseudo[columns]] = np.inf
        np.minimum(nearest, squared.min(axis=1), out=nearest)
    squared_radius = float(np.quantile(nearest, 1 - PURITY, method="lower"))
    return float(np.sqrt(max(squared_radius, 0.0))) if np.isfinite(squared_radius) else 0.0


class _Cover:
    """Which samples lie in no ball yet, and at most how many of them each ball would add."""

    def __init__(self, balls: _Balls) -> None:
        self._members = balls.members.view(np.uint64)
        self._uncovered = np.full(self._members.shape[1], ~np.uint64(0))
        # Gains when they were last counted, int64 (M,): bounds on what they are now. -1: not to be chosen.
        self._bounds = np.concatenate([self._gains(slice(i, i + _TILE)) for i in range(0, len(self._members), _TILE)])
        self._exact = np.ones(len(self._members), bool)

    def add(self, members: np.ndarray) -> None:
        """uint8 (bytes,)"""
        self._uncovered &= ~members.view(np.uint64)
        self._exact[:] = False

    def close(self, places: list[int]) -> None:
        self._bounds[places] = -1

    def best(self) -> int | None:
        """The ball that adds most, the first of equals; None when all is covered."""
        while True:
            best = int(self._bounds.argmax())
            if self._bounds[best] <= 0:
                return None
            if self._exact[best]:
                return best
            self._count_again()

    def _count_again(self) -> None:
        """The highest bounds among those that are not exact."""
        bounds = np.where(self._exact, -1, self._bounds)
        count = min(_RECOUNTED, len(bounds))
        places = np.argpartition(-bounds, count - 1)[:count]
        places = places[bounds[places] > 0]
        self._bounds[places] = self._gains(places)
        self._exact[places] = True

    def _gains(self, places: np.ndarray | slice) -> np.ndarray:
        return np.asarray(np.bitwise_count(self._members[places] & self._uncovered).sum(axis=1, dtype=np.int64))


def _pairs_within(
    a: np.ndarray, b: np.ndarray, radius: float, pool: ScoredPool, upper: bool = False
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Tile by tile: (rows of `a`, rows of `b`, bool (n, m): are they nearer than the radius?)."""
    left, right = _left(a), _right(b)
    for first in range(0, len(a), _TILE):
        for second in range(first if upper else 0, len(b), _TILE):
            pool.look()
            rows, columns = slice(first, first + _TILE), slice(second, second + _TILE)
            yield rows, columns, left[rows] @ right[:, columns] < radius**2


def _left(a: np.ndarray) -> np.ndarray:
    """With `_right` squared distances are one product, and no pass over (n, m) behind it.  (n, R) -> (n, R + 2)"""
    squares = np.einsum("nr,nr->n", a, a)[:, None]
    return np.hstack([a, squares, np.ones_like(squares)])


def _right(b: np.ndarray) -> np.ndarray:
    """(m, R) -> (R + 2, m)"""
    squares = np.einsum("mr,mr->m", b, b)
    return np.vstack([-2 * b.T, np.ones_like(squares), squares])


PROB_COVER = Strategy("prob_cover", pick_prob_cover, uses_embeddings=True)
