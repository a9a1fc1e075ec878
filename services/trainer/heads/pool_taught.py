"""Semi-supervised heads: a logistic head that also learns from what a teacher says of unlabelled rows.

A teacher gives soft labels for a chain of stages; cross-validation chooses among them, and one of the choices is the
logistic head that has listened to no teacher. Every fold has a teacher of its own: the rows that it will be judged on
are no part of its pool, and no teacher sees their labels. (Their embeddings touch the axes and the graph's degrees.)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from services.trainer.heads.core import (
    HeadFit,
    HeadTask,
    calibrated,
    out_of_fold_loss,
    require_learnable,
    with_all_rows,
)
from services.trainer.heads.logistic import (
    FOLDS_TOLERANCE,
    HEAD_TOLERANCE,
    biases,
    choose_c,
    fit_head,
    out_of_fold_logits,
    with_bias,
)
from services.trainer.heads.pool_view import PoolView
from services.trainer.learning import Head
from services.trainer.logistic import fit_soft


@dataclass(frozen=True)
class Lesson:
    """What P teachers (one a fold, and one of all labels) say of the M unlabelled rows."""

    targets: np.ndarray  # (M, P, C), probabilities
    trust: np.ndarray  # (P, M), 0 to 1
    # Weight of the whole pool, as a share of that of the labelled rows.
    share: float


@dataclass(frozen=True)
class Classroom:
    """What a teacher may know: of each problem, only the rows that it is fitted on."""

    view: PoolView
    classes: np.ndarray  # (N,)
    known: np.ndarray  # bool (P, N)
    class_count: int
    look: Callable[[], None]


# Gives the lesson of a stage from the weights (P, C, R + 1) that were fitted in the last one.
Teach = Callable[[np.ndarray], Lesson]


@dataclass(frozen=True)
class _Stage:
    number: int
    weights: np.ndarray  # (P, C, R + 1)
    logits: np.ndarray  # (N, C), out of fold
    loss: float
    lesson: Lesson


def fit_taught(task: HeadTask, kind: str, teacher: Callable[[Classroom], Iterable[Teach]]) -> HeadFit:
    require_learnable(task.labelled, task.class_count)
    view, classes, fold_of = PoolView.of(task), task.labelled.classes, task.fold_of
    plain = choose_c(view.labelled, classes, fold_of, task.class_count, task.c_grid, task.watch)
    known, one_hot = with_all_rows(fold_of), np.eye(task.class_count)[classes]
    labelled = with_bias(view.labelled)
    everything = np.concatenate([labelled, with_bias(view.unlabelled)])
    notes = {"pool_rows": float(len(view.unlabelled))}
    stages: list[_Stage] = []
    room = Classroom(view, classes, known, task.class_count, task.look)
    weights = plain.weights
    for number, teach in enumerate(teacher(room) if len(view.unlabelled) else [], 1):
        lesson = teach(weights)
        targets, row_weights = _joined(lesson, one_hot, known)
        weights = fit_soft(everything, targets, row_weights, plain.c, weights, FOLDS_TOLERANCE, task.look)
        logits = out_of_fold_logits(labelled, classes, fold_of, weights)
        stages.append(_Stage(number, weights, logits, out_of_fold_loss(logits[:, None], task), lesson))
    alone = fit_head(task.embeddings, task.labelled, task.class_count, task.c_grid, task.folds, task.seed, task.watch)
    best = min(stages, key=lambda stage: stage.loss, default=None)
    if best is None or best.loss >= alone.notes.get("out_of_fold_log_loss", -np.inf):
        return replace(alone, head=replace(alone.head, kind=kind), notes={**alone.notes, **notes, "stage": 0.0})
    targets, row_weights = _joined(best.lesson, one_hot, known)
    weights = fit_soft(
        everything, targets[:, -1], row_weights[-1:], plain.c, best.weights[-1:], HEAD_TOLERANCE, task.look
    )[0]
    head = Head(
        kind=kind,
        mean=view.mean.astype(np.float32),
        scale=view.scale.astype(np.float32),
        weights=(weights[:, :-1] @ view.axes).astype(np.float32)[None],
        biases=biases(weights[:, -1], classes)[None],
    )
    return calibrated(head, best.logits[:, None], task, {**notes, "c": plain.c, "stage": float(best.number)})


def _joined(lesson: Lesson, one_hot: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets (N + M, P, C) and row weights (P, N + M) of the labelled rows and the pool together."""
    problems = len(known)
    targets = np.concatenate([np.repeat(one_hot[:, None], problems, axis=1), lesson.targets])
    heard = lesson.trust.sum(axis=1, keepdims=True)
    of_pool = lesson.trust * lesson.share * known.sum(axis=1, keepdims=True) / np.maximum(heard, 1e-9)
    return targets, np.concatenate([known, of_pool], axis=1)
