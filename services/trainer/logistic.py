"""Multinomial logistic regression: many fits on the same rows at once, such as the folds of a cross-validation.

Each of P problems minimises  strength * sum_n m_pn CE(softmax(x_n W_p), y_n) + |W_p without its bias|^2 / 2,
which is scikit-learn's LogisticRegression with C = strength. The problems differ in the row weights m alone, so
that one product with the rows serves all of them: several times faster than one fit after the other.

L-BFGS (Liu & Nocedal 1989). Logits are linear in the weights, so a line search costs no product with the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_MEMORY = 10
_MAX_ITERATIONS = 300
_SUFFICIENT_DECREASE = 1e-4
_MAX_HALVINGS = 30
_EXCLUDED = -1e30


@dataclass(frozen=True)
class Rotation:
    """Rows in the axes of their own covariance, which makes the problem well scaled, and no wider than they need.

    |W| does not change under a rotation, and the best W has no part outside the rows' span (representer theorem):
    the fit is exact, in at most min(N, D) dimensions.
    """

    rows: np.ndarray  # (N, R)
    axes: np.ndarray  # (R, D)

    @staticmethod
    def of(rows: np.ndarray) -> "Rotation":
        """(N, D) -> (N, R) and (R, D), by the eigenvectors of the smaller Gram matrix."""
        count, size = rows.shape
        if count < size:
            values, left = np.linalg.eigh(rows @ rows.T)
            keep = values > values[-1] * 1e-12
            scale = np.sqrt(values[keep])
            return Rotation(left[:, keep] * scale, (left[:, keep] / scale).T @ rows)
        values, right = np.linalg.eigh(rows.T @ rows)
        axes = right[:, values > values[-1] * 1e-12].T
        return Rotation(rows @ axes.T, axes)


def fit_logistic(
    rows: np.ndarray,
    classes: np.ndarray,
    row_weights: np.ndarray,
    class_count: int,
    strength: float,
    start: np.ndarray | None,
    tolerance: float,
    look: Callable[[], None],
) -> np.ndarray:
    """(N, R) rows whose last column is 1, (N,) classes, (P, N) row weights -> weights (R, P, C).

    A class without a weighted row takes no part in its problem: its weights stay zero. `look` is called once an
    iteration and may raise. `start`: weights of a similar fit. `tolerance`: of the largest entry of the gradient of
    the mean loss (scikit-learn's default is 1e-4).
    """
    problems = _Problems(rows, classes, row_weights, class_count, strength)
    weights = np.zeros((rows.shape[1], len(row_weights), class_count)) if start is None else start
    logits = problems.logits(weights)
    loss, gradient = problems.loss(logits, weights), problems.gradient(logits, weights)
    history = _History(problems.curvature())
    for _ in range(_MAX_ITERATIONS):
        look()
        open_ = problems.unfinished(gradient, tolerance)
        if not open_.any():
            break
        step = -history.apply(gradient) * open_[:, None]
        step, step_logits, loss = _line_search(problems, weights, logits, loss, gradient, step)
        weights, logits = weights + step, logits + step_logits
        before, gradient = gradient, problems.gradient(logits, weights)
        history.add(step, gradient - before)
    return weights


class _Problems:
    def __init__(
        self, rows: np.ndarray, classes: np.ndarray, row_weights: np.ndarray, class_count: int, strength: float
    ) -> None:
        self._rows = rows
        self._strength = strength
        self._one_hot = np.eye(class_count)[classes]  # (N, C)
        self._m = row_weights.T  # (N, P)
        present = row_weights @ self._one_hot > 0  # (P, C)
        self._bias = np.where(present, 0.0, _EXCLUDED)
        # The last row of the weights is the bias, which is not regularised.
        self._decay = np.ones((rows.shape[1], 1, 1))
        self._decay[-1] = 0

    def logits(self, weights: np.ndarray) -> np.ndarray:
        """(R, P, C) -> (N, P, C)"""
        size, problems, classes = weights.shape
        return np.asarray((self._rows @ weights.reshape(size, -1)).reshape(-1, problems, classes))

    def loss(self, logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(P,)"""
        logits = logits + self._bias
        top = logits.max(axis=-1)
        log_sum = np.log(np.exp(logits - top[..., None]).sum(axis=-1)) + top
        of_truth = np.einsum("npc,nc->np", logits, self._one_hot)
        # 0 x the huge logit of an excluded class is 0, as it should be.
        entropy = np.where(self._m > 0, log_sum - of_truth, 0.0)
        penalty = (self._decay * weights**2).sum(axis=(0, 2)) / 2
        return np.asarray(self._strength * (self._m * entropy).sum(axis=0) + penalty)

    def gradient(self, logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(R, P, C)"""
        logits = logits + self._bias
        exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
        residual = exp / exp.sum(axis=-1, keepdims=True) - self._one_hot[:, None]
        residual *= self._m[..., None] * self._strength
        flat = self._rows.T @ residual.reshape(len(residual), -1)
        return np.asarray(flat.reshape(weights.shape) + self._decay * weights)

    def curvature(self) -> np.ndarray:
        """Diagonal of the Hessian at zero weights, when the rows' columns are orthogonal: (R, P, 1)."""
        classes = self._one_hot.shape[1]
        spread = (1 - 1 / classes) / classes
        return np.asarray(self._strength * spread * ((self._rows**2).T @ self._m)[..., None] + self._decay)

    def unfinished(self, gradient: np.ndarray, tolerance: float) -> np.ndarray:
        """bool (P,)"""
        scale = self._strength * np.maximum(self._m.sum(axis=0), 1e-12)
        return np.asarray(np.abs(gradient).max(axis=(0, 2)) > tolerance * scale)


class _History:
    """The inverse Hessian as L-BFGS knows it, one for each problem."""

    def __init__(self, curvature: np.ndarray) -> None:
        self._inverse = 1 / curvature
        self._scale: np.ndarray | float = 1.0
        self._pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, step: np.ndarray, change: np.ndarray) -> None:
        product = _dot(step, change)
        useful = product > 1e-14
        # A problem that has stopped moving keeps its place in the arrays; rho = 0 takes it out of the sums.
        rho = np.where(useful, 1 / np.where(useful, product, 1.0), 0.0)
        self._pairs = [*self._pairs[-_MEMORY + 1 :], (step, change, rho)]
        length = _dot(change, self._inverse * change)
        self._scale = np.where(useful, product / np.where(length > 0, length, 1.0), self._scale)

    def apply(self, gradient: np.ndarray) -> np.ndarray:
        """The two-loop recursion.  (R, P, C) -> (R, P, C)"""
        direction = gradient.copy()
        shares = []
        for step, change, rho in reversed(self._pairs):
            share = rho * _dot(step, direction)
            direction -= share[:, None] * change
            shares.append(share)
        direction *= self._inverse * np.reshape(self._scale, (-1, 1))
        for (step, change, rho), share in zip(self._pairs, reversed(shares), strict=True):
            direction += (share - rho * _dot(change, direction))[:, None] * step
        return direction


def _line_search(
    problems: _Problems,
    weights: np.ndarray,
    logits: np.ndarray,
    loss: np.ndarray,
    gradient: np.ndarray,
    step: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Halve each problem's step until the loss has fallen enough: (step, its logits, the new loss)."""
    step_logits = problems.logits(step)
    slope = _dot(gradient, step)  # (P,), not positive
    size = np.ones(len(slope))
    for _ in range(_MAX_HALVINGS):
        scale = size[:, None]
        new_loss = problems.loss(logits + scale * step_logits, weights + scale * step)
        # The last term allows for rounding once the loss hardly changes any more.
        bad = new_loss > loss + _SUFFICIENT_DECREASE * size * slope + 1e-12 * np.abs(loss)
        if not bad.any():
            break
        size = np.where(bad, size / 2, size)
    return step * size[:, None], step_logits * size[:, None], new_loss


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(R, P, C), (R, P, C) -> (P,)"""
    return np.asarray(np.einsum("rpc,rpc->p", a, b))
