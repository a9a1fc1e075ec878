"""What every query strategy gets and gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScoredPool:
    """The unlabelled samples and what is known about them; no label is in here."""

    # Unlabelled samples, N of them.
    ids: tuple[str, ...]
    # Samples that have been labelled already, in the order of labelling.
    labelled: tuple[str, ...]
    # Acquisition scores (N,), higher means more worth labelling; None for strategies that need none.
    scores: np.ndarray | None
    # Stored embeddings of any samples: ids -> float32 (n, D).
    embeddings: Callable[[Sequence[str]], np.ndarray]
    # Long loops call this at least once a second; it raises when the work must end.
    look: Callable[[], None] = lambda: None


Pick = Callable[[ScoredPool, int, np.random.Generator], list[str]]


@dataclass(frozen=True)
class Strategy:
    name: str
    # Picks min(budget, N) distinct unlabelled ids, the most wanted first.
    pick: Pick
    # The acquisition function that inference must run over the pool; None when no scores are needed.
    acquisition: str | None = None
    # Whether `pick` reads embeddings of the whole pool.
    uses_embeddings: bool = False


def pick_highest(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    """The `budget` highest scores, equal scores in random order.  O(N)"""
    assert pool.scores is not None, "the caller scores the pool with the strategy's acquisition function"
    budget = min(budget, len(pool.ids))
    # A random order first: equal scores would otherwise favour the samples that happen to lie first.
    order = rng.permutation(len(pool.ids))
    scores = np.asarray(pool.scores, np.float64)[order]
    highest = np.argpartition(-scores, budget - 1)[:budget] if budget else np.empty(0, np.int64)
    highest = highest[np.argsort(-scores[highest], kind="stable")]
    return [pool.ids[i] for i in order[highest]]
