"""Query by committee, mean KL: (1/K) sum_k KL(p^k || p), how far the members are from their mean p.

McCallum & Nigam, ICML 1998. The sum is H(p) - (1/K) sum_k H(p^k), which is BALD (Houlsby et al. 2011; Gal, Islam &
Ghahramani, ICML 2017) when the members are draws from a posterior: one function under both names. O(N K C) for the
scores, O(N) for the pick. Zero everywhere for a single model. Batches of its top scores were far below random
sampling on CIFAR-10 with bootstrapped heads: it finds the few samples on which a thin committee disagrees wildly.
"""

from services.trainer.strategies.core import by_score

MEAN_KL = by_score("mean_kl", needs_committee=True)
BALD = by_score("bald", needs_committee=True)
