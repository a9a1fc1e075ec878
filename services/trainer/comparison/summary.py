"""What a comparison found, for each backbone and head: every figure of the report, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.trainer.comparison.cells import BASELINE, CellResult
from services.trainer.comparison.statistics import (
    Paired,
    aubc,
    interval_of_mean,
    labels_to_reach,
    paired_difference,
    penalty_matrix,
)


@dataclass(frozen=True)
class Found:
    """One strategy against random."""

    strategy: str
    # (n, L) by seed and budget.
    accuracy: np.ndarray
    # Over the budget, by seed: (n,).
    aubc: np.ndarray
    aubc_gain: Paired
    final_gain: Paired
    # Where its mean curve reaches random's final mean accuracy; None when it never does.
    labels_to_reach: int | None
    # Means over seeds at the last budget.
    final_ece: float
    final_worst_recall: float
    final_macro_f1: float
    # Means over seeds and over the rounds after the first, which is not the strategy's.
    query_cpu_seconds: float
    # The slowest query of any run: what is computed once is paid for in it.
    slowest_query: float
    # The largest of any query; None where it could not be read.
    query_peak_mb: float | None

    def band(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean and 95% interval: (L,), (L,), (L,)."""
        return self.accuracy.mean(axis=0), *interval_of_mean(self.accuracy)


@dataclass(frozen=True)
class Summary:
    backbone: str
    head: str
    # Seeds for which every strategy has a result; the others are in the runs' table only.
    seeds: tuple[int, ...]
    labels: np.ndarray  # (L,)
    # Random first.
    found: tuple[Found, ...]
    # P[i, j]: share of the budgets at which strategy i beats strategy j.
    penalties: np.ndarray  # (S, S)
    # Accuracy with the labels of the whole pool, and their number; None while that cell has no result.
    ceiling: tuple[float, int] | None

    @property
    def title(self) -> str:
        return f"{self.backbone}, {self.head}"

    @property
    def baseline(self) -> Found:
        return self.found[0]

    def saving(self, found: Found) -> int | None:
        """Labels that the strategy needs fewer than random, for random's final accuracy."""
        return None if found.labels_to_reach is None else int(self.labels[-1]) - found.labels_to_reach


def summarise(results: Sequence[CellResult], strategies: Sequence[str]) -> list[Summary]:
    """One for each backbone and head that has a paired seed."""
    groups = list(dict.fromkeys((r.cell.backbone, r.cell.head) for r in results))
    summaries = []
    for backbone, head in groups:
        of_group = [r for r in results if (r.cell.backbone, r.cell.head) == (backbone, head)]
        summary = _summary(backbone, head, of_group, strategies)
        if summary is not None:
            summaries.append(summary)
    return summaries


def _summary(backbone: str, head: str, results: Sequence[CellResult], strategies: Sequence[str]) -> Summary | None:
    runs = {(r.cell.strategy, r.cell.seed): r for r in results if not r.cell.is_ceiling}
    # A strategy without any result has failed or is still to come: it must not take the seeds of the others.
    compared = [s for s in strategies if any(strategy == s for strategy, _ in runs)]
    seeds = sorted({seed for _, seed in runs})
    seeds = [seed for seed in seeds if all((s, seed) in runs for s in compared)]
    if not seeds or BASELINE not in compared:
        return None
    compared.sort(key=lambda s: s != BASELINE)
    labels = np.array([p.labels for p in runs[BASELINE, seeds[0]].points])
    of_strategy = {s: [runs[s, seed] for seed in seeds] for s in compared}
    accuracy = {s: _metric(of_strategy[s], "accuracy") for s in compared}
    found = tuple(_found(s, of_strategy[s], labels, accuracy) for s in compared)
    ceilings = [r.points[-1] for r in results if r.cell.is_ceiling]
    # All begin with the same labels: at the first budget nobody can beat anybody.
    penalties = penalty_matrix(np.stack([accuracy[s][:, 1:] for s in compared]))
    ceiling = (ceilings[0].accuracy, ceilings[0].labels) if ceilings else None
    return Summary(backbone, head, tuple(seeds), labels, found, penalties, ceiling)


def _found(strategy: str, runs: Sequence[CellResult], labels: np.ndarray, accuracy: Mapping[str, np.ndarray]) -> Found:
    ours, baseline = accuracy[strategy], accuracy[BASELINE]
    query = _metric(runs, "query_cpu_seconds")[:, 1:]
    peaks = [p.query_peak_mb for run in runs for p in run.points[1:] if p.query_peak_mb is not None]
    return Found(
        strategy=strategy,
        accuracy=ours,
        aubc=aubc(labels, ours),
        aubc_gain=paired_difference(aubc(labels, ours), aubc(labels, baseline)),
        final_gain=paired_difference(ours[:, -1], baseline[:, -1]),
        labels_to_reach=labels_to_reach(labels, ours.mean(axis=0), float(baseline[:, -1].mean())),
        final_ece=float(_metric(runs, "ece")[:, -1].mean()),
        final_worst_recall=float(_metric(runs, "worst_class_recall")[:, -1].mean()),
        final_macro_f1=float(_metric(runs, "macro_f1")[:, -1].mean()),
        query_cpu_seconds=float(query.mean()),
        slowest_query=float(query.max()),
        query_peak_mb=max(peaks, default=None),
    )


def _metric(runs: Sequence[CellResult], name: str) -> np.ndarray:
    """(n, L)"""
    return np.array([[getattr(p, name) for p in run.points] for run in runs], float)
