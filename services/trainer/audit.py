"""Labels that are probably wrong, by confident learning  (Northcutt, Jiang & Chuang 2021).

A row is suspect when its out-of-fold probability of another class is at least what rows labelled so have on average,
and no such class is as probable as that one. Where we differ from the paper: the list is ordered by how much more
probable the other class is, and rows whose class no other fold holds are left out, since nothing could have told it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.trainer import calibration
from services.trainer.heads import fit_head, known_in_other_folds, stratified_folds
from services.trainer.learning import LabelledSamples, Watch


@dataclass(frozen=True)
class Suspect:
    sample_id: str
    # Class indices, and the out-of-fold probability of each.
    given: int
    suggested: int
    given_probability: float
    suggested_probability: float


def audit_labels(
    embeddings: np.ndarray,
    labelled: LabelledSamples,
    class_count: int,
    c_grid: Sequence[float],
    folds: int,
    seed: int,
    watch: Watch,
) -> list[Suspect]:
    """(N, D) embeddings of the labelled samples -> suspects, the most doubtful first.

    Raises BadRequest for labels of a single class.
    """
    fit = fit_head(embeddings, labelled, class_count, c_grid, folds, seed, watch)
    probabilities = calibration.softmax(fit.out_of_fold_logits / fit.head.temperature)
    judged = known_in_other_folds(labelled.classes, stratified_folds(labelled.ids, labelled.classes, folds, seed))
    rows = np.flatnonzero(judged)
    return find_suspects([labelled.ids[row] for row in rows], labelled.classes[rows], probabilities[rows])


def find_suspects(ids: Sequence[str], given: np.ndarray, probabilities: np.ndarray) -> list[Suspect]:
    """Given classes (N,), out-of-fold probabilities (N, C) -> the most doubtful first."""
    class_count = probabilities.shape[1]
    own = probabilities[np.arange(len(given)), given]  # (N,)
    counts = np.bincount(given, minlength=class_count)
    # How sure the model is of a class where it is the label; a class without labels is never suggested.
    usual = np.where(counts > 0, np.bincount(given, own, class_count) / np.maximum(counts, 1), np.inf)
    confident = np.where(probabilities >= usual, probabilities, -1.0)
    suggested = confident.argmax(axis=1)
    found = np.flatnonzero((confident.max(axis=1) > 0) & (suggested != given))
    doubt = probabilities[found, suggested[found]] - own[found]
    found = found[np.argsort(-doubt, kind="stable")]
    return [
        Suspect(ids[row], int(given[row]), int(suggested[row]), float(own[row]), float(probabilities[row, other]))
        for row, other in zip(found.tolist(), suggested[found].tolist(), strict=True)
    ]
