"""The head teaches itself: its most confident predictions of unlabelled rows become labels (Lee 2013).

The threshold is each predicted class's own quantile, lowered from stage to stage (curriculum labelling,
Cascante-Bonilla et al. 2021): a head of 100 labels is sure of nothing, one of 1,500 of nearly everything, and a fixed
probability would pass no row or only those of the easy classes.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np

from services.trainer.calibration import softmax
from services.trainer.heads.core import HeadFit, HeadMethod, HeadTask, absent_bias
from services.trainer.heads.pool_taught import Classroom, Lesson, Teach, fit_taught

# Share of each predicted class that passes the threshold, stage by stage.
_PASSING = (0.2, 0.5, 0.8)
_WEIGHT = 1.0


def pseudo_labels(probabilities: np.ndarray, passing: float) -> tuple[np.ndarray, np.ndarray]:
    """(M, C) -> one-hot (M, C) of the likeliest class, and bool (M,): is it among its class's most confident share?"""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    passed = np.zeros(len(predicted), bool)
    for c in np.unique(predicted):
        of_class = predicted == c
        passed |= of_class & (confidence >= np.quantile(confidence[of_class], 1 - passing))
    return np.eye(probabilities.shape[1])[predicted], passed


def teach(room: Classroom, passing: float, weights: np.ndarray) -> Lesson:
    targets, trust = [], []
    for problem, known in enumerate(room.known):
        room.look()
        logits = room.view.unlabelled @ weights[problem, :, :-1].T + weights[problem, :, -1]
        logits = logits + absent_bias(room.classes[known], room.class_count)
        labels, passed = pseudo_labels(softmax(logits), passing)
        targets.append(labels)
        trust.append(passed)
    return Lesson(np.stack(targets, axis=1), np.array(trust, float), _WEIGHT)


def _teacher(room: Classroom) -> Iterable[Teach]:
    return [partial(teach, room, passing) for passing in _PASSING]


def _fit(task: HeadTask) -> HeadFit:
    return fit_taught(task, "self_training", _teacher)


SELF_TRAINING = HeadMethod("self_training", _fit, uses_pool=True)
