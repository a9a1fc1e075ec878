"""A comparison's cells and what comes of each, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Stands in a strategy's place for the fit on the whole pool. No strategy has a space in its name.
CEILING = "all labels"
BASELINE = "random"
# Stands in a strategy's place for one setting of a grid search, judged inside its labelled set.
TRIAL = "grid trial"


@dataclass(frozen=True, order=True)
class Cell:
    """One run: a strategy with one seed, on one backbone and with one head."""

    seed: int
    backbone: str
    head: str
    strategy: str

    @property
    def key(self) -> str:
        """Unique in its comparison."""
        return f"{self.backbone}/{self.head}/{self.strategy}/{self.seed}"

    @property
    def is_ceiling(self) -> bool:
        return self.strategy == CEILING

    @property
    def is_trial(self) -> bool:
        return self.strategy == TRIAL


@dataclass(frozen=True)
class Point:
    """A curve after one round. All metrics are of the test samples."""

    labels: int
    accuracy: float
    macro_f1: float
    ece: float
    nll: float
    worst_class_recall: float
    # CPU seconds of all threads that scoring the pool and picking the batch took; 0 where nothing was asked.
    query_cpu_seconds: float
    # Largest resident memory during the query above what was there before, in MB; None where it cannot be read.
    query_peak_mb: float | None
    fit_cpu_seconds: float
    # What the strategy said about the batch.
    told: str = ""


@dataclass(frozen=True)
class Validation:
    """How a trial did on labelled samples that its models had not seen; what settings are chosen by."""

    accuracy: float
    # In nats.
    log_loss: float
    # CPU seconds of all threads for the fits of all folds.
    cpu_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What came of a cell."""

    points: tuple[Point, ...]
    # Of the test samples after the last point; rows: true class, columns: predicted class. Empty where it was not kept.
    confusion: tuple[tuple[int, ...], ...] = ()
    # Of trials.
    validation: Validation | None = None


@dataclass(frozen=True)
class CellResult:
    cell: Cell
    points: tuple[Point, ...]
    confusion: tuple[tuple[int, ...], ...] = ()
    validation: Validation | None = None

    @classmethod
    def of(cls, cell: Cell, outcome: Outcome) -> "CellResult":
        return cls(cell, outcome.points, outcome.confusion, outcome.validation)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> "CellResult":
        """Also of results that were saved before confusions and validations were kept."""
        validation = value.get("validation")
        return cls(
            Cell(**value["cell"]),
            tuple(Point(**p) for p in value["points"]),
            tuple(tuple(row) for row in value.get("confusion", ())),
            None if validation is None else Validation(**validation),
        )


def grid(strategies: Sequence[str], backbones: Sequence[str], heads: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All cells, seed by seed: what is there early is paired already. The ceilings are one for each learner."""
    ceilings = [Cell(seeds[0], backbone, head, CEILING) for backbone in backbones for head in heads]
    runs = [Cell(s, b, h, strategy) for s in seeds for b in backbones for h in heads for strategy in strategies]
    return [*runs[: len(runs) // len(seeds)], *ceilings, *runs[len(runs) // len(seeds) :]]
