"""The random slice: what out-of-fold predictions on randomly drawn labelled rows say of a model."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Slice:
    """One round's model on the randomly drawn rows, each predicted by a fit that has not seen it."""

    round_no: int
    # Labels that the round's model was fitted on, chosen ones too.
    labels: int
    # Sample id -> was the prediction the label?
    right: Mapping[str, bool]
    # Sample id -> predicted class; empty for rounds that did not keep it.
    predicted: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of_report(cls, round_no: int, report: Mapping[str, Any]) -> "Slice":
        """Takes nothing from a round's report but what belongs to randomly drawn rows."""
        return cls(round_no, report["labels"], report.get("out_of_fold", {}), report.get("out_of_fold_classes", {}))

    @property
    def rows(self) -> int:
        return len(self.right)

    @property
    def right_rows(self) -> int:
        return sum(self.right.values())

    @property
    def accuracy(self) -> float:
        return self.right_rows / self.rows


@dataclass(frozen=True)
class Gain:
    """A difference of two accuracies on the same rows."""

    mean: float
    error: float
    rows: int

    def upper(self, confidence: float) -> float:
        return self.mean + quantile(confidence) * self.error


def quantile(confidence: float) -> float:
    """Of the normal distribution: 1.645 for a one-sided 95%."""
    return NormalDist().inv_cdf(confidence)


def lower_bound(right: int, rows: int, confidence: float) -> float:
    """One-sided lower bound of a binomial share  (Wilson 1927)."""
    if not rows:
        return 0.0
    z, share = quantile(confidence), right / rows
    centre = share + z**2 / (2 * rows)
    spread = z * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return max(0.0, (centre - spread) / (1 + z**2 / rows))


def paired_gain(earlier: Slice, later: Slice) -> Gain:
    """Accuracy gained on the rows that both rounds have.

    Half a row is added to each of the four cells (Agresti & Min 2005): a few rows on which nothing changed do not
    prove that nothing will.
    """
    common = earlier.right.keys() & later.right.keys()
    gained = sum(later.right[i] and not earlier.right[i] for i in common)
    lost = sum(earlier.right[i] and not later.right[i] for i in common)
    rows = len(common) + 2
    mean = (gained - lost) / rows
    error = math.sqrt((gained + lost + 1) / rows - mean**2) / math.sqrt(rows)
    return Gain(mean, error, len(common))


def kappa(one: Slice, two: Slice) -> tuple[float, int] | None:
    """Cohen's kappa of two rounds' predictions on the rows that both have, and how many these are; None for no rows.

    1: they agree everywhere; 0: as often as chance would.
    """
    common = sorted(one.predicted.keys() & two.predicted.keys())
    if not common:
        return None
    a, b = (np.array([it.predicted[i] for i in common]) for it in (one, two))
    agreed = float(np.mean(a == b))
    by_chance = sum(float(np.mean(a == c) * np.mean(b == c)) for c in np.union1d(a, b))
    # All in one class: nothing but agreement is possible, and none is by skill.
    value = 1.0 if by_chance >= 1 else (agreed - by_chance) / (1 - by_chance)
    return value, len(common)


def covariance(slices: Iterable[Slice]) -> np.ndarray:
    """Of the slices' accuracies, (T, T).

    Most rows are in every slice, and a row that is hard stays hard: the accuracies err together. Variances are
    binomial, of shares drawn towards one half by one row each way, since no slice is certain.
    """
    slices = list(slices)
    shares = np.array([(it.right_rows + 1) / (it.rows + 2) for it in slices])
    deviation = np.sqrt(shares * (1 - shares) / [it.rows for it in slices])  # (T,)
    place = {sample: column for column, sample in enumerate(dict.fromkeys(i for it in slices for i in it.right))}
    residuals = np.zeros((len(slices), len(place)))  # from each slice's accuracy; 0 for rows that it has not
    for line, it in zip(residuals, slices, strict=True):
        right = np.fromiter(it.right.values(), float, it.rows)
        line[[place[i] for i in it.right]] = right - right.mean()
    together = residuals @ residuals.T
    scale = np.sqrt(np.diag(together))
    correlation = together / np.where(np.outer(scale, scale) > 0, np.outer(scale, scale), np.inf)
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(correlation * np.outer(deviation, deviation))


def slice_cost(slices: Iterable[Slice], strategy: str) -> str:
    """What the random slice takes of the budget, in a sentence."""
    measured = list(slices)
    if not measured:
        return "No labels are drawn at random yet."
    first, last = measured[0], measured[-1]
    later = last.rows - first.rows
    told = f"{last.rows:,} of {last.labels:,} labels ({last.rows / last.labels:.0%}) were drawn at random"
    if strategy == "random":
        return f"{told}: the strategy draws all of them so, and the slice costs nothing."
    return (
        f"{told}: {first.rows:,} in round {first.round_no} and {later:,} in later batches, "
        f"{later / last.labels:.0%} of the labels that {strategy.replace('_', ' ')} would have chosen itself. "
        "The randomly drawn ones alone decide on stopping, promotion and calibration."
    )
