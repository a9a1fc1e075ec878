"""What every head shares: its task, folds, standardisation, and the judgement by rows that were drawn at random."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.common.errors import BadRequest
from services.trainer import calibration
from services.trainer.in_parts import in_parts
from services.trainer.learning import Head, LabelledSamples, Watch

# Bias of a class that has no labelled sample: no temperature makes it likely, and float16 can hold it.
ABSENT_BIAS = -1000.0
PHASE = "fit"
_POOL_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class UnlabelledPool:
    """The rest of the pool for heads that learn from it: ids and embeddings, never a label.

    `embeddings`: sample ids -> float32 (N, D).
    """

    ids: tuple[str, ...]
    embeddings: Callable[[Sequence[str]], np.ndarray]

    def draw(self, most: int) -> tuple[str, ...]:
        """At most this many ids, those with the smallest hash: the same ones round after round."""
        if len(self.ids) <= most:
            return self.ids
        return tuple(sorted(self.ids, key=lambda i: hashlib.sha256(i.encode()).digest())[:most])

    def rows(self, ids: Sequence[str], made: Callable[[np.ndarray], np.ndarray], watch: Watch) -> np.ndarray:
        """`made` of (n, D) embeddings, a few thousand at a time, one under the other."""
        return in_parts(lambda some: made(self.embeddings(some)), ids, _POOL_ROWS_AT_ONCE, "read", watch)


NO_POOL = UnlabelledPool((), lambda ids: np.empty((len(ids), 0), np.float32))


@dataclass(frozen=True)
class HeadTask:
    """What a head is fitted from."""

    embeddings: np.ndarray  # (N, D), of the labelled samples
    labelled: LabelledSamples
    class_count: int
    seed: int
    watch: Watch
    # Inverse regularisation strengths to choose from, and folds to choose by.
    c_grid: Sequence[float] = (0.001, 0.01, 0.1, 1.0)
    folds: int = 5
    # Of a committee.
    members: int = 5
    pool: UnlabelledPool = NO_POOL

    @property
    def fold_of(self) -> np.ndarray:
        """int64 (N,)"""
        return stratified_folds(self.labelled.ids, self.labelled.classes, self.folds, self.seed)

    def look(self) -> None:
        self.watch.progress(PHASE, 0, 1)


@dataclass(frozen=True)
class HeadFit:
    head: Head
    out_of_fold: dict[str, bool]
    notes: dict[str, float]
    # Of every labelled row, (N, C), not divided by the temperature; for a committee those whose softmax, after the
    # division, is the mean of its members'.
    out_of_fold_logits: np.ndarray


@dataclass(frozen=True)
class HeadMethod:
    """One way to fit a head; raises BadRequest for a single class and for embeddings that are not finite."""

    name: str
    fit: Callable[[HeadTask], HeadFit]
    # Is `members` the number of maps that it fits? Otherwise there is one.
    committee: bool = False
    uses_pool: bool = False


def zero_head(class_count: int, embedding_size: int) -> Head:
    """Every class equally likely, whatever the image."""
    return Head(
        kind="zero",
        mean=np.zeros(embedding_size, np.float32),
        scale=np.ones(embedding_size, np.float32),
        weights=np.zeros((1, class_count, embedding_size), np.float32),
        biases=np.zeros((1, class_count), np.float32),
    )


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


def absent_bias(classes: np.ndarray, class_count: int) -> np.ndarray:
    """ABSENT_BIAS for each class without a row in `classes`, 0 for the others: (C,)"""
    return np.where(np.isin(np.arange(class_count), classes), 0.0, ABSENT_BIAS)


def with_all_rows(fold_of: np.ndarray) -> np.ndarray:
    """bool (folds + 1, N): the rows that each fold is fitted on, and last all rows."""
    folds = int(fold_of.max()) + 1
    return np.vstack([fold_of != np.arange(folds)[:, None], np.ones((1, len(fold_of)), bool)])


def calibrated_temperature(logits: np.ndarray, judged: np.ndarray, labelled: LabelledSamples) -> float:
    """From the (N, C) or (N, K, C) out-of-fold logits of the randomly drawn rows."""
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


def out_of_fold_loss(logits: np.ndarray, task: HeadTask) -> float:
    """What a head's settings are chosen by: log-loss of (N, K, C) out-of-fold logits; inf when no row judges."""
    judged = known_in_other_folds(task.labelled.classes, task.fold_of)
    return calibration.log_loss(logits[judged], task.labelled.classes[judged]) if judged.any() else float("inf")


def calibrated(head: Head, logits: np.ndarray, task: HeadTask, notes: dict[str, float]) -> HeadFit:
    """The head with the temperature that its (N, K, C) out-of-fold logits ask for, and what they got right."""
    labelled, fold_of = task.labelled, task.fold_of
    judged = known_in_other_folds(labelled.classes, fold_of)
    temperature = calibrated_temperature(logits, judged, labelled)
    probabilities = calibration.softmax(logits / temperature).mean(axis=1)  # (N, C)
    right = probabilities.argmax(axis=1) == labelled.classes
    notes = {**notes, "folds": float(fold_of.max() + 1), "out_of_fold_accuracy": float(right.mean())}
    if judged.any():
        notes["out_of_fold_log_loss"] = out_of_fold_loss(logits, task)
    joint = temperature * np.log(np.maximum(probabilities, np.finfo(probabilities.dtype).tiny))
    return HeadFit(replace(head, temperature=temperature), random_rows(labelled, right), notes, joint)


def standardisation(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and scale of each dimension, float64 (D,); dimensions that never change keep a scale of 1."""
    embeddings = embeddings.astype(np.float64)
    if not np.isfinite(embeddings).all():
        raise BadRequest("the embeddings of the labelled samples are not all finite")
    mean, scale = embeddings.mean(axis=0), embeddings.std(axis=0)
    return mean, np.where(scale > 1e-6 * np.maximum(np.abs(mean), 1e-6), scale, 1.0)


def by_name(methods: Iterable[HeadMethod]) -> dict[str, HeadMethod]:
    return {method.name: method for method in methods}
