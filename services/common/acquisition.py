"""Acquisition functions: how much would a label of this sample teach?  Higher is always more.

All take the members' class probabilities (N, K, C) and give float32 (N,). A plain head is a committee of one: for it
the functions of disagreement are zero, and those that count votes come down to the margin. Settles & Craven 2008
(EMNLP) compare most of them.
"""

from collections.abc import Callable

import numpy as np

from services.common.errors import BadRequest, did_you_mean, shown

Acquisition = Callable[[np.ndarray], np.ndarray]

# Votes are counted in levels this far apart, and the margin orders samples within one; committees of up to ten have
# no two levels nearer to each other. In nats and a power of two, so that level + margin is exact in float32.
_VOTE_LEVEL = 2.0**-10
# Just below 1: the least sure of one level stays below the next level.
_WITHIN_A_LEVEL = 0.999
_SMALLEST = np.float32(1e-12)
# From here on two passes for the maximum are faster than a partition.
_MANY_CLASSES = 64


def least_confidence(probabilities: np.ndarray) -> np.ndarray:
    """One minus the probability of the most probable class.  (N, K, C) -> (N,)"""
    return np.asarray(1.0 - _mean(probabilities).max(axis=1), dtype=np.float32)


def margin(probabilities: np.ndarray) -> np.ndarray:
    """One minus the lead of the most probable class over the next.  (N, K, C) -> (N,)"""
    first, second = _two_highest(_mean(probabilities))
    return np.asarray(1.0 - (first - second), dtype=np.float32)


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """Predictive entropy of the mean in nats; committees call it consensus entropy.  (N, K, C) -> (N,)"""
    return np.asarray(_entropy(_mean(probabilities)), dtype=np.float32)


def mean_std(probabilities: np.ndarray) -> np.ndarray:
    """Standard deviation over the members, averaged over classes.  (N, K, C) -> (N,)"""
    if probabilities.shape[1] == 1:
        return np.zeros(len(probabilities), np.float32)
    mean = _mean(probabilities)
    variance = np.zeros_like(mean)
    for member in range(probabilities.shape[1]):
        deviation = probabilities[:, member] - mean
        deviation *= deviation
        variance += deviation
    variance /= probabilities.shape[1]
    return np.asarray(np.sqrt(variance, out=variance).mean(axis=1), dtype=np.float32)


def variation_ratios(probabilities: np.ndarray) -> np.ndarray:
    """Share of votes that the winner did not get, equal ones ordered by margin.  (N, K, C) -> (N,)"""
    members = probabilities.shape[1]
    lost = members - _agreement(probabilities).max(axis=1)
    return np.asarray((lost + _WITHIN_A_LEVEL * margin(probabilities)) / members, dtype=np.float32)


def vote_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy of the members' votes in nats, equal ones ordered by margin.  (N, K, C) -> (N,)"""
    members = probabilities.shape[1]
    # Each class stands here once for each of its votes: -sum_c (V_c/K) log(V_c/K) = -mean_k log(V_k/K).
    entropies = -np.log(np.arange(1, members + 1) / members)[_agreement(probabilities) - 1].mean(axis=1)
    # Levels are whole numbers of steps; the small amount keeps rounding from taking one off.
    level = np.floor(entropies / _VOTE_LEVEL + 1e-6)
    return np.asarray(_VOTE_LEVEL * (level + _WITHIN_A_LEVEL * margin(probabilities)), dtype=np.float32)


def mean_kl(probabilities: np.ndarray) -> np.ndarray:
    """Mean KL divergence of the members from their mean: entropy of the mean less mean entropy, which is BALD.

    (N, K, C) -> (N,)
    """
    if probabilities.shape[1] == 1:
        return np.zeros(len(probabilities), np.float32)
    of_members = _entropy(probabilities).mean(axis=1)
    return np.asarray(np.maximum(_entropy(_mean(probabilities)) - of_members, 0), dtype=np.float32)


ACQUISITIONS: dict[str, Acquisition] = {
    "least_confidence": least_confidence,
    "margin": margin,
    "entropy": entropy,
    "consensus_entropy": entropy,
    "mean_std": mean_std,
    "variation_ratios": variation_ratios,
    "vote_entropy": vote_entropy,
    "mean_kl": mean_kl,
    "bald": mean_kl,
}


def acquisition_named(name: str) -> Acquisition:
    """Raises BadRequest, naming what there is."""
    if name not in ACQUISITIONS:
        raise BadRequest(f"no acquisition function {shown(name)}; {did_you_mean(name, ACQUISITIONS)}")
    return ACQUISITIONS[name]


def member_probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of each member.  (N, K, C) -> (N, K, C)"""
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exp / exp.sum(axis=-1, keepdims=True))


def _mean(probabilities: np.ndarray) -> np.ndarray:
    """The committee's mean; of one member itself, without a copy.  (N, K, C) -> (N, C)"""
    members = probabilities.shape[1]
    if members == 1:
        return np.asarray(probabilities[:, 0])
    # Whole members at a time: numpy's sum over a middle axis takes four times as long for ten classes.
    mean = probabilities[:, 0] + probabilities[:, 1]
    for member in range(2, members):
        mean += probabilities[:, member]
    mean /= members
    return np.asarray(mean)


def _two_highest(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most and the second most probable.  (N, C) -> (N,), (N,)"""
    if mean.shape[1] < _MANY_CLASSES:
        top_two = np.partition(mean, -2, axis=1)[:, -2:]  # ascending
        return top_two[:, 1], top_two[:, 0]
    rows, best = np.arange(len(mean)), mean.argmax(axis=1)
    others = mean.copy()
    others[rows, best] = -1
    return mean[rows, best], others.max(axis=1)


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Over the last axis.  (..., C) -> (...)"""
    logs = np.maximum(probabilities, _SMALLEST)
    np.log(logs, out=logs)
    return -np.asarray(np.einsum("...c,...c->...", probabilities, logs))


def _agreement(probabilities: np.ndarray) -> np.ndarray:
    """How many members vote as each member does, itself included.  (N, K, C) -> int64 (N, K)"""
    votes = probabilities.argmax(axis=2)
    return np.asarray(sum((votes == votes[:, member, None]).astype(np.int64) for member in range(votes.shape[1])))
