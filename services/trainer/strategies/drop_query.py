"""DropQuery: samples whose predicted class changes when parts of the embedding are dropped, one from each cluster.

Gupte, Aklilu, Nirschl & Yeung-Levy, "Revisiting active learning in the era of vision foundation models", TMLR 2024.
M = 3 times each value of the embedding is dropped with p = 0.75; candidates are the samples whose class changes more
than M/2 times, and where they are fewer than 25 B the bar is lowered until there are as many. k-means into B clusters,
and the candidate nearest to each center. O(M N D C) for the predictions, O(25 B R B) for the clusters.
Where we differ: clusters are those of the landscape's axes, and of pools above MAX_SAMPLES a random part is looked at.
"""

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy, filled_up, in_chunks, mean_probabilities
from services.trainer.strategies.kmeans import kmeans, nearest_to_centers
from services.trainer.strategies.landscape import landscape

MAX_SAMPLES = 50_000
MASKS = 3
DROPPED = 0.75
CANDIDATES_PER_PICK = 25


def pick_drop_query(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    budget = min(budget, len(pool.ids))
    if not budget:
        return []
    ids = pool.ids
    if len(ids) > MAX_SAMPLES:
        ids = tuple(ids[i] for i in np.sort(rng.choice(len(ids), MAX_SAMPLES, replace=False)))
    changes = np.concatenate([class_changes(pool, pool.embeddings(some), rng) for some in in_chunks(ids)])
    places = most_changed(changes, CANDIDATES_PER_PICK * budget)
    points = landscape(pool).points_of([ids[i] for i in places], pool)
    nearest = nearest_to_centers(points, kmeans(points, budget, rng, pool.look))
    return filled_up([ids[i] for i in places[nearest]], pool, budget, rng)


def class_changes(pool: ScoredPool, embeddings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How many of the masks change the predicted class.  (n, D) -> int64 (n,)"""
    whole = mean_probabilities(pool, embeddings).argmax(axis=1)
    changes = np.zeros(len(embeddings), np.int64)
    for _ in range(MASKS):
        pool.look()
        kept = rng.integers(0, 256, embeddings.shape, np.uint8) >= 256 * DROPPED
        masked = embeddings * kept / np.float32(1 - DROPPED)
        changes += mean_probabilities(pool, masked).argmax(axis=1) != whole
    return changes


def most_changed(changes: np.ndarray, wanted: int) -> np.ndarray:
    """Places that changed more than MASKS / 2 times, or as seldom as it takes to have `wanted`: int64 (n,)."""
    least = MASKS // 2 + 1
    while least > 0 and np.count_nonzero(changes >= least) < wanted:
        least -= 1
    return np.flatnonzero(changes >= least)


DROP_QUERY = Strategy("drop_query", pick_drop_query, uses_embeddings=True, needs_model=True)
