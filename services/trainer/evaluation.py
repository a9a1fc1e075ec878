"""What a classifier's probabilities are worth: accuracy, F1, calibration, confusion."""

from dataclasses import dataclass

import numpy as np

_BINS = 15
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Evaluation:
    # "accuracy", "macro_f1", "ece", "nll", "brier"
    metrics: dict[str, float]
    # Rows: true class, columns: predicted class; int64 (C, C).
    confusion: np.ndarray
    # By class, (C,); nan where a class was never predicted (precision) or has no sample (recall).
    precision: np.ndarray
    recall: np.ndarray


def evaluate(probabilities: np.ndarray, truth: np.ndarray) -> Evaluation:
    """(N, C) probabilities against (N,) class indices. No samples have no metrics."""
    predicted = probabilities.argmax(axis=1)
    confusion = confusion_matrix(truth, predicted, probabilities.shape[1])
    metrics = (
        {}
        if not len(truth)
        else {
            "accuracy": float(np.mean(predicted == truth)),
            "macro_f1": macro_f1(confusion),
            "ece": expected_calibration_error(probabilities, truth),
            "nll": negative_log_likelihood(probabilities, truth),
            "brier": brier_score(probabilities, truth),
        }
    )
    right = np.diag(confusion).astype(float)
    return Evaluation(metrics, confusion, _ratio(right, confusion.sum(axis=0)), _ratio(right, confusion.sum(axis=1)))


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, class_count: int) -> np.ndarray:
    """How often true class r was called c: int64 (C, C)."""
    cells = np.bincount(truth.astype(np.int64) * class_count + predicted, minlength=class_count**2)
    return np.asarray(cells.reshape(class_count, class_count))


def macro_f1(confusion: np.ndarray) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN).

    Over the classes that are in the truth or were predicted: one that is in neither has no F1.
    """
    right = np.diag(confusion).astype(float)
    f1 = _ratio(2 * right, confusion.sum(axis=0) + confusion.sum(axis=1))
    return float(np.nanmean(f1))


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray, bins: int = _BINS) -> float:
    """Sum over equal-width bins of n_b / n |accuracy(b) - confidence(b)|  (Naeini 2015; Guo et al. 2017)."""
    confidence = probabilities.max(axis=1).astype(float)
    right = probabilities.argmax(axis=1) == truth
    # Bins are (lower, upper], as in the reference implementation, so that a confidence of 1 is in the last.
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, right, bins) - np.bincount(bin_of, confidence, bins)
    return float(np.abs(gap).sum() / len(truth))


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
