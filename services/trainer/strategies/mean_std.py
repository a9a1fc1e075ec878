"""Mean standard deviation: (1/C) sum_c sqrt(mean_k (p_c^k)^2 - p_c^2), how far the members' probabilities spread.

Kampffmeyer, Salberg & Jenssen, CVPR workshops 2016; Gal, Islam & Ghahramani, ICML 2017 compare it. O(N K C) for the
scores, O(N) for the pick. Zero everywhere for a single model, which is why it wants a committee.
"""

from services.trainer.strategies.core import by_score

MEAN_STD = by_score("mean_std", needs_committee=True)
