"""One round's batch: a share drawn at random, which may decide on promotion, and the rest by the strategy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.trainer.config import CampaignConfig
from services.trainer.strategies import ScoredPool, Strategy, strategy
from services.trainer.strategies.core import in_chunks, mean_probabilities


@dataclass(frozen=True)
class Batch:
    # The strategy's choice, then the random draw.
    ids: tuple[str, ...]
    drawn_at_random: np.ndarray  # bool (B,)


def pick_batch(
    scored: ScoredPool,
    config: CampaignConfig,
    round_no: int,
    wanted: int,
    named: Callable[[str], Strategy] = strategy,
) -> Batch:
    """At most `wanted` samples; the same ones whenever the configuration, the round and what is known are.

    `named` gives a strategy by its name; a benchmark has some that are in no table.
    """
    rng = np.random.default_rng([config.seed, round_no])
    budget = min(wanted, len(scored.ids))
    name = config.strategy_of(round_no)
    random_count = budget if name == "random" else round(budget * config.random_share)
    drawn = strategy("random").pick(scored, random_count, rng)
    chosen = named(name).pick(_without(scored, drawn), budget - random_count, rng) if budget > random_count else []
    return Batch((*chosen, *drawn), np.repeat([False, True], [len(chosen), len(drawn)]))


def predictions(scored: ScoredPool, ids: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Sample id -> the newest model's most probable class and its probability, from stored embeddings."""
    said: dict[str, tuple[int, float]] = {}
    for some in in_chunks(ids):
        probabilities = mean_probabilities(scored, scored.embeddings(some))  # (n, C)
        top = zip(probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist(), strict=True)
        said.update(zip(some, top, strict=True))
    return said


def _without(scored: ScoredPool, drawn: list[str]) -> ScoredPool:
    """As if `drawn` were bought, their classes not known yet."""
    taken = set(drawn)
    rest = [i for i, sample in enumerate(scored.ids) if sample not in taken]
    return replace(
        scored,
        ids=tuple(scored.ids[i] for i in rest),
        labelled=(*scored.labelled, *drawn),
        labelled_classes=np.append(scored.labelled_classes, np.full(len(drawn), -1)),
        scores=None if scored.scores is None else scored.scores[rest],
    )
