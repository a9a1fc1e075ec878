"""What the curves say: each strategy against random and against our contender, and the goals of the benchmark."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from services.trainer.comparison.cells import CellResult
from services.trainer.comparison.statistics import Paired, labels_to_reach, paired_difference
from services.trainer.comparison.summary import Found, Summary, summarise

GOAL_AUTO = 1.0  # points of AUBC above random
GOAL_LABELS = 350
GOAL_ECE = 0.04
ECE_FROM = 300  # labels


@dataclass(frozen=True)
class Row:
    """One strategy on one backbone; accuracies and differences in points."""

    backbone: str
    strategy: str
    whose: str
    seeds: str
    aubc: float
    minus_random: float
    minus_random_low: float
    minus_random_high: float
    ahead_of_random: str
    # The contender's AUBC minus this one's; empty for the contender.
    contender_minus: float | None
    contender_low: float | None
    contender_high: float | None
    final_accuracy: float
    worst_class_recall: float
    labels_to_random: int | None
    # Largest mean over seeds of any round from ECE_FROM labels on.
    worst_ece: float
    query_cpu_seconds: float


@dataclass(frozen=True)
class Goal:
    figure: str
    goal: str
    measured: str
    reached: bool


def summary_of(results: Sequence[CellResult]) -> Summary:
    """Of the runs on one backbone with one head; seeds that some strategy lacks are left out."""
    strategies = list(dict.fromkeys(r.cell.strategy for r in results))
    found = summarise(results, strategies)
    if len(found) != 1:
        raise ValueError("one backbone, one head, and random among the strategies are needed")
    return found[0]


def rows(summary: Summary, results: Sequence[CellResult], contender: str, peers: Iterable[str]) -> list[Row]:
    peers = set(peers)
    ours = _named(summary, contender)
    return [
        _row(summary, found, None if found is ours else against(ours, found), results, found.strategy in peers)
        for found in sorted(summary.found, key=lambda f: -f.aubc.mean())
    ]


def against(ours: Found, other: Found) -> Paired:
    return paired_difference(ours.aubc, other.aubc)


def _row(summary: Summary, found: Found, behind: Paired | None, results: Sequence[CellResult], peer: bool) -> Row:
    gain = found.aubc_gain
    return Row(
        backbone=summary.backbone,
        strategy=found.strategy,
        whose="peer" if peer else "ours",
        seeds=f"{summary.seeds[0]}-{summary.seeds[-1]}",
        aubc=_points(found.aubc.mean()),
        minus_random=_points(gain.mean),
        minus_random_low=_points(gain.low),
        minus_random_high=_points(gain.high),
        ahead_of_random=f"{gain.wins} of {gain.pairs}",
        contender_minus=None if behind is None else _points(behind.mean),
        contender_low=None if behind is None else _points(behind.low),
        contender_high=None if behind is None else _points(behind.high),
        final_accuracy=_points(found.accuracy[:, -1].mean()),
        worst_class_recall=_points(found.final_worst_recall),
        labels_to_random=found.labels_to_reach,
        worst_ece=round(float(ece(results, found.strategy).max()), 4),
        query_cpu_seconds=round(found.query_cpu_seconds, 3),
    )


def ece(results: Sequence[CellResult], strategy: str) -> np.ndarray:
    """Mean over seeds by round from ECE_FROM labels on: (rounds,)"""
    runs = [r for r in results if r.cell.strategy == strategy]
    return np.array([[p.ece for p in run.points if p.labels >= ECE_FROM] for run in runs]).mean(axis=0)


def goals(summary: Summary, results: Sequence[CellResult], contender: str, peers: Sequence[str]) -> list[Goal]:
    """Those that one backbone's runs decide."""
    ours, name = _named(summary, contender), summary.backbone
    found = [_named(summary, peer) for peer in peers if peer in {f.strategy for f in summary.found}]
    goals = []
    if found:
        closest = min(found, key=lambda peer: against(ours, peer).low)
        nearest = against(ours, closest)
        goals.append(
            Goal(
                f"{name}: AUBC of {contender} minus every peer's ({len(found)}), the closest is {closest.strategy}",
                "above 0, interval excluding 0",
                said(nearest),
                nearest.low > 0,
            )
        )
    auto, worst = _named(summary, "auto"), summary.baseline.final_worst_recall
    goals.append(
        Goal(
            f"{name}: AUBC of auto minus random's",
            f">= +{GOAL_AUTO}, interval excluding 0",
            f"{said(auto.aubc_gain)}, ahead on {auto.aubc_gain.wins} of {auto.aubc_gain.pairs} seeds",
            round(100 * auto.aubc_gain.mean, 2) >= GOAL_AUTO and auto.aubc_gain.low > 0,
        )
    )
    goals.append(
        Goal(
            f"{name}: worst class recall of auto at the whole budget",
            f">= random's {100 * worst:.1f}%",
            f"{100 * auto.final_worst_recall:.1f}%",
            auto.final_worst_recall >= worst,
        )
    )
    return goals


def ece_goals(results: Sequence[CellResult], backbone: str, strategies: Sequence[str]) -> list[Goal]:
    largest = {strategy: float(ece(results, strategy).max()) for strategy in strategies}
    return [
        Goal(
            f"{backbone}: ECE of {strategy}, the worst round from {ECE_FROM} labels on",
            f"<= {GOAL_ECE}",
            f"{value:.3f}",
            value <= GOAL_ECE,
        )
        for strategy, value in largest.items()
    ]


def saving_goal(pipeline: Sequence[CellResult], summary: Summary, what: str) -> Goal:
    """Where the mean curve of `pipeline` reaches the accuracy that random ends with on the plain features."""
    target = float(summary.baseline.accuracy[:, -1].mean())
    labels = np.array([p.labels for p in pipeline[0].points])
    mean = np.array([[p.accuracy for p in run.points] for run in pipeline]).mean(axis=0)
    reached = labels_to_reach(labels, mean, target)
    return Goal(
        f"{summary.backbone}: labels of {what} for random's {100 * target:.1f}% at {int(summary.labels[-1])}",
        f"<= {GOAL_LABELS}",
        f"{reached}" if reached else f"not by {labels[-1]} ({100 * mean[-1]:.1f}%)",
        reached is not None and reached <= GOAL_LABELS,
    )


def said(difference: Paired) -> str:
    return f"{100 * difference.mean:+.2f} [{100 * difference.low:.2f}, {100 * difference.high:.2f}]"


def _named(summary: Summary, strategy: str) -> Found:
    return next(found for found in summary.found if found.strategy == strategy)


def _points(value: float) -> float:
    return round(100 * float(value), 2)
