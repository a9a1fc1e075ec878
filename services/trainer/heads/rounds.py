"""A committee from rounds: its members know the labels up to the newest round, the one before it, and so on.

They are the classifiers that the campaign went through, fitted anew beside each other: they share the axes and the C
that cross-validation chooses for one head of all rows. Disagreement shows what the newest labels have changed.
"""

import numpy as np

from services.trainer.heads.bootstrap import fit_weighted
from services.trainer.heads.core import HeadFit, HeadMethod, HeadTask
from services.trainer.learning import LabelledSamples


def _fit(task: HeadTask) -> HeadFit:
    known = known_by_round(task.labelled, task.members)
    return fit_weighted("rounds", task, lambda rows: (known & rows).astype(float))


def known_by_round(labelled: LabelledSamples, members: int) -> np.ndarray:
    """bool (K, N), the oldest member first: the rows that each one knows.

    K is `members`, or less while there have been fewer rounds or the first of them held one class only.
    """
    bought_in = np.zeros(len(labelled), np.int64) if labelled.rounds is None else labelled.rounds
    known = [bought_in <= round_no for round_no in np.unique(bought_in)[-members:]]
    return np.array([rows for rows in known if len(np.unique(labelled.classes[rows])) > 1])


ROUNDS = HeadMethod("rounds", _fit, committee=True)
