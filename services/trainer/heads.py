"""The logistic head: linear maps on standardised embeddings, chosen and calibrated inside the labelled set."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.errors import BadRequest
from services.trainer import calibration
from services.trainer.learning import Head, LabelledSamples, Watch
from services.trainer.logistic import Rotation, fit_logistic

# Bias of a class that has no labelled sample: no temperature makes it likely, and float16 can hold it.
ABSENT_BIAS = -1000.0
_PHASE = "fit"
# Of the gradient: the folds only compare values of C, the published head shall not depend on where it was begun.
_FOLDS_TOLERANCE = 1e-4
_HEAD_TOLERANCE = 1e-6


@dataclass(frozen=True)
class HeadFit:
    head: Head
    out_of_fold: dict[str, bool]
    notes: dict[str, float]
    # Of every labelled row, (N, C), not divided by the temperature.
    out_of_fold_logits: np.ndarray


def zero_head(class_count: int, embedding_size: int) -> Head:
    """Every class equally likely, whatever the image."""
    return Head(
        kind="zero",
        mean=np.zeros(embedding_size, np.float32),
        scale=np.ones(embedding_size, np.float32),
        weights=np.zeros((1, class_count, embedding_size), np.float32),
        biases=np.zeros((1, class_count), np.float32),
    )


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
    mean, scale = _standardisation(embeddings)
    rotation = Rotation.of((embeddings - mean) / scale)
    fold_of = stratified_folds(labelled.ids, labelled.classes, folds, seed)
    fits = _fit_grid(rotation.rows, labelled.classes, fold_of, class_count, sorted(c_grid), watch)
    best = min(fits, key=lambda fit: fit.log_loss)
    weights = _on_all_rows(rotation.rows, labelled.classes, class_count, best, watch)
    head = Head(
        kind="logistic",
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=(weights[:-1].T @ rotation.axes).astype(np.float32)[None],
        biases=_biases(weights[-1], labelled.classes)[None],
        temperature=calibrated_temperature(best.logits, best.judged, labelled),
    )
    right = best.logits.argmax(axis=1) == labelled.classes
    notes = {"c": best.c, "folds": float(fold_of.max() + 1), "out_of_fold_accuracy": float(right.mean())}
    if best.judged.any():
        notes["out_of_fold_log_loss"] = best.log_loss
    return HeadFit(head, random_rows(labelled, right), notes, best.logits)


def require_learnable(labelled: LabelledSamples, class_count: int) -> None:
    """Raises BadRequest when there is nothing to tell apart."""
    present = np.unique(labelled.classes)
    if len(present) and not 0 <= present[0] <= present[-1] < class_count:
        raise BadRequest(f"class indices must lie in 0..{class_count - 1}; got {present[0]}..{present[-1]}")
    if len(present) < 2:
        raise BadRequest(
            f"the {len(labelled)} labelled samples are of {len(present)} class(es); a classifier needs two at least: "
            "label more samples"
        )


def stratified_folds(ids: Sequence[str], classes: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Fold of each sample, int64 (N,), decided by the seed and the sample's id alone within its class.

    Each class is dealt out in turn, and the next class goes on where the last one ended: folds are of equal size
    also when classes have fewer rows than there are folds.
    """
    keys = [hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in ids]
    order = sorted(range(len(ids)), key=lambda row: (classes[row], keys[row]))
    fold_of = np.empty(len(ids), np.int64)
    fold_of[order] = np.arange(len(ids)) % min(folds, len(ids))
    return fold_of


