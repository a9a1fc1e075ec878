"""Bootstrapped and dropout committees, the network they share, and one temperature for all members."""

from dataclasses import replace

import numpy as np
import pytest

from services.trainer import calibration
from services.trainer.heads import HeadTask
from services.trainer.heads.bootstrap import BOOTSTRAP, resamples
from services.trainer.heads.logistic import LOGISTIC
from services.trainer.heads.mlp import DROPOUT, MLP
from services.trainer.heads.network import KEPT, UNITS, train
from services.trainer.heads.rounds import ROUNDS, known_by_round
from services.trainer.learning import LabelledSamples, SilentWatch
from services.trainer.logistic import fit_logistic
from tests.unit.learning.conftest import CountingWatch, blobs, labelled


def task(rows, truth, **changes) -> HeadTask:
    return HeadTask(rows, labelled(truth), int(truth.max()) + 1, 0, SilentWatch(), **changes)


def rings(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An inner and an outer ring: no linear map tells them apart."""
    rng = np.random.default_rng(seed)
    truth, angle = np.arange(count) % 2, rng.uniform(0, 2 * np.pi, count)
    radius = 1 + 2 * truth + rng.normal(size=count) * 0.2
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32), truth


# ---- bootstrap ------------------------------------------------------------------------------------------


def test_resamples_keep_the_size_of_every_class_and_leave_out_what_is_not_known():
    classes = np.repeat([0, 1, 2], [50, 9, 1])
    known = np.arange(60) % 2 == 0
    counts = resamples(classes, known, 6, np.random.default_rng(0))
    assert counts.shape == (6, 60)
    assert not counts[:, ~known].any()
    for c in range(3):
        np.testing.assert_array_equal(counts[:, classes == c].sum(axis=1), (known & (classes == c)).sum())
    assert (counts[:, known & (classes == 0)] == 0).any(axis=1).all()  # each member has left somebody out
    assert len(np.unique(counts, axis=0)) == 6


def test_each_member_is_the_logistic_fit_of_its_own_resample():
    rows, truth = blobs(60, 8)
    head = BOOTSTRAP.fit(task(rows, truth, c_grid=(0.1,), folds=2, members=3)).head
    rng = np.random.default_rng([0, 3])
    from services.trainer.heads import stratified_folds

    fold_of = stratified_folds(labelled(truth).ids, truth, 2, 0)
    for fold in range(2):  # the folds' members are drawn first
        resamples(truth, fold_of != fold, 3, rng)
    counts = resamples(truth, np.ones(60, bool), 3, rng)
    standard = np.column_stack([(rows.astype(float) - head.mean) / head.scale, np.ones(60)])
    alone = fit_logistic(standard, truth, counts, 3, 0.1, None, 1e-8, lambda: None)
    np.testing.assert_allclose(head.weights, alone[..., :-1], atol=1e-3)


def test_bootstrap_chooses_the_c_of_the_logistic_head():
    rows, truth = blobs(120, 30)
    assert BOOTSTRAP.fit(task(rows, truth)).notes["c"] == LOGISTIC.fit(task(rows, truth)).notes["c"]


# ---- rounds ---------------------------------------------------------------------------------------------


def bought(truth, rounds) -> LabelledSamples:
    return replace(labelled(truth), rounds=np.array(rounds))


def test_members_know_the_labels_up_to_one_round_after_another():
    samples = bought(np.arange(6) % 2, [1, 1, 3, 3, 4, 4])
    assert known_by_round(samples, 2).astype(int).tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert known_by_round(samples, 9).sum(axis=1).tolist() == [2, 4, 6]  # there were no more rounds
    assert known_by_round(replace(samples, rounds=None), 3).sum(axis=1).tolist() == [6]


def test_a_round_with_one_class_made_no_classifier():
    assert known_by_round(bought(np.array([0, 0, 1, 0]), [1, 1, 2, 3]), 5).sum(axis=1).tolist() == [3, 4]


def test_each_member_is_the_logistic_fit_of_what_was_known_then():
    rows, truth = blobs(60, 8)
    samples = bought(truth, np.repeat([1, 2, 3], 20))
    head = ROUNDS.fit(HeadTask(rows, samples, 3, 0, SilentWatch(), c_grid=(0.1,), members=3)).head
    standard = np.column_stack([(rows.astype(float) - head.mean) / head.scale, np.ones(60)])
    for member, count in enumerate((20, 40, 60)):
        alone = fit_logistic(standard[:count], truth[:count], np.ones((1, count)), 3, 0.1, None, 1e-8, lambda: None)
        np.testing.assert_allclose(head.weights[member], alone[0, :, :-1], atol=1e-3)


def test_a_class_that_came_later_is_never_what_an_earlier_member_predicts():
    rows, truth = blobs(60, 8)
    truth = np.where(np.arange(60) < 20, truth % 2, truth)
    head = ROUNDS.fit(HeadTask(rows, bought(truth, np.repeat([1, 2, 3], 20)), 3, 0, SilentWatch(), members=3)).head
    first, *later = np.moveaxis(head.logits(rows), 1, 0)
    assert not (first.argmax(axis=1) == 2).any()
    assert not head.weights[0, 2].any()
    assert all((member[:, 2] > member.min(axis=1)).any() for member in later)


# ---- network --------------------------------------------------------------------------------------------


def test_the_network_tells_rings_apart_where_a_linear_head_cannot():
    rows, truth = rings(300)
    tests, of_tests = rings(300, seed=1)
    right = {
        method.name: (method.fit(task(rows, truth)).head.probabilities(tests).argmax(axis=1) == of_tests).mean()
        for method in (MLP, DROPOUT, LOGISTIC)
    }
    assert right["mlp"] > 0.97
    assert right["dropout"] > 0.95
    assert right["logistic"] < 0.7


def test_the_gradient_is_that_of_the_loss():
    from services.trainer.heads import network

    rng = np.random.default_rng(0)
    rows, one_hot = rng.normal(size=(7, 5)), np.eye(3)[rng.integers(0, 3, 7)]
    weights = [rng.normal(size=shape) for shape in ((5, 6), (6,), (6, 3), (3,))]

    class NoDropout:
        def random(self, shape, dtype):
            return np.zeros(shape)  # below KEPT: every unit stays, and is doubled

    def loss() -> float:
        units = np.maximum(rows @ weights[0] + weights[1], 0) / KEPT
        return calibration.log_loss(units @ weights[2] + weights[3], one_hot.argmax(axis=1))

    found = network._gradient(weights, rows, one_hot, np.zeros(3), NoDropout())
    for w, gradient in zip(weights, found, strict=True):
        for at in np.ndindex(w.shape):
            before = w[at]
            w[at] = before + 1e-6
            above = loss()
            w[at] = before - 1e-6
            below = loss()
            w[at] = before
            assert gradient[at] == pytest.approx((above - below) / 2e-6, abs=1e-6)


def test_a_longer_training_passes_through_the_shorter_one():
    rows, truth = blobs(50, 8)

    def trained(steps):
        return train(rows, truth, 3, 8, steps, np.random.default_rng(1), lambda: None)

    short, long = trained((10, 40))
    np.testing.assert_array_equal(short.inner, trained((10,))[0].inner)
    np.testing.assert_array_equal(long.outer, trained((40,))[0].outer)
    assert np.abs(long.inner - short.inner).max() > 0


def test_members_of_a_dropout_committee_are_one_network_with_units_left_out():
    rows, truth = blobs(60, 8)
    head = DROPOUT.fit(task(rows, truth, members=3)).head
    assert head.hidden is not None
    assert head.hidden.weights.shape == (UNITS, 8)
    out = (head.weights == 0).all(axis=1)  # (K, H)
    assert ((out.mean(axis=1) > 0.35) & (out.mean(axis=1) < 0.65)).all()
    both = ~out[0] & ~out[1]
    np.testing.assert_array_equal(head.weights[0][:, both], head.weights[1][:, both])
    assert (out[0] != out[1]).any()


def test_the_number_of_steps_is_the_one_with_the_lowest_out_of_fold_loss():
    rows, truth = blobs(200, 60)
    noise = np.random.default_rng(1).random(200) < 0.4
    long_for_rings = MLP.fit(task(*rings(300))).notes["steps"]
    short_for_noise = MLP.fit(task(rows, np.where(noise, (truth + 1) % 3, truth))).notes["steps"]
    assert short_for_noise < long_for_rings


def test_training_looks_at_the_watch_every_few_steps():
    rows, truth = blobs(40, 8)
    watch = CountingWatch()
    train(rows, truth, 3, 8, (100,), np.random.default_rng(0), lambda: watch.progress("fit", 0, 1))
    assert len(watch.seen) >= 5


# ---- one temperature for all members --------------------------------------------------------------------


def test_a_committee_of_twins_has_the_temperature_of_one():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 300)
    logits = 4 * rng.normal(size=(300, 3)) + 3 * np.eye(3)[truth]
    alone = calibration.temperature(logits, truth)
    assert 1.2 < alone < 10
    assert calibration.temperature(logits[:, None], truth) == alone
    twins = np.repeat(logits[:, None], 3, axis=1)
    assert calibration.temperature(twins, truth) == pytest.approx(alone, rel=1e-3)
    assert calibration.log_loss(twins, truth) == pytest.approx(calibration.log_loss(logits, truth))


def test_a_committees_temperature_makes_the_mean_of_its_probabilities_likeliest():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 400)
    logits = 3 * rng.normal(size=(400, 4, 3)) + 2 * np.eye(3)[truth][:, None]
    found = calibration.temperature(logits, truth)
    losses = {t: calibration.log_loss(logits / t, truth) for t in np.geomspace(0.1, 10, 60)}
    assert calibration.log_loss(logits / found, truth) <= min(losses.values()) + 1e-6


def test_log_loss_of_members_that_rule_a_class_out_is_finite():
    logits = np.array([[[-1000.0, 0.0], [-1000.0, 0.0]], [[0.0, -1000.0], [-1000.0, 0.0]]])
    assert calibration.log_loss(logits, np.array([1, 0])) == pytest.approx(np.log(2) / 2)
    assert calibration.log_loss(logits, np.array([0, 0])) > 100
