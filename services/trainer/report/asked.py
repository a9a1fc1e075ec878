"""What rounds asked for: each sample with what the model said then and what the oracle answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Pictures of one round, of all rounds, and the fewest of a round: a page of ten thousand pictures helps nobody.
MOST_OF_A_ROUND = 24
MOST_IN_ALL = 480
FEWEST_OF_A_ROUND = 6


@dataclass(frozen=True)
class Asked:
    """One sample at the time it was asked for."""

    sample_id: str
    drawn_at_random: bool
    # Higher: more worth labelling; None when the strategy gave no score.
    score: float | None = None
    # None where there was no model yet, and in campaigns from before it was kept.
    predicted: str | None = None
    confidence: float | None = None
    # None while nobody has answered.
    answer: str | None = None

    @property
    def wrong(self) -> bool | None:
        """None where one of the two is not known."""
        return None if self.predicted is None or self.answer is None else self.predicted != self.answer


@dataclass(frozen=True)
class AskedRound:
    round_no: int
    strategy: str
    # In the order in which the strategy picked them, the randomly drawn ones last.
    samples: Sequence[Asked]

    @property
    def answered(self) -> int:
        return sum(it.answer is not None for it in self.samples)

    @property
    def judged(self) -> int:
        """Samples whose prediction can be held against an answer."""
        return sum(it.wrong is not None for it in self.samples)

    @property
    def wrong(self) -> int:
        return sum(it.wrong is True for it in self.samples)

    def as_json(self) -> dict[str, Any]:
        counts = {"asked": len(self.samples), "answered": self.answered, "judged": self.judged, "wrong": self.wrong}
        return {"round_no": self.round_no, "strategy": self.strategy, **counts}


def gallery(rounds: Sequence[AskedRound]) -> list[AskedRound]:
    """What the page has room for: the newest rounds, and of each the highest scores, the randomly drawn ones last."""
    shown = [it for it in rounds if it.samples][-(MOST_IN_ALL // FEWEST_OF_A_ROUND) :]
    room = max(FEWEST_OF_A_ROUND, min(MOST_OF_A_ROUND, MOST_IN_ALL // max(len(shown), 1)))
    return [AskedRound(it.round_no, it.strategy, _most_wanted(it.samples)[:room]) for it in shown]


def _most_wanted(samples: Sequence[Asked]) -> list[Asked]:
    return sorted(samples, key=lambda it: (it.drawn_at_random, -(it.score or 0.0)))
