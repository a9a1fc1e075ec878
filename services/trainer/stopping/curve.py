"""The learning curve: accuracy = a - b n^-c for n labels, an inverse power law (Figueroa et al. 2012).

Fitted to the random slice's accuracy of each round, weighted by its binomial variance. Intervals come from a parametric
bootstrap: accuracies are drawn around the fit and fitted again. Where we differ from the usual one: the draws err
together, as rounds that share most of their rows do; independent draws would make the intervals too narrow.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.trainer.stopping.slices import Slice, covariance

# Three parameters need a point more than they are.
FEWEST_ROUNDS = 4
REFITS = 1000
_SEED = 20_090_521
_EXPONENTS = np.geomspace(0.05, 2.0, 60)
_INTERVAL = (0.025, 0.975)
# This many times the labels measured so far are as good as never: no fit sees so far.
_FARTHEST = 100


@dataclass(frozen=True)
class LearningCurve:
    """a - b (n / labels)^-c, and the same fitted to `REFITS` draws."""

    # Labels of the newest round.
    labels: int
    first_labels: int
    fit: np.ndarray  # (3,): a, b, c
    refits: np.ndarray  # (REFITS, 3)
    # How far accuracy rose over the rounds that were measured, and the standard error of that.
    rise: float
    rise_error: float

    def at(self, labels: float) -> float:
        return float(_value(self.fit[None], labels / self.labels)[0])

    def interval(self, labels: float) -> tuple[float, float]:
        """95% interval of the accuracy with that many labels."""
        return _interval(_value(self.refits, labels / self.labels))

    @property
    def end(self) -> float:
        """The accuracy that no number of labels gets beyond."""
        return float(self.fit[0])

    @property
    def end_interval(self) -> tuple[float, float]:
        return _interval(self.refits[:, 0])

    @property
    def flat(self) -> bool:
        """Accuracy rose by less than its own standard error: the fit is one of noise."""
        return self.rise < self.rise_error

    def gain(self, more: int) -> float:
        """Accuracy that `more` labels are expected to bring."""
        return self.at(self.labels + more) - self.at(self.labels)

    def gain_below(self, more: int, confidence: float) -> float:
        """One-sided upper bound of `gain`."""
        gains = _value(self.refits, 1 + more / self.labels) - _value(self.refits, 1.0)
        return float(np.quantile(gains, confidence))

    def more_for(self, target: float) -> tuple[float, float, float]:
        """Labels to buy until `target`: of the fit, and its 95% interval; inf where it is as good as never reached."""
        share = _share_for(np.vstack([self.fit, self.refits]), target)
        more = np.maximum(0.0, self.labels * (np.where(share > _FARTHEST, np.inf, share) - 1))
        low, high = np.quantile(more[1:], _INTERVAL, method="nearest")
        return float(more[0]), float(low), float(high)


@dataclass(frozen=True)
class Forecast:
    """The answer to "how many more labels for this accuracy?"."""

    target: float
    # None: never, or nobody can say; `told` says which.
    more: int | None
    low: int | None
    high: int | None
    told: str


def fit_curve(slices: Sequence[Slice]) -> LearningCurve | None:
    """None for fewer than FEWEST_ROUNDS different numbers of labels. Same slices, same curve."""
    # The newest round of a number of labels: it has seen them all.
    by_labels = {it.labels: it for it in slices if it.rows}
    points = [by_labels[n] for n in sorted(by_labels)]
    if len(points) < FEWEST_ROUNDS:
        return None
    labels = np.array([it.labels for it in points], float)
    accuracy = np.array([it.accuracy for it in points])
    spread = covariance(points)
    weights = 1 / np.diag(spread)
    share = labels / labels[-1]
    fit = _least_squares(share, accuracy[None], weights)[0]
    # A square root of the covariance, also where it has no inverse.
    values, vectors = np.linalg.eigh(spread)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    noise = np.random.default_rng(_SEED).normal(size=(REFITS, len(points))) @ root.T
    drawn = np.clip(_value(fit[None], share[:, None]).ravel() + noise, 0.0, 1.0)
    rise_variance = spread[0, 0] + spread[-1, -1] - 2 * spread[0, -1]
    return LearningCurve(
        labels=points[-1].labels,
        first_labels=points[0].labels,
        fit=fit,
        refits=_least_squares(share, drawn, weights),
        rise=float(accuracy[-1] - accuracy[0]),
        rise_error=math.sqrt(max(float(rise_variance), 0.0)),
    )


def forecast(slices: Sequence[Slice], target: float) -> Forecast:
    """How many more labels for `target`, or why that cannot be said."""
    curve = fit_curve(slices)
    if curve is None:
        measured = len({it.labels for it in slices if it.rows})
        told = (
            f"cannot say yet: the curve needs {FEWEST_ROUNDS} rounds with randomly drawn labels, there are {measured}"
        )
        return Forecast(target, None, None, None, told)
    now = curve.at(curve.labels)
    if now >= target:
        stands = f"{now:.1%} {_span(curve.interval(curve.labels))}"
        return Forecast(target, 0, 0, None, f"reached, by the fit: it stands at {stands} with {curve.labels:,} labels")
    if curve.flat:
        told = (
            f"cannot say: from {curve.first_labels:,} to {curve.labels:,} labels accuracy has moved by "
            f"{100 * curve.rise:+.1f} points, with a standard error of {100 * curve.rise_error:.1f}"
        )
        return Forecast(target, None, None, None, told)
    more, low, high = curve.more_for(target)
    least = _whole(low)
    if math.isinf(more):
        return Forecast(target, None, least, None, _out_of_reach(curve, target))
    return Forecast(target, _whole(more), least, _whole(high), _number_told(curve, more, low, high))


def next_marks(slices: Sequence[Slice], count: int = 3, step: float = 0.05) -> list[float]:
    """Round accuracies above the newest slice's: what a reader would ask for next."""
    if not slices:
        return []
    above = math.floor(round(slices[-1].accuracy / step, 6)) + 1
    return [round(step * (above + i), 6) for i in range(count) if step * (above + i) < 1 - 1e-9]


