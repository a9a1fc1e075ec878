"""Prototypes: each class is the mean direction of its rows, and an image is of the class whose direction is nearest.

Snell et al. 2017 with cosine similarity (Gidaris & Komodakis 2018). Nothing is searched for: it is the head that cannot
be fitted wrong, for a handful of labels a class.
"""

import numpy as np

from services.trainer import calibration
from services.trainer.heads.core import (
    HeadFit,
    HeadMethod,
    HeadTask,
    absent_bias,
    calibrated,
    known_in_other_folds,
    require_learnable,
    standardisation,
)
from services.trainer.learning import SHORTEST, Head

# Of the cosine, before it is fitted: what makes one of 0.2 more than the others a likely class.
_SHARPNESS = 10.0


def _fit(task: HeadTask) -> HeadFit:
    require_learnable(task.labelled, task.class_count)
    task.look()
    classes, fold_of = task.labelled.classes, task.fold_of
    mean, scale = standardisation(task.embeddings)
    rows = _unit((task.embeddings - mean) / scale)
    logits = np.empty((len(rows), task.class_count))
    for fold in range(int(fold_of.max()) + 1):
        here = fold_of == fold
        prototypes = _prototypes(rows[~here], classes[~here], task.class_count)
        logits[here] = rows[here] @ prototypes.T * _SHARPNESS + absent_bias(classes[~here], task.class_count)
    # From every judged row, since the sharpness belongs to the fit; the temperature then corrects it on random rows.
    judged = known_in_other_folds(classes, fold_of)
    sharpness = _SHARPNESS / calibration.temperature(logits[judged], classes[judged])
    head = Head(
        kind="cosine",
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=(sharpness * _prototypes(rows, classes, task.class_count)).astype(np.float32)[None],
        biases=absent_bias(classes, task.class_count).astype(np.float32)[None],
        unit=True,
    )
    absent = logits <= absent_bias(np.empty(0), 1) / 2
    logits = np.where(absent, logits, logits * sharpness / _SHARPNESS)
    return calibrated(head, logits[:, None], task, {"sharpness": sharpness})


def _prototypes(rows: np.ndarray, classes: np.ndarray, class_count: int) -> np.ndarray:
    """(N, D) rows of unit length -> (C, D), of unit length too; zeros for a class without rows."""
    return _unit(np.eye(class_count)[classes].T @ rows)


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), SHORTEST))


COSINE = HeadMethod("cosine", _fit)
