import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from services.common.errors import BadRequest, Stopped
from services.trainer.calibration import log_loss
from services.trainer.heads import ABSENT_BIAS, fit_head, random_classes, stratified_folds, zero_head
from tests.unit.learning.conftest import CountingWatch, blobs, labelled

GRID = (0.001, 0.01, 0.1, 1.0)


def fit(rows, samples, class_count=3, grid=GRID, seed=0, watch=None):
    return fit_head(rows, samples, class_count, grid, 5, seed, watch or CountingWatch())


# ---- the fit itself -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 200], ids=["more rows than dimensions", "more dimensions than rows"])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_the_head_is_scikit_learns_logistic_regression(size, c):
    rows, truth = blobs(90, size)
    head = fit(rows, labelled(truth, 0), grid=(c,)).head
    standard = (rows.astype(float) - head.mean) / head.scale
    peer = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(standard, truth)
    np.testing.assert_allclose(head.probabilities(rows), peer.predict_proba(standard), atol=2e-4)


def test_standardisation_comes_from_the_labelled_rows():
    rows, truth = blobs(60)
    rows[:, 3] = 7.0  # a dimension that never changes
    head = fit(rows, labelled(truth)).head
    np.testing.assert_allclose(head.mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.delete(head.scale, 3), np.delete(rows.std(axis=0), 3), rtol=1e-4)
    assert head.scale[3] == 1.0
    assert np.isfinite(head.probabilities(rows)).all()


def test_c_is_the_one_with_the_lowest_out_of_fold_log_loss():
    rows, truth = blobs(120)
    chosen = fit(rows, labelled(truth))
    alone = {c: fit(rows, labelled(truth), grid=(c,)).notes["out_of_fold_log_loss"] for c in GRID}
    assert chosen.notes["c"] == min(alone, key=alone.__getitem__)
    assert chosen.notes["out_of_fold_log_loss"] == pytest.approx(min(alone.values()), rel=1e-3)


