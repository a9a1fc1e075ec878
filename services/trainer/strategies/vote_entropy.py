"""Query by committee, vote entropy: -sum_c (V_c / K) log(V_c / K), V_c of the K members vote for class c.

Seung, Opper & Sompolinsky, COLT 1992; Dagan & Engelson, ICML 1995. O(N K C) for the scores, O(N) for the pick.
Where we differ: samples of one vote level are ordered by the margin of the committee's mean, always below the next
level. Five members know seven levels, and a batch out of the highest one would be arbitrary.
"""

from services.trainer.strategies.core import by_score

VOTE_ENTROPY = by_score("vote_entropy", needs_committee=True)
