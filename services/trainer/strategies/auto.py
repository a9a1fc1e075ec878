"""Auto: what stands for most of the pool while labels are few, then what stands for most of the model's doubts.

Both are uncertainty herding (see herding.py), which goes from the one to the other by itself as its kernel narrows:
with few labels the same samples are doubtful and typical. Only a model of a handful of labels has no doubts worth the
name; until half of the classes have ENOUGH labels each, every sample of the pool weighs the same, which is MaxHerding
(Bae, Oh & Sutherland, ECCV 2024). The switch looks at bought labels only. Costs what `uncertainty_herding` costs.

docs/strategies.md has the table that it was chosen by, on five seeds of CIFAR-10.
"""

from dataclasses import replace

import numpy as np

from services.trainer.strategies.core import ScoredPool, Strategy
from services.trainer.strategies.herding import pick_uncertainty_herding

# Labels of the median class.
ENOUGH = 5


def pick_auto(pool: ScoredPool, budget: int, rng: np.random.Generator) -> list[str]:
    known = pool.labelled_classes[pool.labelled_classes >= 0]
    median = float(np.median(np.bincount(known, minlength=pool.class_count)))
    few = median < ENOUGH
    pool.tell(
        f"{'representative samples' if few else 'uncertainty herding'}: the median class has {median:g} of "
        f"{len(known)} labels, {'fewer than' if few else 'at least'} {ENOUGH}"
    )
    if few:
        pool = replace(pool, scores=np.ones(len(pool.ids), np.float32))
    return pick_uncertainty_herding(pool, budget, rng)


# Before there is a model its scores are all equal, and nobody looks at them.
AUTO = Strategy("auto", pick_auto, acquisition="margin", uses_embeddings=True)
