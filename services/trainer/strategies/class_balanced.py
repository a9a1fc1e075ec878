"""Class-balanced margin: each pick goes to the class that has the fewest labels so far, bought or about to be.

The sample is the one of smallest margin among those that the model predicts to be of that class, so that the batch
fills up what earlier batches left short; compare Bengar, van de Weijer, Fuentes & Raducanu, "Class-balanced active
learning for image classification", WACV 2022, who solve it as an integer program. Samples are predicted in the order of
their margins, as far down as the batch needs: O(N log N), and O(n C D) for the n that are looked at, all N when the
model predicts a wanted class nowhere. Of use where classes are rare; where they are balanced it costs a little against
the plain margin.
"""

from collections import defaultdict, deque

import numpy as np

from services.trainer.strategies.core import (
    ROWS_AT_ONCE,
    ScoredPool,
    Strategy,
    filled_up,
    highest,
    mean_probabilities,
)

# Samples that are predicted first; each further step takes twice as many.
_FIRST_STEP = 1024


def pick_class_balanced(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    assert pool.scores is not None
    budget = min(budget, len(pool.ids))
    waiting = _Waiting(pool, highest(pool.scores, len(pool.ids), rng))
    known = pool.labelled_classes[pool.labelled_classes >= 0]
    owned = dict(enumerate(np.bincount(known, minlength=pool.class_count).tolist()))
    chosen: list[str] = []
    while len(chosen) < budget and owned:
        poorest = min(owned, key=lambda c: (owned[c], c))
        place = waiting.next_of(poorest)
        if place is None:
            del owned[poorest]  # nobody is left that the model takes for one of these
            continue
        chosen.append(pool.ids[place])
        owned[poorest] += 1
    return filled_up(chosen, pool, budget, rng)


class _Waiting:
    """Samples by predicted class, the smallest margin first; predicted when somebody asks."""

    def __init__(self, pool: ScoredPool, order: np.ndarray) -> None:
        """`order`: places of all samples, the smallest margin first."""
        self._pool = pool
        self._order = order
        self._looked_at = 0
        self._step = _FIRST_STEP
        self._of_class: defaultdict[int, deque[int]] = defaultdict(deque)

    def next_of(self, class_index: int) -> int | None:
        """The next sample's place; None when the whole pool holds no more."""
        while not self._of_class[class_index] and self._looked_at < len(self._order):
            self._predict_more()
        found = self._of_class[class_index]
        return found.popleft() if found else None

    def _predict_more(self) -> None:
        self._pool.look()
        places = self._order[self._looked_at : self._looked_at + self._step]
        probabilities = mean_probabilities(self._pool, self._pool.embeddings([self._pool.ids[i] for i in places]))
        for place, predicted in zip(places.tolist(), probabilities.argmax(axis=1).tolist(), strict=True):
            self._of_class[predicted].append(place)
        self._looked_at += len(places)
        self._step = min(2 * self._step, ROWS_AT_ONCE)


CLASS_BALANCED = Strategy(
    "class_balanced", pick_class_balanced, acquisition="margin", uses_embeddings=True, needs_model=True
)
