"""The logistic head: linear maps on standardised embeddings, chosen and calibrated inside the labelled set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.trainer import calibration
from services.trainer.heads.core import (
    PHASE,
    HeadFit,
    HeadMethod,
    HeadTask,
    absent_bias,
    calibrated_temperature,
    known_in_other_folds,
    random_rows,
    require_learnable,
    standardisation,
    stratified_folds,
    with_all_rows,
)
from services.trainer.learning import Head, LabelledSamples, Watch
from services.trainer.logistic import Rotation, fit_logistic

# Of the gradient: the folds only compare values of C, the published head shall not depend on where it was begun.
FOLDS_TOLERANCE = 1e-4
HEAD_TOLERANCE = 1e-6


def fit_head(
    embeddings: np.ndarray,
    labelled: LabelledSamples,
    class_count: int,
    c_grid: Sequence[float],
    folds: int,
    seed: int,
    watch: Watch,
) -> HeadFit:
    """(N, D) embeddings of the labelled samples -> the head with the best out-of-fold log-loss over `c_grid`.

    The temperature comes from out-of-fold logits of the randomly drawn rows only. Raises BadRequest for a
    single class and for embeddings that are not finite.
    """
    require_learnable(labelled, class_count)
    mean, scale = standardisation(embeddings)
    rotation = Rotation.of((embeddings - mean) / scale, _looker(watch, 0, 1))
    fold_of = stratified_folds(labelled.ids, labelled.classes, folds, seed)
    fits = fit_grid(rotation.rows, labelled.classes, fold_of, class_count, sorted(c_grid), watch)
    best = min(fits, key=lambda fit: fit.log_loss)
    weights = _on_all_rows(rotation.rows, labelled.classes, class_count, best, watch)
    head = Head(
        kind="logistic",
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=(weights[:-1].T @ rotation.axes).astype(np.float32)[None],
        biases=biases(weights[-1], labelled.classes)[None],
        temperature=calibrated_temperature(best.logits, best.judged, labelled),
    )
    right = best.logits.argmax(axis=1) == labelled.classes
    notes = {"c": best.c, "folds": float(fold_of.max() + 1), "out_of_fold_accuracy": float(right.mean())}
    if best.judged.any():
        notes["out_of_fold_log_loss"] = best.log_loss
    return HeadFit(head, random_rows(labelled, right), notes, best.logits)


@dataclass(frozen=True)
class GridFit:
    c: float
    weights: np.ndarray  # (R + 1, folds + 1, C); the last one is of all rows
    logits: np.ndarray  # (N, C), out of fold
    judged: np.ndarray  # bool (N,)
    log_loss: float


def fit_grid(
    rows: np.ndarray, classes: np.ndarray, fold_of: np.ndarray, class_count: int, grid: Sequence[float], watch: Watch
) -> list[GridFit]:
    """For each C, one fit of all folds and of the whole, from strong to weak regularisation, each from the last.

    Along the path the loss falls and then rises: what lies behind the first rise is not tried.
    """
    with_bias = np.column_stack([rows, np.ones(len(rows))])
    row_weights = with_all_rows(fold_of).astype(float)
    judged = known_in_other_folds(classes, fold_of)
    fits: list[GridFit] = []
    for number, c in enumerate(grid):
        look = _looker(watch, number, len(grid))
        start = fits[-1].weights if fits else None
        weights = fit_logistic(with_bias, classes, row_weights, class_count, c, start, FOLDS_TOLERANCE, look)
        logits = out_of_fold_logits(with_bias, classes, fold_of, weights)
        loss = calibration.log_loss(logits[judged], classes[judged]) if judged.any() else float("inf")
        fits.append(GridFit(c, weights, logits, judged, loss))
        if len(fits) > 1 and loss > fits[-2].log_loss:
            break
    return fits


def _on_all_rows(rows: np.ndarray, classes: np.ndarray, class_count: int, best: GridFit, watch: Watch) -> np.ndarray:
    """The chosen fit on all rows, to the end: (R + 1, C)."""
    look = _looker(watch, 1, 1)
    with_bias = np.column_stack([rows, np.ones(len(rows))])
    everything = np.ones((1, len(rows)))
    start = best.weights[:, -1:]
    return fit_logistic(with_bias, classes, everything, class_count, best.c, start, HEAD_TOLERANCE, look)[:, 0]


def _looker(watch: Watch, done: int, total: int) -> Callable[[], None]:
    return lambda: watch.progress(PHASE, done, total)


def out_of_fold_logits(rows: np.ndarray, classes: np.ndarray, fold_of: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each row by the fit that has not seen it: (N, R), weights (R, folds + 1, C) -> (N, C)."""
    out = np.empty((len(rows), weights.shape[2]))
    for fold in range(int(fold_of.max()) + 1):
        here = fold_of == fold
        out[here] = rows[here] @ weights[:, fold] + absent_bias(classes[~here], weights.shape[2])
    return out


def biases(found: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """float32, of (..., C) fitted biases; those of classes without a row are ABSENT_BIAS (they were fitted as 0)."""
    return np.asarray(found + absent_bias(classes, found.shape[-1]), np.float32)


def _fit(task: HeadTask) -> HeadFit:
    return fit_head(task.embeddings, task.labelled, task.class_count, task.c_grid, task.folds, task.seed, task.watch)


LOGISTIC = HeadMethod("logistic", _fit)
