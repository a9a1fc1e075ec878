"""Metrics against values computed by hand."""

import json

import numpy as np
import pytest

from services.trainer.evaluation import Reliability, class_scores, evaluate, expected_calibration_error, macro_f1

# Predicted 0, 0, 1, 1 for truth 0, 1, 1, 1; class 2 is in neither.
PROBABILITIES = np.array([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0], [0.3, 0.7, 0.0]], np.float32)
TRUTH = np.array([0, 1, 1, 1])


def test_metrics_of_a_hand_made_example():
    result = evaluate(PROBABILITIES, TRUTH)
    assert result.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert result.metrics["accuracy"] == pytest.approx(0.75)
    # F1: class 0 has 2/(2+1+0), class 1 has 4/(4+0+1); class 2 does not count.
    assert result.metrics["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert result.metrics["nll"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean(), rel=1e-6)
    assert result.metrics["brier"] == pytest.approx((0.02 + 0.72 + 0.08 + 0.18) / 4, rel=1e-6)
    # Each row is in a bin of its own: |1-.9|, |0-.6|, |1-.8|, |1-.7|.
    assert result.metrics["ece"] == pytest.approx((0.1 + 0.6 + 0.2 + 0.3) / 4, rel=1e-6)


def test_precision_and_recall_are_nan_where_they_mean_nothing():
    result = evaluate(PROBABILITIES, TRUTH)
    np.testing.assert_allclose(result.precision, [1 / 2, 1, np.nan])
    np.testing.assert_allclose(result.recall, [1, 2 / 3, np.nan])


def test_a_class_that_is_predicted_but_never_true_lowers_macro_f1():
    assert macro_f1(np.array([[1, 1], [0, 0]])) == pytest.approx((2 / 3 + 0) / 2)


def test_rows_of_one_bin_are_averaged_before_they_are_compared():
    probabilities = np.array([[0.95, 0.05]] * 20)
    truth = np.array([0] * 19 + [1])
    assert expected_calibration_error(probabilities, truth) == pytest.approx(0, abs=1e-9)


def test_certain_and_right_is_perfect():
    result = evaluate(np.eye(3)[[0, 1, 2, 1]], np.array([0, 1, 2, 1]))
    assert result.metrics == pytest.approx({"accuracy": 1, "macro_f1": 1, "ece": 0, "nll": 0, "brier": 0})


def test_certain_and_wrong_has_a_finite_nll():
    assert np.isfinite(evaluate(np.eye(2), np.array([1, 0])).metrics["nll"])


def test_no_samples_have_no_metrics():
    result = evaluate(np.empty((0, 3)), np.empty(0, np.int64))
    assert result.metrics == {}
    assert result.confusion.tolist() == [[0] * 3] * 3


def test_reliability_bins_count_every_sample_once_and_give_the_ece():
    # Two samples in the last of 15 bins, one of them right; one in (9/15, 10/15], wrong.
    probabilities = np.array([[0.95, 0.05], [0.03, 0.97], [0.62, 0.38]])
    bins = evaluate(probabilities, np.array([0, 0, 1])).reliability
    assert {i: int(n) for i, n in enumerate(bins.counts) if n} == {14: 2, 9: 1}
    assert (bins.accuracy[14], bins.accuracy[9]) == (0.5, 0.0)
    assert (bins.confidence[14], bins.confidence[9]) == (pytest.approx(0.96), pytest.approx(0.62))
    assert bins.ece == pytest.approx((2 * 0.46 + 0.62) / 3)


def test_reliability_survives_json():
    bins = evaluate(PROBABILITIES, TRUTH).reliability
    again = Reliability.from_json(json.loads(json.dumps(bins.as_json())))
    assert again.ece == bins.ece
    assert again.counts.tolist() == bins.counts.tolist()


def test_class_scores_are_those_of_the_confusion_matrix():
    scores = class_scores(np.array([[1, 0, 0], [1, 2, 0], [0, 0, 0]]))
    assert scores.support.tolist() == [1, 3, 0]
    np.testing.assert_allclose(scores.f1, [2 / 3, 4 / 5, np.nan])
