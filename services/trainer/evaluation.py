"""What a classifier's probabilities are worth: accuracy, F1, calibration, confusion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_BINS = 15
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Reliability:
    """Samples by the confidence of their prediction, in equal-width bins (lower, upper] from 0 to 1."""

    counts: np.ndarray  # (B,) samples
    right: np.ndarray  # (B,) of them, predicted right
    confidence: np.ndarray  # (B,) mean confidence; 0 where a bin is empty

    @property
    def accuracy(self) -> np.ndarray:
        """(B,): 0 where a bin is empty."""
        return np.asarray(self.right / np.maximum(self.counts, 1))

    @property
    def ece(self) -> float:
        """Sum over bins of n_b / n |accuracy(b) - confidence(b)|  (Naeini 2015; Guo et al. 2017)."""
        gap = np.abs(self.accuracy - self.confidence)
        return float((self.counts * gap).sum() / max(self.counts.sum(), 1))

    def as_json(self) -> dict[str, list[float]]:
        return {name: getattr(self, name).tolist() for name in ("counts", "right", "confidence")}

    @classmethod
    def from_json(cls, kept: Mapping[str, Sequence[float]]) -> "Reliability":
        return cls(*(np.array(kept[name]) for name in ("counts", "right", "confidence")))


@dataclass(frozen=True)
class ClassScores:
    """By class, (C,) each; nan where a class was never predicted (precision) or has no sample (recall)."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # samples of the class


@dataclass(frozen=True)
class Evaluation:
    # "accuracy", "macro_f1", "ece", "nll", "brier"
    metrics: dict[str, float]
    # Rows: true class, columns: predicted class; int64 (C, C).
    confusion: np.ndarray
    # By class, (C,); nan where a class was never predicted (precision) or has no sample (recall).
    precision: np.ndarray
    recall: np.ndarray
    reliability: Reliability


def evaluate(probabilities: np.ndarray, truth: np.ndarray) -> Evaluation:
    """(N, C) probabilities against (N,) class indices. No samples have no metrics."""
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(truth, predicted, probabilities.shape[1])
    bins = reliability(probabilities, truth)
    scores = class_scores(confusion)
    metrics = (
        {}
        if not len(truth)
        else {
            "accuracy": float(np.mean(predicted == truth)),
            "macro_f1": macro_f1(confusion),
            "ece": bins.ece,
            "nll": negative_log_likelihood(probabilities, truth),
            "brier": brier_score(probabilities, truth),
        }
    )
    return Evaluation(metrics, confusion, scores.precision, scores.recall, bins)


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, class_count: int) -> np.ndarray:
    """How often true class r was called c: int64 (C, C)."""
    cells = np.bincount(truth.astype(np.int64) * class_count + predicted, minlength=class_count**2)
    return np.asarray(cells.reshape(class_count, class_count))


def macro_f1(confusion: np.ndarray) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN).

    Over the classes that are in the truth or were predicted: one that is in neither has no F1.
    """
    return float(np.nanmean(class_scores(confusion).f1))


def class_scores(confusion: np.ndarray) -> ClassScores:
    """Precision TP / (TP + FP), recall TP / (TP + FN) and F1 2 TP / (2 TP + FP + FN) of each class.  (C, C) counts"""
    right = np.diag(confusion).astype(float)
    predicted, support = confusion.sum(axis=0), confusion.sum(axis=1)
    f1 = _ratio(2 * right, predicted + support)
    return ClassScores(_ratio(right, predicted), _ratio(right, support), f1, support)


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = _BINS) -> float:
    """See Reliability.ece."""
    return reliability(probabilities, truth, bins).ece


def reliability(probabilities: np.ndarray, truth: np.ndarray, bins: int = _BINS) -> Reliability:
    """How right the predictions are at each confidence: (N, C) probabilities against (N,) class indices."""
    confidence = probabilities.max(axis=1).astype(float)
    right = probabilities.argmax(axis=1) == truth
    # Bins are (lower, upper], as in the reference implementation, so that a confidence of 1 is in the last.
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(bin_of, minlength=bins)
    told = np.bincount(bin_of, confidence, bins) / np.maximum(counts, 1)
    return Reliability(counts, np.bincount(bin_of, right, bins).astype(np.int64), told)


def negative_log_likelihood(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean of -log p(true class), in nats."""
    of_truth = probabilities[np.arange(len(truth)), truth].astype(float)
    return float(-np.log(np.clip(of_truth, _SMALLEST, None)).mean())


def brier_score(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean over samples of sum_c (p_c - [c is true])^2: 0 is perfect, 2 is certain and wrong (Brier 1950)."""
    error = probabilities.astype(float).copy()
    error[np.arange(len(truth)), truth] -= 1
    return float((error**2).sum(axis=1).mean())


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0))
