"""BADGE: k-means++ draws on the gradients that each sample would give the head if its own prediction were right.

Ash, Zhang, Krishnamurthy, Langford & Agarwal, ICLR 2020. The gradient of sample i is g_i = a_i (x) z_i with
a_i = p_i - e_(predicted class), and is never built: |g_i - g_j|^2 = |a_i|^2 |z_i|^2 + |a_j|^2 |z_j|^2
- 2 (a_i . a_j) (z_i . z_j). Time O(B M (C + D)) and memory O(M (C + D)) for M candidates, in the place of O(M C D).
Where we differ: the draw is among the 10 B smallest margins and not the whole pool, so that neither grows with it;
elsewhere a_i is close to zero, and so is the chance to be drawn.
"""

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy, candidates, filled_up, mean_probabilities
from services.trainer.strategies.kmeans import draw


def pick_badge(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    budget = min(budget, len(pool.ids))
    some = candidates(pool, budget, rng)
    if not some:
        return []
    embeddings = pool.embeddings(some)  # (M, D)
    residuals = mean_probabilities(pool, embeddings)
    residuals[np.arange(len(some)), residuals.argmax(axis=1)] -= 1  # (M, C)
    chosen = spread_out(residuals, embeddings, budget, rng, pool)
    return filled_up([some[i] for i in chosen], pool, budget, rng)


def spread_out(
    residuals: np.ndarray, embeddings: np.ndarray, count: int, rng: np.random.Generator, pool: ScoredPool
) -> list[int]:
    """Places of `count` k-means++ draws among the outer products of (M, C) and (M, D); fewer where some are copies."""
    squared = np.einsum("mc,mc->m", residuals, residuals) * np.einsum("md,md->m", embeddings, embeddings)
    # As in the authors' code, the first one is the longest.
    chosen = [int(squared.argmax())]
    distance = np.full(len(squared), np.inf)
    while len(chosen) < count:
        pool.look()
        newest = chosen[-1]
        inner = (residuals @ residuals[newest]) * (embeddings @ embeddings[newest])
        np.minimum(distance, np.maximum(squared + squared[newest] - 2 * inner, 0), out=distance)
        distance[newest] = 0
        # What rounding leaves between equal gradients is no distance.
        distance[distance < 1e-6 * squared] = 0
        if not distance.any():
            break
        chosen.append(draw(distance, rng))
    return chosen


BADGE = Strategy("badge", pick_badge, acquisition="margin", uses_embeddings=True, needs_model=True)
