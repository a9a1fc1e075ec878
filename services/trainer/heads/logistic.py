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

# Of the gradient. The folds decide on C and on the temperature; what is published shall not depend on where its fit was
# begun.
FOLDS_TOLERANCE = 3e-5
HEAD_TOLERANCE = 1e-7
# Of fits that only find out which values of C are worth finishing: a log-loss that differs by a clear share of it was
# never on the wrong side (three embeddings of CIFAR-10, 100 to 1,500 labels).
_COARSE_TOLERANCE = 1e-3
_CLEAR = 0.05


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
    best = choose_c(rotation.rows, labelled.classes, fold_of, class_count, c_grid, watch)
    weights = best.weights[-1]  # (C, R + 1)
    head = Head(
        kind="logistic",
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=(weights[:, :-1] @ rotation.axes).astype(np.float32)[None],
        biases=biases(weights[:, -1], labelled.classes)[None],
        temperature=calibrated_temperature(best.logits, best.judged, labelled),
    )
    right = best.logits.argmax(axis=1) == labelled.classes
    notes = {"c": best.c, "folds": float(fold_of.max() + 1), "out_of_fold_accuracy": float(right.mean())}
    if best.judged.any():
        notes["out_of_fold_log_loss"] = best.log_loss
    return HeadFit(head, random_rows(labelled, right), notes, best.logits)


@dataclass(frozen=True)
class CFit:
    """All folds, and last all rows, with one C."""

    c: float
    weights: np.ndarray  # (folds + 1, C, R + 1)
    logits: np.ndarray  # (N, C), out of fold
    judged: np.ndarray  # bool (N,)
    log_loss: float
    coarse: bool


def choose_c(
    rows: np.ndarray, classes: np.ndarray, fold_of: np.ndarray, class_count: int, grid: Sequence[float], watch: Watch
) -> CFit:
    """The C with the best out-of-fold log-loss, and its fits.

    From strong to weak regularisation, each begun at the last. Along the path the loss falls and then rises: what lies
    behind the first rise is not tried. Fits are coarse until it takes more to tell which of two is better.
    """
    fits = _Fits(rows, classes, fold_of, class_count)
    strongest, *weaker = sorted(grid)
    best = fits.coarse(strongest, None, _looker(watch, 0, len(grid)))
    for number, c in enumerate(weaker, 1):
        look = _looker(watch, number, len(grid))
        fit = fits.coarse(c, best, look)
        if abs(fit.log_loss - best.log_loss) <= _CLEAR * best.log_loss:
            best, fit = fits.finished(best, look), fits.finished(fit, look)
        if fit.log_loss >= best.log_loss:
            break
        best = fit
    return fits.finished(best, _looker(watch, len(grid), len(grid)))


class _Fits:
    def __init__(self, rows: np.ndarray, classes: np.ndarray, fold_of: np.ndarray, class_count: int) -> None:
        self._rows = with_bias(rows)
        self._coarse_rows = self._rows.astype(np.float32)
        self._classes, self._fold_of, self._class_count = classes, fold_of, class_count
        self._row_weights = with_all_rows(fold_of).astype(float)
        self._judged = known_in_other_folds(classes, fold_of)

    def coarse(self, c: float, like: CFit | None, look: Callable[[], None]) -> CFit:
        start = None if like is None else like.weights
        return self._fit(self._coarse_rows, c, start, _COARSE_TOLERANCE, look)

    def finished(self, fit: CFit, look: Callable[[], None]) -> CFit:
        if not fit.coarse:
            return fit
        folds = len(self._row_weights) - 1
        within = np.array([FOLDS_TOLERANCE] * folds + [HEAD_TOLERANCE])
        return self._fit(self._rows, fit.c, fit.weights, within, look)

    def _fit(
        self,
        rows: np.ndarray,
        c: float,
        start: np.ndarray | None,
        tolerance: float | np.ndarray,
        look: Callable[[], None],
    ) -> CFit:
        classes, judged = self._classes, self._judged
        weights = fit_logistic(rows, classes, self._row_weights, self._class_count, c, start, tolerance, look)
        logits = out_of_fold_logits(self._rows, classes, self._fold_of, weights)
        loss = calibration.log_loss(logits[judged], classes[judged]) if judged.any() else float("inf")
        return CFit(c, weights, logits, judged, loss, coarse=rows is self._coarse_rows)


def _looker(watch: Watch, done: int, total: int) -> Callable[[], None]:
    return lambda: watch.progress(PHASE, done, total)


def out_of_fold_logits(rows: np.ndarray, classes: np.ndarray, fold_of: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each row by the fit that has not seen it: (N, R), weights (folds + 1, C, R) -> (N, C)."""
    out = np.empty((len(rows), weights.shape[1]))
    for fold in range(int(fold_of.max()) + 1):
        here = fold_of == fold
        out[here] = rows[here] @ weights[fold].T + absent_bias(classes[~here], weights.shape[1])
    return out


def with_bias(rows: np.ndarray) -> np.ndarray:
    return np.column_stack([rows, np.ones(len(rows))])


def biases(found: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """float32, of (..., C) fitted biases; those of classes without a row are ABSENT_BIAS (they were fitted as 0)."""
    return np.asarray(found + absent_bias(classes, found.shape[-1]), np.float32)


def _fit(task: HeadTask) -> HeadFit:
    return fit_head(task.embeddings, task.labelled, task.class_count, task.c_grid, task.folds, task.seed, task.watch)


LOGISTIC = HeadMethod("logistic", _fit)
