"""Stochastic batches: a draw without replacement with chances in proportion to score^beta, here of the margin.

Kirsch, Farquhar, Atighehchian, Jesson, Branchaud-Charron & Gal, "Stochastic batch acquisition", TMLR 2023: the top B
of beta log s_i + G_i with Gumbel noise G_i is such a draw. O(N). As cheap as the margin itself, and its batches are
not all of one kind: scores say how likely a sample is to be worth a label, not that the first B are.
"""

import numpy as np

from services.trainer.strategies.core import ScoredPool, by_score, highest

BETA = 1.0


def pick_power_margin(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    assert pool.scores is not None
    scores = np.clip(np.asarray(pool.scores, np.float64), 1e-12, None)
    noisy = BETA * np.log(scores) + rng.gumbel(size=len(scores))
    return [pool.ids[i] for i in highest(noisy, budget, rng)]


POWER_MARGIN = by_score("power_margin", "margin", pick_power_margin)
