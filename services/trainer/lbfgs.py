"""Limited-memory quasi-Newton steps (Liu & Nocedal 1989) for many problems at once.

The two loops run on inner products alone (Chen et al. 2014): a step reads the stored pairs twice, as two products of
matrices, where the textbook's recursion reads each of them four times.
"""

from typing import Self

import numpy as np

_MEMORY = 10
# Below this a step and its change of the gradient say nothing about the curvature.
_SMALLEST_PRODUCT = 1e-14


class History:
    """The inverse Hessian of each of P problems, as their last steps show it.

    `s` are steps, `y` the changes of the gradient along them, and H the diagonal that a problem begins with.
    """

    def __init__(self, curvature: np.ndarray, class_count: int) -> None:
        """`curvature`: a guess at the Hessian's diagonal, (P, 1, R) for gradients of (P, C, R)."""
        problems, _, size = curvature.shape
        self._inverse = 1 / curvature  # H
        self._scale = np.ones(problems)
        self._order: list[int] = []  # places of the pairs, the oldest first
        self._s, self._hy = (np.zeros((problems, _MEMORY, class_count * size), curvature.dtype) for _ in range(2))
        # 1 / s.y, and s.g and Hy.g of the newest gradient: (P, M).
        self._rho, self._sg, self._hyg = (np.zeros((problems, _MEMORY)) for _ in range(3))
        # s_i.y_j where i is not newer than j, and y_i.Hy_j: (P, M, M).
        self._sy, self._yhy = (np.zeros((problems, _MEMORY, _MEMORY)) for _ in range(2))

    def only(self, kept: np.ndarray) -> Self:
        """The same for some of the problems, by their places."""
        it = object.__new__(type(self))
        it.__dict__ = {name: part[kept] if isinstance(part, np.ndarray) else part for name, part in vars(self).items()}
        return it

    def step(self, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(P, C, R) -> the step to try, (P, C, R), and its product with the gradient, float64 (P,), not positive."""
        preconditioned = self._inverse * gradient
        scale = self._scale[:, None]
        if not self._order:
            return -preconditioned, -dots(gradient, preconditioned)
        of_s, of_hy = self._shares()
        step = scale.astype(gradient.dtype) * flat(preconditioned)
        step += _combined(of_hy, self._hy)
        step += _combined(of_s, self._s)
        slope = self._scale * dots(gradient, preconditioned)
        slope += (of_hy * self._hyg).sum(axis=1) + (of_s * self._sg).sum(axis=1)
        return -step.reshape(gradient.shape), -slope

    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        """What the step is made of beside the scaled H g: shares of each s and of each Hy, (P, M) both."""
        taken, given = np.zeros_like(self._rho), np.zeros_like(self._rho)
        for i in reversed(self._order):
            taken[:, i] = self._rho[:, i] * (self._sg[:, i] - (taken * self._sy[:, i]).sum(axis=1))
        of_y = self._scale[:, None] * (self._hyg - (self._yhy @ taken[..., None])[..., 0])
        for i in self._order:
            given[:, i] = taken[:, i] - self._rho[:, i] * (of_y[:, i] + (given * self._sy[:, :, i]).sum(axis=1))
        return given, -self._scale[:, None] * taken

    def add(self, step: np.ndarray, gradient: np.ndarray, before: np.ndarray) -> None:
        """`step` was taken, and the gradient is now `gradient`; all (P, C, R)."""
        change = gradient - before
        preconditioned = self._inverse * change
        i = len(self._order) if len(self._order) < _MEMORY else self._order[0]  # the oldest makes room
        self._order = [*self._order[-_MEMORY + 1 :], i]
        self._s[:, i], self._hy[:, i] = flat(step), flat(preconditioned)
        sg, hyg = _products(self._s, gradient), _products(self._hy, gradient)
        product, length = dots(step, change), dots(change, preconditioned)
        # The products with y are those with the new gradient less those with the last one.
        self._sy[:, i] = 0
        self._sy[:, :, i] = sg - self._sg
        self._sy[:, i, i] = product
        self._yhy[:, i] = self._yhy[:, :, i] = hyg - self._hyg
        self._yhy[:, i, i] = length
        self._sg, self._hyg = sg, hyg
        useful = product > _SMALLEST_PRODUCT
        self._rho[:, i] = np.where(useful, 1 / np.where(useful, product, 1.0), 0.0)
        self._scale = np.where(useful, product / np.where(length > 0, length, 1.0), self._scale)


def flat(blocks: np.ndarray) -> np.ndarray:
    """(P, C, R) -> (P, C x R)"""
    return blocks.reshape(len(blocks), -1)


def dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, C, R), (P, C, R) -> float64 (P,)"""
    return _products(flat(a)[:, None], b)[:, 0]


def _products(pairs: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """(P, M, C x R), (P, C, R) -> float64 (P, M)"""
    return np.asarray((pairs @ flat(blocks)[..., None])[..., 0], np.float64)


def _combined(shares: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(P, M), (P, M, C x R) -> (P, C x R)"""
    return np.asarray((shares.astype(pairs.dtype)[:, None] @ pairs)[:, 0])
