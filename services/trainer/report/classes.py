"""Numbers by class: how well each is told, how much of it was bought."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.trainer.evaluation import class_scores
from services.trainer.report.content import CampaignReport


@dataclass(frozen=True)
class ClassRow:
    """nan: the class was never predicted (precision), has no test sample (recall), or neither (F1)."""

    # Its place in the campaign's list, which is what large confusion matrices are marked with.
    number: int
    name: str
    precision: float
    recall: float
    f1: float
    # Test samples of it.
    support: int
    # Labels of it, and their share of all labels.
    bought: int
    share: float
    # Share of the pool; None where nobody knows.
    pool_share: float | None


@dataclass(frozen=True)
class MixUp:
    true: str
    predicted: str
    count: int
    # Of the test samples of the true class.
    share: float


def class_rows(report: CampaignReport) -> list[ClassRow]:
    """One for each class, in the campaign's order."""
    size = len(report.classes)
    counted = len(report.confusion) == size
    scores = class_scores(np.array(report.confusion, np.int64) if counted else np.zeros((size, size), np.int64))
    bought = report.rows[-1].class_counts if report.rows else {}
    total = sum(bought.values()) or 1
    return [
        ClassRow(
            number=i,
            name=name,
            precision=float(scores.precision[i]),
            recall=float(scores.recall[i]),
            f1=float(scores.f1[i]),
            support=int(scores.support[i]),
            bought=bought.get(name, 0),
            share=bought.get(name, 0) / total,
            pool_share=report.pool_shares.get(name) if report.pool_shares else None,
        )
        for i, name in enumerate(report.classes)
    ]


def mix_ups(confusion: Sequence[Sequence[int]], classes: Sequence[str], count: int = 10) -> list[MixUp]:
    """The most frequent confusions of two classes, largest first."""
    cells = np.array(confusion, np.int64).reshape(len(confusion), -1)
    wrong = cells.copy()
    np.fill_diagonal(wrong, 0)
    support = np.maximum(cells.sum(axis=1), 1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    places = [divmod(int(i), len(cells)) for i in order]
    return [
        MixUp(classes[r], classes[c], int(wrong[r, c]), float(wrong[r, c] / support[r]))
        for r, c in places
        if wrong[r, c]
    ]


@dataclass(frozen=True)
class Shares:
    """Class shares side by side: one column for each round, then all that was bought, then the pool where known."""

    columns: Sequence[str]
    # Classes, the largest of what was bought first; the last may stand for many.
    names: Sequence[str]
    shares: np.ndarray  # (names, columns), each column adding up to 1


def class_shares(report: CampaignReport, most: int = 10) -> Shares | None:
    """None where nothing was bought."""
    rounds = {n: counts for n, counts in sorted(report.bought.items()) if sum(counts.values())}
    if not rounds:
        return None
    table = [[counts.get(name, 0) for name in report.classes] for counts in rounds.values()]
    counts = np.array(table, float)  # (T, C)
    columns = [str(n) for n in rounds] + ["all"]
    counts = np.vstack([counts, counts.sum(axis=0)])
    if report.pool_shares:
        columns.append("pool")
        counts = np.vstack([counts, [report.pool_shares.get(name, 0.0) for name in report.classes]])
    shares = (counts / counts.sum(axis=1, keepdims=True)).T  # (C, columns)
    bought = columns.index("all")
    order = np.argsort(-shares[:, bought], kind="stable")
    names = [report.classes[i] for i in order]
    shares = shares[order]
    if len(names) > most:
        rest = len(names) - most + 1
        shares = np.vstack([shares[: most - 1], shares[most - 1 :].sum(axis=0)])
        names = [*names[: most - 1], f"{rest} others"]
    return Shares(columns, names, shares)
