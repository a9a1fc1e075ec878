"""What every query strategy gets and gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from services.trainer.strategies.kept import Kept

# Batch-diverse strategies look at this many of the smallest margins for each sample that they pick.
CANDIDATES_PER_PICK = 10
# Rows of embeddings in memory at once, where a strategy goes through the whole pool.
ROWS_AT_ONCE = 8192


def _no_model(_embeddings: np.ndarray) -> np.ndarray:
    raise AssertionError("this pool was made without a model")


@dataclass(frozen=True)
class ScoredPool:
    """The unlabelled samples and what is known about them. Nothing in here tells the class of an unlabelled sample."""

    # Unlabelled samples, N of them.
    ids: tuple[str, ...]
    # Samples that were bought already, L of them, in the order of buying.
    labelled: tuple[str, ...]
    # Acquisition scores (N,), higher means more worth labelling; None for strategies that need none.
    scores: np.ndarray | None
    # Stored embeddings of any samples: ids -> float32 (n, D).
    embeddings: Callable[[Sequence[str]], np.ndarray]
    # The newest model's head: embeddings float32 (n, D) -> its members' class probabilities (n, K, C).
    classify: Callable[[np.ndarray], np.ndarray] = _no_model
    # Class index of each of `labelled`, int64 (L,); -1 where it is not known yet: this round's random draw.
    labelled_classes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    class_count: int = 2
    # Names the embedding and the source: what was computed from embeddings alone is kept under it.
    embedding_key: str = ""
    # Results that may be computed once and used again; a pick is the same without them.
    kept: Kept = field(default_factory=Kept)
    # Long loops call this at least once a second; it raises when the work must end.
    look: Callable[[], None] = lambda: None
    # A sentence for the round's record, from strategies that decide something on the way.
    tell: Callable[[str], None] = lambda _text: None


Pick = Callable[[ScoredPool, int, np.random.Generator], list[str]]


@dataclass(frozen=True)
class Strategy:
    name: str
    # Picks min(budget, N) distinct unlabelled ids, the most wanted first.
    pick: Pick
    # The acquisition function that inference must run over the pool; None when no scores are needed.
    acquisition: str | None = None
    # Whether `pick` reads stored embeddings.
    uses_embeddings: bool = False
    # Whether it asks what a trained model thinks; one that does not may pick the first batch of a campaign.
    needs_model: bool = False
    # Whether it compares the members of a committee: a single model leaves it nothing to compare.
    needs_committee: bool = False


def by_score(
    name: str, acquisition: str | None = None, pick: Pick | None = None, needs_committee: bool = False
) -> Strategy:
    """The top scores of an acquisition function, by default the one of the strategy's own name."""
    return Strategy(name, pick or pick_highest, acquisition or name, needs_model=True, needs_committee=needs_committee)


def pick_highest(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    """The `budget` highest scores, equal scores in random order.  O(N)"""
    return [pool.ids[i] for i in highest(_scores(pool), budget, rng)]


def candidates(pool: ScoredPool, budget: int, rng: np.random.Generator) -> tuple[str, ...]:
    """The highest scores, CANDIDATES_PER_PICK for each sample of the batch: what bounds time and memory at any N."""
    return tuple(pool.ids[i] for i in highest(_scores(pool), budget * CANDIDATES_PER_PICK, rng))


def highest(scores: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Places of the `count` highest of (N,) scores, highest first, equal ones in random order: int64 (n,)."""
    count = min(count, len(scores))
    if not count:
        return np.empty(0, np.int64)
    # A random order first: equal scores would otherwise favour the samples that happen to lie first.
    order = rng.permutation(len(scores))
    negated = -np.asarray(scores, np.float32)[order]
    places = np.argpartition(negated, count - 1)[:count]
    return np.asarray(order[places[np.argsort(negated[places], kind="stable")]])


def filled_up(chosen: Sequence[str], pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    """`chosen`, and where it is shorter than the batch, random samples of the rest of the pool behind it."""
    chosen = list(chosen[:budget])
    short = min(budget, len(pool.ids)) - len(chosen)
    if short > 0:
        taken = set(chosen)
        left = [i for i in pool.ids if i not in taken]
        chosen += [left[i] for i in rng.choice(len(left), short, replace=False)]
    return chosen


def in_chunks(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[first : first + ROWS_AT_ONCE] for first in range(0, len(ids), ROWS_AT_ONCE)]


def mean_probabilities(pool: ScoredPool, embeddings: np.ndarray) -> np.ndarray:
    """The committee's mean.  (n, D) -> (n, C)"""
    return np.asarray(pool.classify(embeddings).mean(axis=1))


def _scores(pool: ScoredPool) -> np.ndarray:
    assert pool.scores is not None, "the caller scores the pool with the strategy's acquisition function"
    return pool.scores
