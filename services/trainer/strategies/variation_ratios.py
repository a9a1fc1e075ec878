"""Variation ratios: the share of the committee that does not vote for the most popular class.

Freeman, "Elementary applied statistics", 1965; Gal, Islam & Ghahramani, ICML 2017. O(N K C) for the scores, O(N) for
the pick. Where we differ: with K members there are only K values, so that a batch would be arbitrary; samples of one
value are ordered by the margin of the committee's mean.
"""

from services.trainer.strategies.core import by_score

VARIATION_RATIOS = by_score("variation_ratios", needs_committee=True)
