"""A network of one hidden layer in plain numpy: Adam, dropout on the hidden units, decay (Loshchilov & Hutter 2019).

scipy's L-BFGS has no dropout, and torch would be imported for a problem that fits into a core's cache.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

UNITS = 256
KEPT = 0.5
_BATCH = 64
_RATE = 1e-3
_DECAY = 0.05
_EXCLUDED = np.float32(-1e30)
_MOMENTS = (0.9, 0.999)


@dataclass(frozen=True)
class Network:
    inner: np.ndarray  # (R, H)
    inner_bias: np.ndarray  # (H,)
    outer: np.ndarray  # (H, C)
    outer_bias: np.ndarray  # (C,)

    def units(self, rows: np.ndarray) -> np.ndarray:
        """(N, R) -> (N, H)"""
        return np.asarray(np.maximum(rows @ self.inner + self.inner_bias, 0))

    def logits(self, rows: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """(N, R), (K, H) factors of the hidden units -> (N, K, C)"""
        by_member = np.einsum("nh,kh,hc->nkc", self.units(rows), masks, self.outer, optimize=True)
        return np.asarray(by_member + self.outer_bias)


def train(
    rows: np.ndarray,
    classes: np.ndarray,
    class_count: int,
    size: int,
    steps: Sequence[int],
    rng: np.random.Generator,
    look: Callable[[], None],
) -> list[Network]:
    """(N, R) rows, (N,) classes -> the network after each number of `steps`.

    `size`: D of the embedding that the rows were rotated from; it decides how large the first weights are. A class
    without a row stays out: its outer weights and bias are 0. `look` is called at least every 20 steps.
    """
    rows = rows.astype(np.float32)
    one_hot = np.eye(class_count, dtype=np.float32)[classes]
    excluded = np.where(one_hot.any(axis=0), np.float32(0), _EXCLUDED)
    weights = [
        rng.normal(0, (2 / size) ** 0.5, (rows.shape[1], UNITS)).astype(np.float32),
        np.zeros(UNITS, np.float32),
        (rng.normal(0, (1 / UNITS) ** 0.5, (UNITS, class_count)) * one_hot.any(axis=0)).astype(np.float32),
        np.zeros(class_count, np.float32),
    ]
    adam = _Adam(weights)
    batches = _batches(len(rows), rng)
    networks = []
    for step in range(1, max(steps) + 1):
        if step % 20 == 1:
            look()
        batch = next(batches)
        adam.step(_gradient(weights, rows[batch], one_hot[batch], excluded, rng))
        if step in steps:
            networks.append(Network(*(w.copy() for w in weights)))
    return networks


def _gradient(
    weights: list[np.ndarray], rows: np.ndarray, one_hot: np.ndarray, excluded: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    inner, inner_bias, outer, outer_bias = weights
    before = rows @ inner + inner_bias  # (B, H)
    # The same dropout in both directions; units that stay are raised, so that the mean is that of the whole network.
    kept = (rng.random(before.shape, np.float32) < KEPT) * np.float32(1 / KEPT) * (before > 0)
    units = before * kept
    logits = units @ outer + outer_bias + excluded
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual = (exp / exp.sum(axis=1, keepdims=True) - one_hot) / np.float32(len(rows))  # (B, C)
    back = (residual @ outer.T) * kept
    return [rows.T @ back, back.sum(axis=0), units.T @ residual, residual.sum(axis=0)]


def _batches(count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    while True:
        order = rng.permutation(count)
        for first in range(0, count, _BATCH):
            yield order[first : first + _BATCH]


class _Adam:
    """Moves `weights` in place."""

    def __init__(self, weights: list[np.ndarray]) -> None:
        self._weights = weights
        self._first = [np.zeros_like(w) for w in weights]
        self._second = [np.zeros_like(w) for w in weights]
        self._steps = 0

    def step(self, gradient: list[np.ndarray]) -> None:
        self._steps += 1
        slow, slower = _MOMENTS
        rate = _RATE * (1 - slower**self._steps) ** 0.5 / (1 - slow**self._steps)
        for w, g, first, second in zip(self._weights, gradient, self._first, self._second, strict=True):
            first += (1 - slow) * (g - first)
            second += (1 - slower) * (g * g - second)
            if w.ndim == 2:  # biases are not decayed
                w *= 1 - _RATE * _DECAY
            w -= rate * first / (np.sqrt(second) + 1e-8)
