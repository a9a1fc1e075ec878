"""Uncertainty herding: samples that stand for as much as possible of what the model doubts and no label covers yet.

Bae, Oh & Sutherland, "Uncertainty herding: one active learning method for all label budgets", ICLR 2025. One after the
other, the sample of the largest gain: sum_n U(x_n) max(0, k(x, x_n) - max_(s labelled or chosen) k(s, x_n)), with a
Gaussian kernel on the landscape. With few labels the kernel is wide and the batch is representative; with many it is
narrow and the doubts decide. Gains only ever fall, so that of most samples an old bound is enough (Minoux 1978).
Where we differ: U is the margin's score; the kernel's width is the median distance of a sample to the nearest
labelled one, in the place of the smallest distance between labels, which one pair of near-duplicates decides; the
gain is summed over a random part of the pool, and the batch chosen among candidates that are drawn with chances in
proportion to U. At most MOST_PAIRS kernel values: O(M N R) to begin with, a few rows of N for each pick.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy, filled_up, highest
from services.trainer.strategies.landscape import landscape

FEWEST_CANDIDATES = 2500
CANDIDATES_PER_PICK = 10
# Candidates times samples that the gain is summed over: 160 MB of float32.
MOST_PAIRS = 40_000_000
_ROWS = 512


def pick_uncertainty_herding(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    assert pool.scores is not None
    budget = min(budget, len(pool.ids))
    if not budget:
        return []
    doubts = np.clip(np.asarray(pool.scores, np.float32), 0, None)
    some = _candidates(doubts, max(FEWEST_CANDIDATES, CANDIDATES_PER_PICK * budget), rng)
    shown = np.sort(rng.permutation(len(pool.ids))[: max(MOST_PAIRS // len(some), 1)])
    land = landscape(pool)
    points = land.points_of([pool.ids[i] for i in shown], pool)  # (N, R)
    # Before there is a label, as if a random batch were labelled: that is how far apart this one will be.
    labelled = pool.labelled or [pool.ids[i] for i in rng.choice(len(pool.ids), budget, replace=False)]
    nearest = _squared_to_nearest(points, land.points_of(labelled, pool), pool)
    width = max(float(np.median(nearest)), 1e-12)  # squared
    covered = np.exp(-nearest / (2 * width)) if pool.labelled else np.zeros(len(points), np.float32)
    kernel = _kernel(land.points_of([pool.ids[i] for i in some], pool), points, width, pool)
    chosen = herd(kernel, doubts[shown], covered.astype(np.float32), budget, pool)
    return filled_up([pool.ids[some[i]] for i in chosen], pool, budget, rng)


@dataclass(order=True)
class _Bound:
    """What a candidate's gain was after so many picks; it is no larger now."""

    negated: float
    place: int
    picks: int


def herd(kernel: np.ndarray, weights: np.ndarray, covered: np.ndarray, count: int, pool: ScoredPool) -> list[int]:
    """Places of `count` rows of the (M, N) kernel, greedily by the weighted (N,) cover that each adds to `covered`."""
    gains = np.empty(len(kernel))
    for first in range(0, len(kernel), _ROWS):
        pool.look()
        gains[first : first + _ROWS] = np.maximum(kernel[first : first + _ROWS] - covered, 0) @ weights
    heap = [_Bound(-gain, place, 0) for place, gain in enumerate(gains.tolist())]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        best = heapq.heappop(heap)
        if best.picks == len(chosen):
            pool.look()
            chosen.append(best.place)
            covered = np.maximum(covered, kernel[best.place])
        else:
            gain = float(np.maximum(kernel[best.place] - covered, 0) @ weights)
            heapq.heappush(heap, _Bound(-gain, best.place, len(chosen)))
    return chosen


def _candidates(doubts: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Places of `count` draws without replacement with chances in proportion to (N,) doubts: int64 (n,).

    The top `count` of log u + Gumbel noise (Efraimidis & Spirakis 2006 in another form).
    """
    return highest(np.log(np.maximum(doubts, 1e-12)) + rng.gumbel(size=len(doubts)), count, rng)


def _squared_to_nearest(points: np.ndarray, others: np.ndarray, pool: ScoredPool) -> np.ndarray:
    """float32 (N,): squared distance of each of (N, R) points to the nearest of (L, R) others."""
    lengths = np.einsum("lr,lr->l", others, others)
    nearest = np.empty(len(points), np.float32)
    for first in range(0, len(points), _ROWS):
        pool.look()
        rows = points[first : first + _ROWS]
        nearest[first : first + _ROWS] = (lengths - 2 * (rows @ others.T)).min(axis=1)
    return np.asarray(np.maximum(nearest + np.einsum("nr,nr->n", points, points), 0))


def _kernel(rows: np.ndarray, columns: np.ndarray, width: float, pool: ScoredPool) -> np.ndarray:
    """exp(-|x - y|^2 / 2 width).  (M, R), (N, R) -> float32 (M, N)"""
    lengths = np.einsum("nr,nr->n", columns, columns)
    kernel = np.empty((len(rows), len(columns)), np.float32)
    for first in range(0, len(rows), _ROWS):
        pool.look()
        some = rows[first : first + _ROWS]
        block = kernel[first : first + _ROWS]
        np.matmul(some, columns.T, out=block)
        block *= 2
        block -= lengths
        block -= np.einsum("nr,nr->n", some, some)[:, None]
        np.minimum(block, 0, out=block)  # rounding
        block /= 2 * width
        np.exp(block, out=block)
    return kernel


UNCERTAINTY_HERDING = Strategy(
    "uncertainty_herding", pick_uncertainty_herding, acquisition="margin", uses_embeddings=True
)
