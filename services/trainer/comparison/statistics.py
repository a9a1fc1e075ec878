"""What may be said about paired curves: areas, differences with intervals, label savings, penalties.

Shapes: S strategies, n seeds, L budgets. Runs of the same seed began with the same labels: differences are taken seed
by seed, and only then averaged.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

_TWO_SIDED_95 = 0.975


@dataclass(frozen=True)
class Paired:
    """Mean of n paired differences with its 95% interval."""

    mean: float
    # Both nan for a single pair: one run shows no spread.
    low: float
    high: float
    # Pairs in which the difference is above zero, of so many.
    wins: int
    pairs: int

    @property
    def resolved(self) -> bool:
        """Does the interval leave zero out?"""
        return self.low > 0 or self.high < 0


def aubc(labels: np.ndarray, accuracies: np.ndarray) -> np.ndarray:
    """Area under the budget curve: 1 / (b_T - b_0) sum_t (a_t + a_t+1) / 2 (b_t+1 - b_t)  (Zhan et al. 2021).

    An average accuracy over the budget.  (L,), (..., L) -> (...)
    """
    steps = np.diff(labels)
    return np.asarray(((accuracies[..., :-1] + accuracies[..., 1:]) / 2 * steps).sum(axis=-1) / steps.sum())


def t_quantile(pairs: int) -> float:
    """Two-sided 95% quantile of Student's t with n - 1 degrees of freedom; nan for a single pair."""
    return float(stdtrit(pairs - 1, _TWO_SIDED_95)) if pairs > 1 else float("nan")


def paired_difference(ours: np.ndarray, baseline: np.ndarray) -> Paired:
    """mean(d) +- t sd(d) / sqrt(n), d = ours - baseline by seed.  (n,), (n,)"""
    d = ours - baseline
    half = t_quantile(len(d)) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else float("nan")
    mean = float(d.mean())
    return Paired(mean, float(mean - half), float(mean + half), int((d > 0).sum()), len(d))


def interval_of_mean(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% t interval of the mean over seeds: (n, L) -> its ends (L,), (L,); the mean itself for a single seed."""
    mean, count = values.mean(axis=0), len(values)
    if count < 2:
        return mean, mean
    half = t_quantile(count) * values.std(axis=0, ddof=1) / np.sqrt(count)
    return mean - half, mean + half


def labels_to_reach(labels: np.ndarray, mean_accuracy: np.ndarray, target: float) -> int | None:
    """The smallest measured budget at which a mean curve (L,) is at `target`; None when it never is.

    With `target` = random's final accuracy this is what label saving is read from.
    """
    there = np.flatnonzero(mean_accuracy >= target)
    return int(labels[there[0]]) if len(there) else None


def penalty_matrix(accuracies: np.ndarray) -> np.ndarray:
    """P[i, j]: share of the budgets at which strategy i beats strategy j  (Ash et al. 2020).

    i beats j where sqrt(n) mean(d) / sd(d) > t, d = accuracy_i - accuracy_j by seed, with the two-sided 95% quantile of
    n - 1 degrees of freedom (2.776 for 5 seeds). No correction for many comparisons: descriptive only. The first
    budget, which all strategies share, is the caller's to leave out.  (S, n, L) -> (S, S)
    """
    pairs = accuracies.shape[1]
    d = accuracies[:, None] - accuracies[None, :]  # (S, S, n, L)
    mean = d.mean(axis=2)
    if pairs < 2:
        return np.zeros(mean.shape[:2])
    # Multiplied out: a spread of zero (the same seeds lost by the same amount) needs no division.
    beaten = mean * np.sqrt(pairs) > t_quantile(pairs) * d.std(axis=2, ddof=1)
    return np.asarray((beaten & (mean > 0)).mean(axis=2))
