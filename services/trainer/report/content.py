"""What a campaign's report says, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from services.common.manifest import VariantCheck
from services.trainer.report.asked import AskedRound


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
    # What the strategy said about its choice, in sentences.
    selection: Sequence[str] = ()

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def test(self, metric: str) -> float | None:
        return self.metrics.get("test", {}).get(metric)


@dataclass(frozen=True)
class ForecastCurve:
    """Accuracy on the random slice: what was measured, and the curve through it with its 95% interval."""

    # (labels, accuracy) of each round.
    measured: Sequence[tuple[int, float]]
    # All four of the same length; from the first round to beyond the last.
    labels: Sequence[float]
    fit: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


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
    # None while there is nothing to draw: too few rounds, or no rise beyond the noise.
    curve: ForecastCurve | None = None


@dataclass(frozen=True)
class VariantRow:
    """A faster graph of a version, published or refused."""

    version: int
    kind: str
    check: VariantCheck


@dataclass(frozen=True)
class Bins:
    """The last round's test samples by the confidence of their prediction; all of one length."""

    counts: Sequence[int]
    accuracy: Sequence[float]
    confidence: Sequence[float]
    ece: float


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
    # None for rounds that did not keep them.
    reliability: Bins | None = None
    # Rounds that asked for something, waiting ones too.
    asked: Sequence[AskedRound] = ()
    # Round -> class -> labels that came in with it, imported ones too.
    bought: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    # Class -> share of the whole pool; empty unless the oracle is a simulated one, which knows.
    pool_shares: Mapping[str, float] = field(default_factory=dict)
    variants: Sequence[VariantRow] = ()

    def as_json(self) -> dict[str, Any]:
        """Only what JSON knows. Single samples are in picks.csv."""
        variants = [{"version": v.version, "kind": v.kind, **v.check.model_dump(mode="json")} for v in self.variants]
        asked = [it.as_json() for it in self.asked]
        plain = asdict(replace(self, asked=(), variants=()))
        return {**plain, "created": self.created.isoformat(), "asked": asked, "variants": variants}


def phases(rows: Sequence[RoundRow]) -> list[str]:
    """Every phase that took time in some round, in the order in which they first appear."""
    return list(dict.fromkeys(phase for row in rows for phase in row.seconds))
