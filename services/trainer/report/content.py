"""What a campaign's report says, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class RoundRow:
    """One finished round."""

    round_no: int
    strategy: str
    # Labels that the round's model was trained on.
    labels: int
    version: int
    promoted: bool
    # split ("test", "random_slice") -> "accuracy", "macro_f1", "ece" -> value
    metrics: Mapping[str, Mapping[str, float]]
    # phase -> seconds
    seconds: Mapping[str, float]
    images_scored_per_second: float | None = None
    # class -> labels bought up to this round
    class_counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def test(self, metric: str) -> float | None:
        return self.metrics.get("test", {}).get(metric)


@dataclass(frozen=True)
class Outlook:
    """What the random slice says of more labels, in sentences."""

    # What the slice itself takes of the budget.
    cost: str
    # Accuracy -> how many more labels it takes, or why nobody can say.
    forecasts: Mapping[str, str]
    # Stopping rule -> where the campaign stands with it; empty when it has none.
    standings: Mapping[str, str] = field(default_factory=dict)
    # Accuracy that the next batch is expected to bring; None while the curve cannot say.
    expected_gain: float | None = None


@dataclass(frozen=True)
class CampaignReport:
    name: str
    config: Mapping[str, Any]
    classes: Sequence[str]
    rows: Sequence[RoundRow]
    # Test samples of the last round, C x C: row = true class, column = predicted class.
    confusion: Sequence[Sequence[int]]
    created: datetime
    # Why the campaign ended, in a sentence.
    reason: str
    # The source that pool and test samples come from, so that a reader can look at them.
    source_id: str = ""
    outlook: Outlook | None = None

    def as_json(self) -> dict[str, Any]:
        """Only what JSON knows."""
        return {**asdict(self), "created": self.created.isoformat()}


def phases(rows: Sequence[RoundRow]) -> list[str]:
    """Every phase that took time in some round, in the order in which they first appear."""
    return list(dict.fromkeys(phase for row in rows for phase in row.seconds))
