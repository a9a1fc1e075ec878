"""Query by committee, consensus (soft vote) entropy: the entropy of the committee's mean prediction.

McCallum & Nigam, ICML 1998; the name is modAL's. O(N K C) for the scores, O(N) for the pick. The same function as
`entropy`, which looks at the mean as well, under the name by which committees know it.
"""

from services.trainer.strategies.core import by_score

CONSENSUS_ENTROPY = by_score("consensus_entropy", needs_committee=True)
