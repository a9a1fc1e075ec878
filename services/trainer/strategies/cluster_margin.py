"""Cluster-Margin: the smallest margins, taken in turn from as many clusters as they lie in, small clusters first.

Citovsky et al., "Batch active learning at scale", NeurIPS 2021. Each round: the 10 B smallest margins, grouped by
cluster; one random sample from each group, from the smallest group up, again and again. O(N + B) a round; the clusters
are made once for each embedding, O(N R K). Where we differ: at most MAX_CLUSTERS clusters of k-means on the
landscape in the place of average linkage, which is quadratic in the pool.
"""

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy, candidates
from services.trainer.strategies.landscape import landscape

MAX_CLUSTERS = 500
_ROWS_IN_A_CLUSTER = 10


def pick_cluster_margin(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    budget = min(budget, len(pool.ids))
    some = candidates(pool, budget, rng)
    if not some:
        return []
    cluster = _clusters_of(pool, some)
    order = rng.permutation(len(some))
    _, group, sizes = np.unique(cluster[order], return_inverse=True, return_counts=True)
    turn = _place_within(group)
    # All first places of the groups, then all second ones; within a turn from the smallest group up.
    ranked = np.lexsort((group, sizes[group], turn))
    return [some[i] for i in order[ranked[:budget]]]


def _clusters_of(pool: ScoredPool, ids: tuple[str, ...]) -> np.ndarray:
    """int64 (n,)"""
    land = landscape(pool)
    clustering = land.clusters(min(MAX_CLUSTERS, max(len(land.ids) // _ROWS_IN_A_CLUSTER, 1)), pool)
    return clustering.nearest(land.points_of(ids, pool))


def _place_within(groups: np.ndarray) -> np.ndarray:
    """How many earlier entries are of the same group: int64 (n,)."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    places = np.empty(len(groups), np.int64)
    places[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    return places


CLUSTER_MARGIN = Strategy(
    "cluster_margin", pick_cluster_margin, acquisition="margin", uses_embeddings=True, needs_model=True
)
