"""The stopping rules and the learning curve, on slices small or plain enough to be seen through."""

import math

import numpy as np
import pytest

from services.trainer.config import StoppingConfig
from services.trainer.stopping import RULES, Slice, fit_curve, forecast, next_marks, record, slice_cost
from services.trainer.stopping.curve import LearningCurve
from services.trainer.stopping.slices import covariance, kappa, lower_bound, paired_gain, quantile


def a_slice(right, labels=100, round_no=1, predicted=None):
    """`right`: one bool a row, of rows that all slices share by position."""
    classes = dict(enumerate(predicted)) if predicted is not None else {}
    return Slice(
        round_no, labels, {f"s{i}": bool(r) for i, r in enumerate(right)}, {f"s{i}": c for i, c in classes.items()}
    )


def with_accuracy(share, labels, rows=1000, round_no=1):
    return a_slice(np.arange(rows) < round(share * rows), labels, round_no)


def simulated(accuracy, rounds=8, batch=100, first_rows=200, more_rows=50, seed=0):
    """Rounds of a learner with `accuracy(n)`: each row has its difficulty, so that it stays right or wrong."""
    rng = np.random.default_rng(seed)
    difficulty, luck = rng.uniform(size=first_rows + more_rows * rounds), 0.05
    slices = []
    for number in range(1, rounds + 1):
        rows = first_rows + more_rows * (number - 1)
        right = difficulty[:rows] + luck * rng.normal(size=rows) < accuracy(number * batch)
        slices.append(a_slice(right, number * batch, number))
    return slices


def power_law(n):
    return 0.8 - 2 * n**-0.5


# ---- estimates on the slice ---------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "rows"), [(80, 100), (3, 4), (199, 200)])
def test_the_lower_bound_is_the_accuracy_that_would_just_explain_what_was_seen(right, rows):
    bound = lower_bound(right, rows, 0.95)
    assert (right / rows - bound) / math.sqrt(bound * (1 - bound) / rows) == pytest.approx(1.6449, abs=1e-3)


def test_no_rows_and_no_right_rows_bound_nothing():
    assert lower_bound(0, 0, 0.95) == lower_bound(0, 10, 0.95) == 0.0
    assert lower_bound(7, 10, 0.5) == pytest.approx(0.7)  # half confidence is the estimate itself


def test_kappa_is_agreement_beyond_chance():
    # Three of four agree; by chance it would be half of one times a quarter and half times three quarters: a half.
    assert kappa(a_slice([1] * 4, predicted=[0, 0, 1, 1]), a_slice([1] * 4, predicted=[0, 1, 1, 1])) == (0.5, 4)
    same = a_slice([1] * 4, predicted=[0, 0, 1, 1])
    assert kappa(same, same) == (1.0, 4)
    assert kappa(a_slice([1] * 2, predicted=[1, 1]), a_slice([1] * 2, predicted=[1, 1])) == (1.0, 2)
    assert kappa(a_slice([1]), same) is None


def test_gain_is_paired_on_the_rows_that_both_rounds_have():
    gain = paired_gain(a_slice([1, 0, 0, 1]), a_slice([1, 1, 1, 0, 1, 1, 1]))
    assert (gain.mean, gain.rows) == (pytest.approx(1 / 6), 4)  # two gained, one lost, and half a row in each cell


def test_ten_rows_on_which_nothing_changed_do_not_prove_that_nothing_will():
    still = a_slice([1] * 6 + [0] * 4)
    gain = paired_gain(still, still)
    assert gain.mean == 0
    assert gain.upper(0.95) == pytest.approx(1.6449 / 12, abs=1e-3)


def test_rounds_that_share_their_rows_err_together():
    one, two = a_slice([1, 1, 0, 0] * 25), a_slice([1, 1, 0, 0] * 25, 200)
    other = Slice(3, 300, {f"t{i}": bool(i % 2) for i in range(100)})
    spread = covariance([one, two, other])
    assert spread[0, 1] == pytest.approx(spread[0, 0])
    assert spread[0, 2] == 0
    assert spread[0, 0] == pytest.approx(0.25 / 100, rel=0.01)


# ---- the learning curve -------------------------------------------------------------------------------


