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
    tolerance: float,
    look: Callable[[], None],
) -> np.ndarray:
    """(N, R) rows whose last column is 1, (N,) classes, (P, N) row weights -> weights (R, P, C).

    A class without a weighted row takes no part in its problem: its weights stay zero. `look` is called at
    least twice an iteration and may raise. `start`: weights of a similar fit. `tolerance`: of the largest entry of the
    gradient of the mean loss (scikit-learn's default is 1e-4).
    """
    return fit_soft(rows, np.eye(class_count)[classes], row_weights, strength, start, tolerance, look)


def fit_soft(
    rows: np.ndarray,
    targets: np.ndarray,
    row_weights: np.ndarray,
    strength: float,
    start: np.ndarray | None,
    tolerance: float,
    look: Callable[[], None],
) -> np.ndarray:
    """As fit_logistic, with the probability of each class in the place of the class.

    `targets`: (N, C), or (N, P, C) when the problems differ in them.
    """
    problems = _Problems(rows, targets, row_weights, strength)
    weights = np.zeros((rows.shape[1], len(row_weights), targets.shape[-1])) if start is None else start
    logits = problems.logits(weights)
    loss, gradient = problems.loss(logits, weights), problems.gradient(logits, weights)
    history = _History(problems.curvature())
    for _ in range(_MAX_ITERATIONS):
        look()
        open_ = problems.unfinished(gradient, tolerance)
        if not open_.any():
            break
        step = -history.apply(gradient) * open_[:, None]
        step, step_logits, loss = _line_search(problems, weights, logits, loss, gradient, step, look)
        weights, logits = weights + step, logits + step_logits
        before, gradient = gradient, problems.gradient(logits, weights)
        history.add(step, gradient - before)
    return weights


class _Problems:
    def __init__(self, rows: np.ndarray, targets: np.ndarray, row_weights: np.ndarray, strength: float) -> None:
        self._rows = rows
        self._strength = strength
        self._targets = targets  # (N, C) or (N, P, C)
        self._axes = "nc" if targets.ndim == 2 else "npc"
        self._m = row_weights.T  # (N, P)
        present = np.einsum(f"np,{self._axes}->pc", self._m, targets, optimize=True) > 0
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
        of_truth = np.einsum(f"npc,{self._axes}->np", logits, self._targets)
        # 0 x the huge logit of an excluded class is 0, as it should be.
        entropy = np.where(self._m > 0, log_sum - of_truth, 0.0)
        penalty = (self._decay * weights**2).sum(axis=(0, 2)) / 2
        return np.asarray(self._strength * (self._m * entropy).sum(axis=0) + penalty)

    def gradient(self, logits: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(R, P, C)"""
        logits = logits + self._bias
        exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
        targets = self._targets[:, None] if self._axes == "nc" else self._targets
        residual = exp / exp.sum(axis=-1, keepdims=True) - targets
        residual *= self._m[..., None] * self._strength
        flat = self._rows.T @ residual.reshape(len(residual), -1)
        return np.asarray(flat.reshape(weights.shape) + self._decay * weights)

    def curvature(self) -> np.ndarray:
        """Diagonal of the Hessian at zero weights, when the rows' columns are orthogonal: (R, P, 1)."""
        classes = self._targets.shape[-1]
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
    look: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Halve each problem's step until the loss has fallen enough: (step, its logits, the new loss)."""
    step_logits = problems.logits(step)
    slope = _dot(gradient, step)  # (P,), not positive
    size = np.ones(len(slope))
    for _ in range(_MAX_HALVINGS):
        look()
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