def _out_of_reach(curve: LearningCurve, target: float) -> str:
    end = f"the fit ends at {curve.end:.1%} {_span(curve.end_interval)}"
    if curve.end > target:
        return f"not within reach: {end}, and takes more than {_FARTHEST} times the labels measured so far to get there"
    if curve.end_interval[1] > target:
        return f"not within reach: {end}; the interval goes beyond it, so more randomly drawn labels may tell otherwise"
    return f"not within reach: {end}"


def _number_told(curve: LearningCurve, more: float, low: float, high: float) -> str:
    upper = f"to {_rounded(high)}" if math.isfinite(high) else "up, without end"
    told = f"about {_rounded(more)} more labels (95% interval: {_rounded(low)} {upper})"
    times = 1 + more / curve.labels
    return told if times <= 4 else f"{told}; that is {times:.0f} times the labels measured so far, so a guess"


def _whole(more: float) -> int | None:
    return math.ceil(more - 1e-9) if math.isfinite(more) else None


def _rounded(more: float) -> str:
    """Two digits: no fit knows a third."""
    return f"{float(f'{math.ceil(more - 1e-9):.2g}'):,.0f}"


def _span(interval: tuple[float, float]) -> str:
    return f"[{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"


def _value(parameters: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """a - b share^-c.  (R, 3), a share of the newest number of labels or (T, 1) of them -> (R,) or (T, R)"""
    a, b, c = parameters.T
    return np.asarray(a - b * np.asarray(share) ** -c)


def _share_for(parameters: np.ndarray, target: float) -> np.ndarray:
    """Where a - b share^-c is `target`, (R, 3) -> (R,): inf where it never is."""
    a, b, c = parameters.T
    room = a - target
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(room > 1e-9, (b / np.maximum(room, 1e-9)) ** (1 / c), np.inf)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, _INTERVAL)
    return float(low), float(high)


def _least_squares(share: np.ndarray, accuracy: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The best a, b, c of each row: shares (T,), accuracies (R, T), weights (T,) -> (R, 3), with a <= 1 and b >= 0.

    For a given exponent the curve is a line in share^-c and has a closed form; the exponent comes from a grid.
    """
    x = share ** -_EXPONENTS[:, None]  # (G, T)
    total = weights.sum()
    mean_x = (x @ weights / total)[:, None]  # (G, 1)
    mean_y = (accuracy @ weights / total)[None]  # (1, R)
    across = (x - mean_x) * weights  # (G, T)
    slope = across @ accuracy.T / (across * (x - mean_x)).sum(axis=1, keepdims=True)  # (G, R)
    slope = np.minimum(slope, 0.0)
    a = mean_y - slope * mean_x
    # Through an end of 1 where the free line would end above it.
    capped = np.minimum((x * weights) @ (accuracy - 1).T / (x**2 @ weights)[:, None], 0.0)
    slope, a = np.where(a > 1, capped, slope), np.minimum(a, 1.0)
    residuals = a[..., None] + slope[..., None] * x[:, None] - accuracy[None]  # (G, R, T)
    best = (residuals**2 @ weights).argmin(axis=0)  # (R,)
    rows = np.arange(len(accuracy))
    return np.column_stack([a[best, rows], -slope[best, rows], _EXPONENTS[best]])
