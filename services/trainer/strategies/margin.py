"""Margin: the smallest difference between the two most probable classes.

Scheffer, Decomain & Wrobel, "Active hidden Markov models for information extraction", IDA 2001. O(N C) for the
scores, O(N) for the pick. Batches are the top scores; of the plain uncertainty measures it is the one that is
rarely worse than random sampling.
"""

from services.trainer.strategies.core import by_score

MARGIN = by_score("margin")
