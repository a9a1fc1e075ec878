"""Multinomial logistic regression: many fits on the same rows at once, such as the folds of a cross-validation.

Each of P problems minimises  strength * sum_n m_pn CE(softmax(x_n W_p), y_n) + |W_p without its bias|^2 / 2,
which is scikit-learn's LogisticRegression with C = strength. The problems differ in the row weights m alone, so
that one product with the rows serves all of them: several times faster than one fit after the other.

L-BFGS. Logits are linear in the weights, so a line search costs no product with the rows. Problems come first in all
arrays, (P, C, R) and (P, C, N): each one's part is contiguous, and a problem that is done leaves them. Everything is
computed in the rows' precision; float32 takes half the time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from services.trainer.lbfgs import History, dots

_MAX_ITERATIONS = 300
_SUFFICIENT_DECREASE = 1e-4
_MAX_HALVINGS = 30
_EXCLUDED = -1e30
# How far a loss may rise by rounding alone, as a share of it.
_ROUNDING = {np.float64: 1e-12, np.float32: 1e-6}


@dataclass(frozen=True)
class Rotation:
    """Rows in the axes of their own covariance, which makes the problem well scaled, and no wider than they need.

    |W| does not change under a rotation, and the best W has no part outside the rows' span (representer theorem):
    the fit is exact, in at most min(N, D) dimensions.
    """

    rows: np.ndarray  # (N, R)
    axes: np.ndarray  # (R, D)

    @staticmethod
    def of(rows: np.ndarray, look: Callable[[], None]) -> "Rotation":
        """(N, D) -> (N, R) and (R, D), by the eigenvectors of the smaller Gram matrix.

        `look` is called between the products, each of which takes a good part of a second at 1,500 x 1,280.
        """
        look()
        count, size = rows.shape
        if count < size:
            gram = rows @ rows.T
            look()
            values, left = np.linalg.eigh(gram)
            look()
            keep = values > values[-1] * 1e-12
            scale = np.sqrt(values[keep])
            return Rotation(left[:, keep] * scale, (left[:, keep] / scale).T @ rows)
        gram = rows.T @ rows
        look()
        values, right = np.linalg.eigh(gram)
        look()
        axes = right[:, values > values[-1] * 1e-12].T
        return Rotation(rows @ axes.T, axes)

    def leading(self, most: int) -> "Rotation":
        """At most this many axes, those along which the rows differ most."""
        return Rotation(self.rows[:, -most:], self.axes[-most:])  # eigh's values rise


def fit_logistic(
    rows: np.ndarray,
    classes: np.ndarray,
    row_weights: np.ndarray,
    class_count: int,
    strength: float,
    start: np.ndarray | None,
    tolerance: float | np.ndarray,
    look: Callable[[], None],
) -> np.ndarray:
    """(N, R) rows whose last column is 1, (N,) classes, (P, N) row weights -> weights (P, C, R).

    A class without a weighted row takes no part in its problem: its weights stay zero. `look` is called at
    least twice an iteration and may raise. `start`: weights of a similar fit. `tolerance`: of the largest entry of the
    gradient of the mean loss (scikit-learn's default is 1e-4), one for all or one for each problem.
    """
    return fit_soft(rows, np.eye(class_count)[classes], row_weights, strength, start, tolerance, look)


def fit_soft(
    rows: np.ndarray,
    targets: np.ndarray,
    row_weights: np.ndarray,
    strength: float,
    start: np.ndarray | None,
    tolerance: float | np.ndarray,
    look: Callable[[], None],
) -> np.ndarray:
    """As fit_logistic, with the probability of each class in the place of the class.

    `targets`: (N, C), or (N, P, C) when the problems differ in them.
    """
    problems = _Problems.of(rows, targets, row_weights, strength)
    count, class_count = len(row_weights), targets.shape[-1]
    shape = (count, class_count, rows.shape[1])
    found = np.zeros(shape, rows.dtype) if start is None else start.astype(rows.dtype)
    within, open_ = np.broadcast_to(tolerance, count), np.arange(count)
    point = problems.point(found, problems.logits(found))
    gradient, history = problems.gradient(point), History(problems.curvature(), class_count)
    for _ in range(_MAX_ITERATIONS):
        look()
        unfinished = problems.unfinished(gradient, within)
        if not unfinished.all():
            found[open_] = point.weights
            kept = np.flatnonzero(unfinished)
            open_, within, gradient = open_[kept], within[kept], gradient[kept]
            problems, point, history = problems.only(kept), point.only(kept), history.only(kept)
        if not len(open_):
            break
        step, point = _line_search(problems, point, *history.step(gradient), look)
        before, gradient = gradient, problems.gradient(point)
        history.add(step, gradient, before)
    found[open_] = point.weights
    return found


@dataclass(frozen=True)
class _Point:
    """Where the problems are, and what follows from it."""

    weights: np.ndarray  # (P, C, R)
    logits: np.ndarray  # (P, C, N)
    probabilities: np.ndarray  # (P, C, N)
    loss: np.ndarray  # float64 (P,)

    def only(self, kept: np.ndarray) -> "_Point":
        return _Point(self.weights[kept], self.logits[kept], self.probabilities[kept], self.loss[kept])


@dataclass(frozen=True)
class _Problems:
    rows: np.ndarray  # (N, R)
    targets: np.ndarray  # (C, N), or (P, C, N)
    importance: np.ndarray  # of each row, times the strength: (P, N)
    bias: np.ndarray  # of a class that takes no part a huge negative one: (P, C, 1)

    @staticmethod
    def of(rows: np.ndarray, targets: np.ndarray, row_weights: np.ndarray, strength: float) -> "_Problems":
        turned = np.ascontiguousarray(np.moveaxis(targets, 0, -1), rows.dtype)
        importance = np.asarray(strength * row_weights, rows.dtype)
        present = np.matmul(turned, importance[..., None])[..., 0] > 0  # (P, C)
        return _Problems(rows, turned, importance, np.where(present, 0, _EXCLUDED).astype(rows.dtype)[..., None])

    def only(self, kept: np.ndarray) -> "_Problems":
        targets = self.targets if self.targets.ndim == 2 else self.targets[kept]
        return replace(self, targets=targets, importance=self.importance[kept], bias=self.bias[kept])

    def logits(self, weights: np.ndarray) -> np.ndarray:
        """(P, C, R) -> (P, C, N)"""
        problems, classes, size = weights.shape
        return np.asarray((weights.reshape(-1, size) @ self.rows.T).reshape(problems, classes, -1))

    def point(self, weights: np.ndarray, logits: np.ndarray) -> _Point:
        allowed = logits + self.bias
        top = allowed.max(axis=1, keepdims=True)
        allowed -= top
        probabilities = np.exp(allowed, out=allowed)
        total = probabilities.sum(axis=1, keepdims=True)
        probabilities /= total
        # 0 x the huge logit of an excluded class is 0, as it should be: the bias is not among these logits.
        of_truth = np.einsum("pcn,cn->pn" if self.targets.ndim == 2 else "pcn,pcn->pn", logits, self.targets)
        entropy = (np.log(total) + top)[:, 0] - of_truth
        entropy = np.where(self.importance > 0, entropy, 0)
        decayed = weights[..., :-1]
        loss = np.einsum("pn,pn->p", self.importance, entropy, dtype=np.float64) + dots(decayed, decayed) / 2
        return _Point(weights, logits, probabilities, loss)

    def gradient(self, point: _Point) -> np.ndarray:
        """(P, C, R)"""
        residual = point.probabilities - self.targets
        residual *= self.importance[:, None]
        gradient = (residual.reshape(-1, residual.shape[-1]) @ self.rows).reshape(point.weights.shape)
        # The last weight is the bias, which is not regularised.
        gradient[..., :-1] += point.weights[..., :-1]
        return np.asarray(gradient)

    def curvature(self) -> np.ndarray:
        """Diagonal of the Hessian at zero weights, when the rows' columns are orthogonal: (P, 1, R)."""
        classes = self.targets.shape[-2]
        curvature = (1 - 1 / classes) / classes * (self.importance @ self.rows**2)
        curvature[:, :-1] += 1
        return np.asarray(curvature)[:, None]

    def unfinished(self, gradient: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
        """bool (P,)"""
        scale = np.maximum(self.importance.sum(axis=1, dtype=np.float64), 1e-300)
        steepest = np.maximum(gradient.max(axis=(1, 2)), -gradient.min(axis=(1, 2)))
        return np.asarray(steepest > tolerance * scale)


def _line_search(
    problems: _Problems, point: _Point, step: np.ndarray, slope: np.ndarray, look: Callable[[], None]
) -> tuple[np.ndarray, _Point]:
    """Halve each problem's step until the loss has fallen enough: the step that was taken, and where it leads.

    `slope`: product of step and gradient, not positive.
    """
    step_logits = problems.logits(step)
    size = np.ones(len(step))
    # The loss of a sum of many rows is known to about its rounding: it need not fall any further once it hardly moves.
    rounding = _ROUNDING[step.dtype.type] * np.abs(point.loss)
    for _ in range(_MAX_HALVINGS):
        look()
        scale = size[:, None, None].astype(step.dtype)
        there = problems.point(point.weights + scale * step, point.logits + scale * step_logits)
        bad = there.loss > point.loss + _SUFFICIENT_DECREASE * size * slope + rounding
        if not bad.any():
            break
        size = np.where(bad, size / 2, size)
    return scale * step, there
