"""Temperature scaling: p = softmax(logits / T), T minimising the NLL of held-out rows (Guo et al. 2017)."""

import numpy as np

BOUNDS = (0.05, 20.0)
# Fewer rows than this say nothing about confidence.
FEWEST_ROWS = 20
_HALVINGS = 60


def temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The best T for (N, C) out-of-fold logits of randomly drawn rows, within BOUNDS; 1.0 for too few rows.

    With b = 1/T the NLL is convex, and its derivative is sum_n E_p(b)[logits_n] - logits_n[truth_n]:
    the root is found by halving.
    """
    if len(truth) < FEWEST_ROWS:
        return 1.0
    logits = logits.astype(np.float64)
    of_truth = logits[np.arange(len(truth)), truth].sum()

    def slope(inverse: float) -> float:
        return float((softmax(logits * inverse) * logits).sum() - of_truth)

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def log_loss(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean of -log softmax(logits)[truth], in nats.  (N, C), (N,)"""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(truth)), truth]).mean())
