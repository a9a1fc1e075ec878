"""Acquisition functions: how much would a label of this sample teach?  Higher is always more.

All take the members' class probabilities (N, K, C) and give float32 (N,). Settles & Craven 2008 (EMNLP)
compare the three; they look at the committee's mean, so that a plain head is the committee of one.
"""

from collections.abc import Callable

import numpy as np

from services.common.errors import BadRequest, did_you_mean, shown

Acquisition = Callable[[np.ndarray], np.ndarray]


def least_confidence(probabilities: np.ndarray) -> np.ndarray:
    """One minus the probability of the most probable class.  (N, K, C) -> (N,)"""
    return np.asarray(1.0 - probabilities.mean(axis=1).max(axis=1), dtype=np.float32)


def margin(probabilities: np.ndarray) -> np.ndarray:
    """One minus the lead of the most probable class over the next.  (N, K, C) -> (N,)"""
    top_two = np.partition(probabilities.mean(axis=1), -2, axis=1)[:, -2:]  # (N, 2), ascending
    return np.asarray(1.0 - (top_two[:, 1] - top_two[:, 0]), dtype=np.float32)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Predictive entropy in nats.  (N, K, C) -> (N,)"""
    mean = probabilities.mean(axis=1)  # (N, C)
    return np.asarray(-(mean * np.log(np.clip(mean, 1e-12, None))).sum(axis=1), dtype=np.float32)


ACQUISITIONS: dict[str, Acquisition] = {
    "least_confidence": least_confidence,
    "margin": margin,
    "entropy": entropy,
}


def acquisition_named(name: str) -> Acquisition:
    """Raises BadRequest, naming what there is."""
    if name not in ACQUISITIONS:
        raise BadRequest(
            f"no acquisition function {shown(name)}; {did_you_mean(name, ACQUISITIONS)} "
            f"(all: {', '.join(ACQUISITIONS)})"
        )
    return ACQUISITIONS[name]


def member_probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of each member.  (N, K, C) -> (N, K, C)"""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))
