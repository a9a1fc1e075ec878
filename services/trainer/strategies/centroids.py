"""Centroids: the sample nearest to the center of each of B clusters; for the first batch of a campaign.

k-means with as many clusters as the batch is large, on the landscape: O(N R B). Compare Zhdanov, "Diverse mini-batch
active learning", 2019, without its weights, and Yuan, Lin & Boyd-Graber, EMNLP 2020, who begin like this. Samples that
are labelled already do not change the clusters; a later batch had better ask typiclust.
"""

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy, filled_up
from services.trainer.strategies.kmeans import kmeans, nearest_to_centers
from services.trainer.strategies.landscape import landscape


def pick_centroids(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    budget = min(budget, len(pool.ids))
    if not budget:
        return []
    land = landscape(pool)
    places = land.places(pool.ids)
    if not len(places):
        return filled_up([], pool, budget, rng)
    points = land.points[places]
    nearest = nearest_to_centers(points, kmeans(points, budget, rng, pool.look))
    return filled_up([land.ids[i] for i in places[nearest]], pool, budget, rng)


CENTROIDS = Strategy("centroids", pick_centroids, uses_embeddings=True)
