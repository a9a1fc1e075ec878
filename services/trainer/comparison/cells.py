"""A comparison's cells and what comes of each, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Stands in a strategy's place for the fit on the whole pool. No strategy has a space in its name.
CEILING = "all labels"
BASELINE = "random"


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
class CellResult:
    cell: Cell
    points: tuple[Point, ...]

    def as_json(self) -> dict[str, Any]:
        return {"cell": asdict(self.cell), "points": [asdict(p) for p in self.points]}

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> "CellResult":
        return cls(Cell(**value["cell"]), tuple(Point(**p) for p in value["points"]))


def grid(strategies: Sequence[str], backbones: Sequence[str], heads: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All cells, seed by seed: what is there early is paired already. The ceilings are one for each learner."""
    ceilings = [Cell(seeds[0], backbone, head, CEILING) for backbone in backbones for head in heads]
    runs = [Cell(s, b, h, strategy) for s in seeds for b in backbones for h in heads for strategy in strategies]
    return [*runs[: len(runs) // len(seeds)], *ceilings, *runs[len(runs) // len(seeds) :]]