def test_the_curve_finds_the_law_that_made_it():
    slices = [with_accuracy(power_law(n), n, 20_000, r) for r, n in enumerate(range(100, 1100, 100), 1)]
    curve = fit_curve(slices)
    assert curve.end == pytest.approx(0.8, abs=0.01)
    assert curve.at(2500) == pytest.approx(0.76, abs=0.003)
    more, low, high = curve.more_for(0.75)  # 2 / sqrt(1600) is the 5 points that are missing at 1,600 labels
    assert low <= more <= high
    assert more == pytest.approx(600, rel=0.15)
    assert curve.gain(600) == pytest.approx(0.75 - power_law(1000), abs=0.002)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Where nearly all rows are in every round: draws that err apart hold it in 78%."""
    inside = []
    for seed in range(40):
        low, high = fit_curve(simulated(power_law, first_rows=300, more_rows=5, seed=seed)).interval(800)
        inside.append(low <= power_law(800) <= high)
    assert np.mean(inside) >= 0.85


def test_the_same_slices_give_the_same_curve():
    one, two = (fit_curve(simulated(power_law)) for _ in range(2))
    np.testing.assert_array_equal(one.refits, two.refits)


def test_a_curve_never_ends_above_one_nor_falls():
    rising = fit_curve([with_accuracy(n / 500, n, 50) for n in (100, 200, 300, 400, 490)])
    falling = fit_curve([with_accuracy(1 - n / 500, n, 50) for n in (100, 200, 300, 400)])
    assert rising.refits[:, 0].max() <= 1
    assert rising.at(10**9) <= 1
    assert falling.gain(1000) == 0


def test_three_rounds_are_too_few_to_say():
    answer = forecast(simulated(power_law, rounds=3), 0.75)
    assert answer.more is None
    assert answer.told == "cannot say yet: the curve needs 4 rounds with randomly drawn labels, there are 3"


def test_a_flat_curve_cannot_say():
    answer = forecast(simulated(lambda n: 0.7, first_rows=100, more_rows=10), 0.9)
    assert answer.more is None
    assert answer.told.startswith("cannot say: from 100 to 800 labels accuracy has moved by")


def test_a_target_above_the_end_of_the_curve_is_not_within_reach():
    slices = [with_accuracy(0.71 - 0.3 * (n / 100) ** -2.0, n, 5000) for n in range(100, 900, 100)]
    answer = forecast(slices, 0.75)
    assert (answer.more, answer.high) == (None, None)
    assert answer.told.startswith("not within reach: the fit ends at 71.")


def test_a_target_that_the_interval_allows_is_not_called_impossible():
    curve = fit_curve(slices := simulated(power_law, seed=3, first_rows=100, more_rows=10))
    target = (curve.end + curve.end_interval[1]) / 2
    assert "so more randomly drawn labels may tell otherwise" in forecast(slices, target).told


def test_a_target_at_the_end_of_the_world_is_as_good_as_never():
    curve = fit_curve(slices := simulated(power_law, rounds=10, first_rows=800, more_rows=20, seed=1))
    answer = forecast(slices, curve.end - 0.001)
    assert answer.more is None
    assert "takes more than 100 times the labels measured so far" in answer.told


def test_a_target_that_is_reached_needs_no_more():
    answer = forecast(simulated(power_law), 0.5)
    assert answer.more == 0
    assert answer.told.startswith("reached, by the fit: it stands at ")


def test_a_number_comes_with_its_interval():
    slices = [with_accuracy(power_law(n), n, 20_000) for n in range(100, 1100, 100)]
    answer = forecast(slices, 0.75)
    assert answer.low <= answer.more <= answer.high
    assert answer.told == (
        f"about {float(f'{answer.more:.2g}'):,.0f} more labels (95% interval: {float(f'{answer.low:.2g}'):,.0f} "
        f"to {float(f'{answer.high:.2g}'):,.0f})"
    )
    assert "times the labels measured so far, so a guess" in forecast(slices, 0.785).told


def test_the_next_marks_are_above_where_it_stands():
    assert next_marks([with_accuracy(0.62, 100)]) == [0.65, 0.7, 0.75]
    assert next_marks([with_accuracy(0.65, 100)]) == [0.7, 0.75, 0.8]
    assert next_marks([with_accuracy(0.93, 100)]) == [0.95]
    assert next_marks([]) == []


def test_the_slice_tells_what_it_costs():
    slices = [with_accuracy(0.6, 100, 100), with_accuracy(0.7, 500, 140, 5)]
    told = slice_cost(slices, "margin")
    assert "140 of 500 labels (28%) were drawn at random: 100 in round 1 and 40 in later batches, 8% of" in told
    assert "costs nothing" in slice_cost(slices, "random")


# ---- the rules ----------------------------------------------------------------------------------------


def asked(**rules):
    return StoppingConfig.model_validate(rules)


def enough(config, slices, batch=100):
    return record(config, slices, batch)["enough"]


def test_without_rules_nothing_is_ever_enough():
    kept = record(asked(), [with_accuracy(1.0, n) for n in range(100, 900, 100)], 100)
    assert (kept["enough"], kept["standings"]) == ("", {})
    assert kept["expected_gain"] == pytest.approx(0, abs=1e-9)


def test_the_target_is_reached_when_the_lower_bound_reaches_it():
    few, many = with_accuracy(0.8, 100, rows=50), with_accuracy(0.8, 100, rows=2000)
    config = asked(target_accuracy=0.77)
    assert not enough(config, [few])
    assert enough(config, [many]).startswith("enough by target_accuracy: 80.0% on 2,000 randomly drawn rows")
    assert enough(asked(target_accuracy=0.77, confidence=0.5), [few])


def test_a_plateau_is_a_gain_that_is_surely_small():
    config = asked(plateau={"gain": 0.03, "rounds": 2})
    still = [with_accuracy(0.7, n, rows=2000) for n in (100, 200, 300)]
    assert enough(config, still).startswith("enough by plateau: +0.0 points over 2 rounds")
    assert not enough(config, still[:2])
    assert not enough(config, [with_accuracy(a, n, 2000) for n, a in ((100, 0.6), (200, 0.65), (300, 0.7))])
    # The same on fifty rows shows nothing.
    assert not enough(config, [with_accuracy(0.7, n, rows=50) for n in (100, 200, 300)])


def test_kappa_is_averaged_over_its_rounds():
    predictions = [[0, 1] * 50, [1, 0] * 50, [1, 0] * 50, [1, 0] * 50]
    slices = [a_slice([1] * 100, 100 * n, n, predicted) for n, predicted in enumerate(predictions, 1)]
    config = asked(kappa={"above": 0.9, "rounds": 2})
    assert not enough(config, slices[:3])  # -1 and 1
    assert enough(config, slices).startswith("enough by kappa: 1.000 over 2 rounds on 100 randomly drawn rows")


def test_rounds_that_kept_no_classes_never_agree():
    kept = record(asked(kappa={"above": 0.1, "rounds": 1}), [a_slice([1]), a_slice([1])], 10)
    assert kept["enough"] == ""
    assert kept["standings"]["kappa"] == "the rounds did not keep the classes that they predicted"


def test_expected_gain_is_the_curves():
    slices = [with_accuracy(0.7 - 0.3 * (n / 100) ** -2.0, n, 5000) for n in range(100, 900, 100)]
    config = asked(expected_gain={"below": 0.005})
    assert enough(config, slices).startswith("enough by expected_gain:")
    assert not enough(config, slices[:3])
    rising = [with_accuracy(power_law(n), n, 20_000) for n in range(100, 500, 100)]
    assert not enough(config, rising)
    assert record(config, rising, 100)["expected_gain"] == pytest.approx(power_law(500) - power_law(400), abs=0.003)


def test_the_first_rule_of_the_table_that_says_enough_is_the_reason():
    config = asked(plateau={"gain": 0.5, "rounds": 1}, target_accuracy=0.5, kappa={"above": 0.99, "rounds": 1})
    kept = record(config, [with_accuracy(0.8, n) for n in (100, 200)], 100)
    assert kept["enough"].startswith("enough by target_accuracy")
    assert list(kept["standings"]) == [name for name in RULES if name in kept["standings"]]


def test_a_round_without_randomly_drawn_rows_decides_nothing():
    kept = record(asked(target_accuracy=0.1), [Slice(0, 0, {}), Slice(1, 100, {})], 100)
    assert kept == {"enough": "", "standings": {}, "expected_gain": None}


def test_a_slice_takes_nothing_else_from_a_report():
    report = {"labels": 2, "out_of_fold": {"a": True}, "out_of_fold_classes": {"a": 1}}
    more = {**report, "metrics": {"test": {"accuracy": 1.0}}, "confusion": [[9]], "notes": {"out_of_fold_accuracy": 1}}
    assert Slice.of_report(1, more) == Slice.of_report(1, report) == Slice(1, 2, {"a": True}, {"a": 1})


def test_a_bound_narrows_with_confidence():
    curve = fit_curve(simulated(power_law))
    assert isinstance(curve, LearningCurve)
    assert curve.gain_below(100, 0.5) < curve.gain_below(100, 0.95)
    assert quantile(0.5) == 0