def known_in_other_folds(classes: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """bool (N,): does the part that a row is predicted from hold its class at all? Else it judges nothing."""
    return np.array(
        [bool(((classes == c) & (fold_of != f)).any()) for c, f in zip(classes, fold_of, strict=True)], bool
    )


def calibrated_temperature(logits: np.ndarray, judged: np.ndarray, labelled: LabelledSamples) -> float:
    """From the (N, C) out-of-fold logits of the randomly drawn rows."""
    rows = judged & labelled.drawn_at_random
    return calibration.temperature(logits[rows], labelled.classes[rows])


def random_rows(labelled: LabelledSamples, right: np.ndarray) -> dict[str, bool]:
    """Sample id -> was it right?, for the randomly drawn rows."""
    rows = np.flatnonzero(labelled.drawn_at_random)
    return {labelled.ids[row]: bool(right[row]) for row in rows}


def random_classes(labelled: LabelledSamples, logits: np.ndarray) -> dict[str, int]:
    """Sample id -> class predicted by (N, C) out-of-fold logits, for the randomly drawn rows."""
    rows = np.flatnonzero(labelled.drawn_at_random)
    return {labelled.ids[row]: int(logits[row].argmax()) for row in rows}


@dataclass(frozen=True)
class _GridFit:
    c: float
    weights: np.ndarray  # (R + 1, folds + 1, C); the last one is of all rows
    logits: np.ndarray  # (N, C), out of fold
    judged: np.ndarray  # bool (N,)
    log_loss: float


def _fit_grid(
    rows: np.ndarray, classes: np.ndarray, fold_of: np.ndarray, class_count: int, grid: Sequence[float], watch: Watch
) -> list[_GridFit]:
    """For each C, one fit of all folds and of the whole, from strong to weak regularisation, each from the last.

    Along the path the loss falls and then rises: what lies behind the first rise is not tried.
    """
    folds = int(fold_of.max()) + 1
    with_bias = np.column_stack([rows, np.ones(len(rows))])
    row_weights = np.vstack([fold_of != np.arange(folds)[:, None], np.ones((1, len(rows)))]).astype(float)
    judged = known_in_other_folds(classes, fold_of)
    fits: list[_GridFit] = []
    for number, c in enumerate(grid):
        look = _looker(watch, number, len(grid))
        start = fits[-1].weights if fits else None
        weights = fit_logistic(with_bias, classes, row_weights, class_count, c, start, _FOLDS_TOLERANCE, look)
        logits = _out_of_fold_logits(with_bias, classes, fold_of, weights)
        loss = calibration.log_loss(logits[judged], classes[judged]) if judged.any() else float("inf")
        fits.append(_GridFit(c, weights, logits, judged, loss))
        if len(fits) > 1 and loss > fits[-2].log_loss:
            break
    return fits


def _on_all_rows(rows: np.ndarray, classes: np.ndarray, class_count: int, best: _GridFit, watch: Watch) -> np.ndarray:
    """The chosen fit on all rows, to the end: (R + 1, C)."""
    look = _looker(watch, 1, 1)
    with_bias = np.column_stack([rows, np.ones(len(rows))])
    everything = np.ones((1, len(rows)))
    start = best.weights[:, -1:]
    return fit_logistic(with_bias, classes, everything, class_count, best.c, start, _HEAD_TOLERANCE, look)[:, 0]


def _looker(watch: Watch, done: int, total: int) -> Callable[[], None]:
    return lambda: watch.progress(_PHASE, done, total)


def _out_of_fold_logits(rows: np.ndarray, classes: np.ndarray, fold_of: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Each row by the fit that has not seen it: (N, R), weights (R, folds + 1, C) -> (N, C)."""
    out = np.empty((len(rows), weights.shape[2]))
    for fold in range(int(fold_of.max()) + 1):
        here = fold_of == fold
        absent = np.isin(np.arange(weights.shape[2]), classes[~here], invert=True)
        out[here] = rows[here] @ weights[:, fold] + np.where(absent, ABSENT_BIAS, 0.0)
    return out


def _standardisation(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each dimension, float64 (D,); dimensions that never change keep a scale of 1."""
    embeddings = embeddings.astype(np.float64)
    if not np.isfinite(embeddings).all():
        raise BadRequest("the embeddings of the labelled samples are not all finite")
    mean, scale = embeddings.mean(axis=0), embeddings.std(axis=0)
    return mean, np.where(scale > 1e-6 * np.maximum(np.abs(mean), 1e-6), scale, 1.0)


def _biases(biases: np.ndarray, classes: np.ndarray) -> np.ndarray:
    present = np.isin(np.arange(len(biases)), classes)
    return np.where(present, biases, ABSENT_BIAS).astype(np.float32)
