"""Entropy: -sum_c p_c log p_c of the mean prediction.

Dagan & Engelson, "Committee-based sampling for training probabilistic classifiers", ICML 1995. O(N C) for the
scores, O(N) for the pick. Batches are the top scores; on CIFAR-10 with frozen features it is worse than
random sampling, because it looks for samples that resemble nothing.
"""

from services.trainer.strategies.core import by_score

ENTROPY = by_score("entropy")
