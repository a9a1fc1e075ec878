"""Temperature scaling: p = softmax(logits / T), T minimising the NLL of held-out rows (Guo et al. 2017)."""

import numpy as np

BOUNDS = (0.05, 20.0)
# Fewer rows than this say nothing about confidence.
FEWEST_ROWS = 20
_HALVINGS = 60
_GRID = 25
_SECTIONS = 30


def temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The best T for (N, C) or (N, K, C) out-of-fold logits of randomly drawn rows, within BOUNDS.

    1.0 for too few rows. With b = 1/T the NLL is convex, and its derivative is
    sum_n E_p(b)[logits_n] - logits_n[truth_n]: the root is found by halving.
    """
    if len(truth) < FEWEST_ROWS:
        return 1.0
    if logits.ndim == 3:
        if logits.shape[1] > 1:
            return _of_committee(logits, truth)
        logits = logits[:, 0]
    logits = logits.astype(np.float64)
    of_truth = logits[np.arange(len(truth)), truth].sum()

    def slope(inverse: float) -> float:
        return float((softmax(logits * inverse) * logits).sum() - of_truth)

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def _of_committee(logits: np.ndarray, truth: np.ndarray) -> float:
    """One T for all members, such that the mean of their probabilities is the likeliest.

    That loss is not convex in 1/T: the best of a grid, then golden section on either side of it.
    """

    def loss(log_t: float) -> float:
        return log_loss(logits / np.exp(log_t), truth)

    grid = np.linspace(np.log(BOUNDS[0]), np.log(BOUNDS[1]), _GRID)
    best = int(np.argmin([loss(log_t) for log_t in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    share = (5**0.5 - 1) / 2
    for _ in range(_SECTIONS):
        left, right = high - share * (high - low), low + share * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return float(np.exp((low + high) / 2))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def log_loss(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean of -log p[truth] in nats, p the softmax of (N, C) logits or its mean over the members of (N, K, C)."""
    if logits.ndim == 3:
        top = logits - logits.max(axis=-1, keepdims=True)
        of_truth = top[np.arange(len(truth)), :, truth] - np.log(np.exp(top).sum(axis=-1))  # (N, K)
        most = of_truth.max(axis=1)
        return float(-(np.log(np.exp(of_truth - most[:, None]).mean(axis=1)) + most).mean())
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(truth)), truth]).mean())
