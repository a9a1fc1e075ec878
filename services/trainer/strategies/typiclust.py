"""TypiClust: the most typical sample of each of the largest clusters that have no label yet.

Hacohen, Dekel & Weinshall, "Active learning on a budget", ICML 2022. k-means into min(L + B, 500) clusters; clusters in
the order of fewest labels, then largest size; from each in turn the unlabelled sample of the highest typicality,
1 / (mean distance to its k nearest neighbours within the cluster), k = min(20, half of the cluster); clusters of up to
5 samples are left out. Needs no model: good for the first few hundred labels, and made to choose the very first ones.
O(N R K) for the clustering, kept with the embedding; O(B (N/K)^2 R) for the neighbours.
Where we differ: clustering and distances are those of the landscape, and in a cluster of more than MAX_MEMBERS
samples only as many, evenly spaced, are considered.
"""

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy, filled_up
from services.trainer.strategies.kmeans import Clustering
from services.trainer.strategies.landscape import landscape

MAX_CLUSTERS = 500
MAX_MEMBERS = 4096
_NEIGHBOURS = 20
_TOO_SMALL = 5


def pick_typiclust(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    budget = min(budget, len(pool.ids))
    if not budget:
        return []
    land = landscape(pool)
    clustering = land.clusters(min(len(pool.labelled) + budget, MAX_CLUSTERS), pool)
    order = _most_wanted(clustering, land.points_of(pool.labelled, pool))
    open_places = np.zeros(len(land.ids), bool)
    open_places[land.places(pool.ids)] = True
    chosen: list[int] = []
    while len(chosen) < budget and order:
        # A cluster that has nothing left is not asked again.
        picks = {
            c: _most_typical(land.points, clustering.labels, open_places, c, pool)
            for c in order[: budget - len(chosen)]
        }
        chosen += [place for place in picks.values() if place is not None]
        open_places[chosen] = False
        order = [c for c in order if picks.get(c, 0) is not None]
    return filled_up([land.ids[i] for i in chosen], pool, budget, rng)


def _most_wanted(clustering: Clustering, labelled: np.ndarray) -> list[int]:
    """Clusters by their number of (L, R) labelled points, the largest of equals first."""
    count = len(clustering.centers)
    labels_in = np.bincount(clustering.nearest(labelled), minlength=count)
    sizes = np.bincount(clustering.labels, minlength=count)
    return [c for c in np.lexsort((-sizes, labels_in)).tolist() if sizes[c] > _TOO_SMALL]


def _most_typical(
    points: np.ndarray, labels: np.ndarray, open_places: np.ndarray, cluster: int, pool: ScoredPool
) -> int | None:
    members = np.flatnonzero((labels == cluster) & open_places)
    if not len(members):
        return None
    members = members[np.linspace(0, len(members) - 1, min(len(members), MAX_MEMBERS)).astype(int)]
    return int(members[typicality(points[members], pool).argmax()])


def typicality(points: np.ndarray, pool: ScoredPool) -> np.ndarray:
    """1 / (mean distance to the nearest neighbours).  (n, R) -> (n,)"""
    neighbours = min(_NEIGHBOURS, len(points) // 2)
    if not neighbours:
        return np.ones(len(points))
    squared = np.einsum("nr,nr->n", points, points)
    means = []
    for first in range(0, len(points), 1024):
        pool.look()
        rows = slice(first, first + 1024)
        distances = squared[rows, None] - 2 * (points[rows] @ points.T) + squared
        distances[np.arange(len(distances)), np.arange(len(points))[rows]] = np.inf  # nobody is their own neighbour
        nearest = np.partition(distances, neighbours - 1, axis=1)[:, :neighbours]
        means.append(np.sqrt(np.maximum(nearest, 0)).mean(axis=1))
    return np.asarray(1 / (np.concatenate(means) + 1e-5))


TYPICLUST = Strategy("typiclust", pick_typiclust, uses_embeddings=True)
