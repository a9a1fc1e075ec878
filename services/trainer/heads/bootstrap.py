"""A committee of logistic heads, each fitted on a resample of the labelled rows (bagging, Breiman 1996).

The members share the C that cross-validation chooses for one head of all rows. We resample within each class, so that
a member never lacks a class of which there are labels.
"""

import numpy as np

from services.trainer.heads.core import (
    HeadFit,
    HeadMethod,
    HeadTask,
    absent_bias,
    calibrated,
    require_learnable,
    standardisation,
    with_all_rows,
)
from services.trainer.heads.logistic import FOLDS_TOLERANCE, HEAD_TOLERANCE, biases, fit_grid
from services.trainer.learning import Head
from services.trainer.logistic import Rotation, fit_logistic


def _fit(task: HeadTask) -> HeadFit:
    require_learnable(task.labelled, task.class_count)
    classes, fold_of = task.labelled.classes, task.fold_of
    mean, scale = standardisation(task.embeddings)
    rotation = Rotation.of((task.embeddings - mean) / scale, task.look)
    grid = fit_grid(rotation.rows, classes, fold_of, task.class_count, sorted(task.c_grid), task.watch)
    best = min(grid, key=lambda fit: fit.log_loss)
    rows = np.column_stack([rotation.rows, np.ones(len(classes))])
    rng = np.random.default_rng([task.seed, task.members])
    *of_folds, of_all = [resamples(classes, known, task.members, rng) for known in with_all_rows(fold_of)]

    def fitted(weights: np.ndarray, start: np.ndarray, tolerance: float) -> np.ndarray:
        begin = np.repeat(start, task.members, axis=1)
        return fit_logistic(rows, classes, weights, task.class_count, best.c, begin, tolerance, task.look)

    # Every member of every fold at once: (R + 1, folds x K, C).
    judges = fitted(np.vstack(of_folds), best.weights[:, :-1], FOLDS_TOLERANCE)
    judges = judges.reshape(len(judges), len(of_folds), task.members, task.class_count)
    logits = np.empty((len(rows), task.members, task.class_count))
    for fold in range(len(of_folds)):
        here = fold_of == fold
        absent = absent_bias(classes[~here], task.class_count)
        logits[here] = np.einsum("nr,rkc->nkc", rows[here], judges[:, fold], optimize=True) + absent
    weights = fitted(of_all, best.weights[:, -1:], HEAD_TOLERANCE)  # (R + 1, K, C)
    head = Head(
        kind="bootstrap",
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=np.einsum("rkc,rd->kcd", weights[:-1], rotation.axes, optimize=True).astype(np.float32),
        biases=biases(weights[-1], classes),
    )
    return calibrated(head, logits, task, {"c": best.c})


def resamples(classes: np.ndarray, known: np.ndarray, members: int, rng: np.random.Generator) -> np.ndarray:
    """How often each row is in each member's resample of the `known` rows, float (K, N)."""
    counts = np.zeros((members, len(classes)))
    for c in np.unique(classes[known]):
        rows = np.flatnonzero(known & (classes == c))
        for member in range(members):
            np.add.at(counts[member], rng.choice(rows, len(rows)), 1)
    return counts


BOOTSTRAP = HeadMethod("bootstrap", _fit, committee=True)