def test_same_labels_and_seed_give_the_same_head():
    rows, truth = blobs(80, 100)
    one, two = (fit(rows, labelled(truth), seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.head.weights, two.head.weights)
    np.testing.assert_array_equal(one.head.biases, two.head.biases)
    assert (one.head.temperature, one.out_of_fold) == (two.head.temperature, two.out_of_fold)


def test_a_stop_ends_the_fit_at_the_next_look():
    rows, truth = blobs(80)
    watch = CountingWatch(stop_at=3)
    with pytest.raises(Stopped):
        fit(rows, labelled(truth), watch=watch)
    assert len(watch.seen) == 3


# ---- what only the random rows decide ------------------------------------------------------------------


def test_out_of_fold_correctness_is_of_the_randomly_drawn_rows_only():
    rows, truth = blobs(60)
    result = fit(rows, labelled(truth, 0.5))
    assert set(result.out_of_fold) == {f"s{i}" for i in range(30)}


def test_out_of_fold_predictions_do_not_know_their_own_label():
    rng = np.random.default_rng(0)
    rows, noise = rng.normal(size=(300, 200)).astype(np.float32), rng.integers(0, 2, 300)
    result = fit(rows, labelled(noise), class_count=2, grid=(1.0,))
    on_itself = (result.head.probabilities(rows).argmax(axis=1) == noise).mean()
    out_of_fold = np.mean(list(result.out_of_fold.values()))
    assert on_itself > 0.95
    assert 0.35 < out_of_fold < 0.65


def test_temperature_improves_the_likelihood_of_unseen_rows():
    rows, truth = blobs(400, 100)
    wrong = np.random.default_rng(1).random(400) < 0.3
    truth = np.where(wrong, (truth + 1) % 3, truth)
    head = fit(rows[:200], labelled(truth[:200]), grid=(10.0,)).head
    logits = head.logits(rows[200:])[:, 0]
    assert head.temperature > 1.2
    assert log_loss(logits, truth[200:]) < log_loss(logits * head.temperature, truth[200:])


def test_temperature_needs_twenty_random_rows():
    rows, truth = blobs(100, 100)
    assert fit(rows, labelled(truth, 0.19)).head.temperature == 1.0
    assert fit(rows, labelled(truth, 0.20)).head.temperature != 1.0


# ---- few and missing classes --------------------------------------------------------------------------


def test_a_class_without_labels_keeps_its_place_and_is_never_predicted():
    rows, truth = blobs(60, classes=2)
    head = fit(rows, labelled(truth * 2), class_count=4).head  # classes 0 and 2 of four
    assert head.weights.shape == (1, 4, 20)
    assert not head.weights[0, [1, 3]].any()
    np.testing.assert_array_equal(head.biases[0, [1, 3]], ABSENT_BIAS)
    probabilities = head.probabilities(rows)
    assert np.isfinite(head.logits(rows)).all()
    assert probabilities[:, [1, 3]].max() < 1e-15
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_class_with_a_single_row_spoils_nothing():
    rows, truth = blobs(40, classes=2)
    truth[0] = 2
    result = fit(rows, labelled(truth))
    assert result.notes["out_of_fold_log_loss"] < 2
    assert result.out_of_fold["s0"] is False  # nothing else could have told its class


def test_the_classes_told_out_of_fold_are_those_that_correctness_is_of():
    rows, truth = blobs(90)
    samples = labelled(truth, 0.5)
    result = fit(rows, samples)
    classes = random_classes(samples, result.out_of_fold_logits)
    assert classes.keys() == result.out_of_fold.keys()
    assert {i: c == truth[int(i[1:])] for i, c in classes.items()} == result.out_of_fold


def test_two_labels_are_enough_for_a_head():
    rows, _ = blobs(2)
    result = fit(rows, labelled(np.array([0, 1])))
    assert result.head.probabilities(rows).argmax(axis=1).tolist() == [0, 1]
    assert result.out_of_fold == {"s0": False, "s1": False}


def test_a_single_class_is_refused():
    rows, _ = blobs(10)
    with pytest.raises(BadRequest, match="10 labelled samples are of 1 class"):
        fit(rows, labelled(np.zeros(10, np.int64)))


def test_a_class_index_out_of_range_is_refused():
    rows, truth = blobs(10)
    with pytest.raises(BadRequest, match=r"0\.\.1"):
        fit(rows, labelled(truth), class_count=2)


def test_embeddings_that_are_not_finite_are_refused():
    rows, truth = blobs(10)
    rows[3, 3] = np.nan
    with pytest.raises(BadRequest, match="finite"):
        fit(rows, labelled(truth))


def test_the_zero_head_finds_every_class_equally_likely():
    probabilities = zero_head(4, 20).probabilities(blobs(5)[0])
    np.testing.assert_array_equal(probabilities, np.full((5, 4), 0.25, np.float32))


# ---- folds --------------------------------------------------------------------------------------------


def test_folds_depend_on_ids_and_seed_not_on_order():
    ids, classes = [f"s{i}" for i in range(50)], np.arange(50) % 3
    fold_of = dict(zip(ids, stratified_folds(ids, classes, 5, 1), strict=True))
    turned = dict(zip(ids[::-1], stratified_folds(ids[::-1], classes[::-1], 5, 1), strict=True))
    assert fold_of == turned
    assert fold_of != dict(zip(ids, stratified_folds(ids, classes, 5, 2), strict=True))


def test_folds_are_stratified_and_of_equal_size():
    classes = np.repeat([0, 1, 2], [50, 23, 4])
    fold_of = stratified_folds([f"s{i}" for i in range(77)], classes, 5, 0)
    sizes = np.bincount(fold_of)
    assert sizes.max() - sizes.min() <= 1
    for c in range(3):
        of_class = np.bincount(fold_of[classes == c], minlength=5)
        assert of_class.max() - of_class.min() <= 1


def test_there_are_never_more_folds_than_rows():
    assert set(stratified_folds(["a", "b", "c"], np.array([0, 1, 1]), 5, 0)) == {0, 1, 2}
