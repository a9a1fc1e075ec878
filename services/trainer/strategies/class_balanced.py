"""Class-balanced margin: each pick goes to the class that has the fewest labels so far, bought or about to be.

The sample is the one of smallest margin among those that the model predicts to be of that class, so that the batch
fills up what earlier batches left short; compare Bengar, van de Weijer, Fuentes & Raducanu, "Class-balanced active
learning for image classification", WACV 2022, who solve it as an integer program. O(N C D) to predict, in chunks, and
O(N log N). Of use where classes are rare; where they are balanced it costs a little against the plain margin.
"""

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy, filled_up, highest, in_chunks, mean_probabilities


def pick_class_balanced(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    assert pool.scores is not None
    budget = min(budget, len(pool.ids))
    if not budget:
        return []
    parts = []
    for some in in_chunks(pool.ids):
        pool.look()
        parts.append(mean_probabilities(pool, pool.embeddings(some)).argmax(axis=1))
    predicted = np.concatenate(parts)
    known = pool.labelled_classes[pool.labelled_classes >= 0]
    owned = np.bincount(known, minlength=max(pool.class_count, int(predicted.max()) + 1))
    waiting = {c: _best_of_class(pool.scores, predicted, c, budget, rng) for c in np.unique(predicted).tolist()}
    chosen: list[str] = []
    while len(chosen) < budget:
        poorest = min((c for c in waiting if waiting[c]), key=lambda c: (owned[c], c))
        chosen.append(pool.ids[waiting[poorest].pop()])
        owned[poorest] += 1
    return filled_up(chosen, pool, budget, rng)


def _best_of_class(
    scores: np.ndarray, predicted: np.ndarray, class_index: int, count: int, rng: np.random.Generator
) -> list[int]:
    """Places of the `count` smallest margins of a predicted class, the best one last."""
    places = np.flatnonzero(predicted == class_index)
    best: list[int] = places[highest(scores[places], count, rng)[::-1]].tolist()
    return best


CLASS_BALANCED = Strategy(
    "class_balanced", pick_class_balanced, acquisition="margin", uses_embeddings=True, needs_model=True
)
