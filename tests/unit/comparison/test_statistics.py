"""Small curves whose right answers are visible by eye."""

import numpy as np
import pytest

from services.trainer.comparison.statistics import (
    aubc,
    interval_of_mean,
    labels_to_reach,
    paired_difference,
    penalty_matrix,
    t_quantile,
)


def test_the_area_of_a_flat_curve_is_its_height():
    assert aubc(np.array([100, 200, 300]), np.array([0.5, 0.5, 0.5])) == pytest.approx(0.5)


def test_the_area_of_a_rising_line_is_its_middle():
    assert aubc(np.array([0, 10]), np.array([0.2, 0.6])) == pytest.approx(0.4)


def test_a_longer_step_weighs_more():
    # 0.5 over 100 labels, 0.9 over 300: (0.5 x 100 + 0.9 x 300) / 400, with the jump made in no time
    labels = np.array([0, 100, 100.000001, 400])
    assert aubc(labels, np.array([0.5, 0.5, 0.9, 0.9])) == pytest.approx(0.8)


def test_areas_of_several_runs_come_at_once():
    areas = aubc(np.array([0, 1]), np.array([[0.0, 1.0], [1.0, 1.0]]))
    assert areas.tolist() == [0.5, 1.0]


def test_the_quantile_is_that_of_the_tables():
    assert t_quantile(5) == pytest.approx(2.776, abs=5e-4)
    assert t_quantile(15) == pytest.approx(2.145, abs=5e-4)
    assert np.isnan(t_quantile(1))


def test_a_paired_difference_has_the_interval_of_the_t_test():
    found = paired_difference(np.array([3.0, 4.0, 5.0, 6.0, 7.0]), np.array([2.0, 2.0, 2.0, 2.0, 2.0]))
    # differences 1..5: mean 3, sd 1.5811, half-width 2.776 x 1.5811 / sqrt(5) = 1.963
    assert (found.mean, found.wins, found.pairs) == (3.0, 5, 5)
    assert (found.low, found.high) == (pytest.approx(1.037, abs=1e-3), pytest.approx(4.963, abs=1e-3))
    assert found.resolved


def test_what_both_runs_of_a_seed_share_takes_nothing_from_the_interval():
    seeds = np.array([0.1, 0.9, 0.4, 0.6])  # seeds differ by much more than the strategies
    found = paired_difference(seeds + 0.01, seeds)
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)


def test_one_seed_shows_a_difference_and_no_interval():
    found = paired_difference(np.array([0.7]), np.array([0.6]))
    assert found.mean == pytest.approx(0.1)
    assert np.isnan(found.low)
    assert not found.resolved


def test_a_difference_that_may_be_nothing_is_not_resolved():
    assert not paired_difference(np.array([1.0, -1.0, 0.5]), np.zeros(3)).resolved


def test_the_band_of_a_mean_curve_is_its_t_interval():
    low, high = interval_of_mean(np.array([[0.0, 1.0], [2.0, 1.0]]))
    # two seeds: t = 12.706, sd = sqrt(2), so the half-width is 12.706
    np.testing.assert_allclose([low, high], [[1 - 12.706, 1.0], [1 + 12.706, 1.0]], atol=1e-3)


def test_labels_to_reach_is_the_first_budget_at_the_target():
    labels, curve = np.array([100, 200, 300, 400]), np.array([0.5, 0.6, 0.7, 0.75])
    assert labels_to_reach(labels, curve, 0.7) == 300
    assert labels_to_reach(labels, curve, 0.65) == 300
    assert labels_to_reach(labels, curve, 0.8) is None


def test_who_is_always_ahead_gets_all_the_penalty_points_of_the_other():
    seeds = np.array([[0.50], [0.51], [0.52], [0.53], [0.54]])  # (n, L = 1)
    ahead = seeds + np.array([[0.01], [0.02], [0.015], [0.01], [0.02]])
    assert penalty_matrix(np.stack([ahead, seeds])).tolist() == [[0, 1], [0, 0]]


def test_each_budget_counts_its_share_and_a_draw_counts_for_nobody():
    base = np.zeros((5, 4))
    other = np.zeros((5, 4))
    other[:, 0] = [0.1, 0.1, 0.1, 0.1, 0.1]  # ahead by the same amount with every seed
    other[:, 1] = [0.3, -0.3, 0.2, -0.2, 0.0]  # ahead with some
    other[:, 2] = [-0.1, -0.2, -0.1, -0.2, -0.1]  # behind
    assert penalty_matrix(np.stack([base, other])).tolist() == [[0, 0.25], [0.25, 0]]


def test_the_threshold_is_the_t_quantile():
    # t = sqrt(5) mean / sd: 2.7 does not beat, 2.9 does
    d = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    sd = d.std(ddof=1)
    for t, points in ((2.7, 0.0), (2.9, 1.0)):
        run = (d + t * sd / np.sqrt(5))[:, None]
        assert penalty_matrix(np.stack([run, np.zeros((5, 1))]))[0, 1] == points


def test_a_single_seed_beats_nobody():
    assert penalty_matrix(np.array([[[0.9]], [[0.1]]])).tolist() == [[0, 0], [0, 0]]
