"""A committee of logistic heads, each fitted on a resample of the labelled rows (bagging, Breiman 1996).

The members share the C that cross-validation chooses for one head of all rows. We resample within each class, so that
a member never lacks a class of which there are labels.
"""

from collections.abc import Callable

import numpy as np

from services.trainer.heads.core import (
    ABSENT_BIAS,
    HeadFit,
    HeadMethod,
    HeadTask,
    calibrated,
    require_learnable,
    standardisation,
    with_all_rows,
)
from services.trainer.heads.logistic import FOLDS_TOLERANCE, HEAD_TOLERANCE, choose_c, with_bias
from services.trainer.learning import Head
from services.trainer.logistic import Rotation, fit_logistic


def _fit(task: HeadTask) -> HeadFit:
    rng = np.random.default_rng([task.seed, task.members])
    classes = task.labelled.classes
    return fit_weighted("bootstrap", task, lambda known: resamples(classes, known, task.members, rng))


def fit_weighted(kind: str, task: HeadTask, row_weights: Callable[[np.ndarray], np.ndarray]) -> HeadFit:
    """A committee of logistic heads that differ in how much each row counts.

    `row_weights`: which rows may be known, bool (N,) -> (K, N), at least 0; asked for each fold, then for all rows.
    """
    require_learnable(task.labelled, task.class_count)
    classes, fold_of = task.labelled.classes, task.fold_of
    mean, scale = standardisation(task.embeddings)
    rotation = Rotation.of((task.embeddings - mean) / scale, task.look)
    best = choose_c(rotation.rows, classes, fold_of, task.class_count, task.c_grid, task.watch)
    rows = with_bias(rotation.rows)
    *of_folds, of_all = [row_weights(known) for known in with_all_rows(fold_of)]
    members = len(of_all)

    def fitted(weights: np.ndarray, start: np.ndarray, tolerance: float) -> np.ndarray:
        # A class that a member does not know has weights of zero from the start.
        begin = np.repeat(start, members, axis=0) * _present(weights, classes, task.class_count)[..., None]
        return fit_logistic(rows, classes, weights, task.class_count, best.c, begin, tolerance, task.look)

    # Every member of every fold at once: (folds x K, C, R + 1).
    judges = fitted(np.vstack(of_folds), best.weights[:-1], FOLDS_TOLERANCE)
    judges = judges.reshape(len(of_folds), members, task.class_count, -1)
    logits = np.empty((len(rows), members, task.class_count))
    for fold, weights in enumerate(of_folds):
        here = fold_of == fold
        absent = _absent(weights, classes, task.class_count)
        logits[here] = np.einsum("nr,kcr->nkc", rows[here], judges[fold], optimize=True) + absent
    found = fitted(of_all, best.weights[-1:], HEAD_TOLERANCE)  # (K, C, R + 1)
    head = Head(
        kind=kind,
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=(found[..., :-1] @ rotation.axes).astype(np.float32),
        biases=(found[..., -1] + _absent(of_all, classes, task.class_count)).astype(np.float32),
    )
    return calibrated(head, logits, task, {"c": best.c})


def _present(row_weights: np.ndarray, classes: np.ndarray, class_count: int) -> np.ndarray:
    """bool (K, C): which classes each member knows."""
    return np.asarray(row_weights @ np.eye(class_count)[classes] > 0)


def _absent(row_weights: np.ndarray, classes: np.ndarray, class_count: int) -> np.ndarray:
    """ABSENT_BIAS for each class that a member does not know, 0 for the others: (K, C)"""
    return np.where(_present(row_weights, classes, class_count), 0.0, ABSENT_BIAS)


def resamples(classes: np.ndarray, known: np.ndarray, members: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is in each member's resample of the `known` rows, float (K, N)."""
    counts = np.zeros((members, len(classes)))
    for c in np.unique(classes[known]):
        rows = np.flatnonzero(known & (classes == c))
        for member in range(members):
            np.add.at(counts[member], rng.choice(rows, len(rows)), 1)
    return counts


BOOTSTRAP = HeadMethod("bootstrap", _fit, committee=True)
