"""Random sampling: a uniform draw without replacement, the baseline that every other strategy is compared with. O(N)"""

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy


def pick_random(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    """A uniform draw without replacement."""
    chosen = rng.choice(len(pool.ids), size=min(budget, len(pool.ids)), replace=False)
    return [pool.ids[i] for i in chosen]


RANDOM = Strategy("random", pick_random)
