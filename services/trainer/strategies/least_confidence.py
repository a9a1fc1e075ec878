"""Least confidence: 1 - max_c p_c.

Lewis & Gale, "A sequential algorithm for training text classifiers", SIGIR 1994. O(N C) for the scores, O(N)
for the pick. Batches are the top scores, as in most studies; nothing keeps near-duplicates apart, and on
CIFAR-10 with frozen features it is worse than random sampling.
"""

from services.trainer.strategies.core import by_score

LEAST_CONFIDENCE = by_score("least_confidence")
