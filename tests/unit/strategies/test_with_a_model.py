"""Strategies that ask a model, and then care for more than its highest scores."""

import numpy as np
import pytest

from services.trainer.calibration import softmax
from services.trainer.strategies import core, strategy
from services.trainer.strategies.badge import spread_out
from services.trainer.strategies.cluster_margin import _place_within
from services.trainer.strategies.core import candidates, highest
from services.trainer.strategies.drop_query import class_changes, most_changed
from tests.unit.strategies.planes import at_angle, group, pool_of


def pick(name, pool, budget, seed=0):
    return strategy(name).pick(pool, budget, np.random.default_rng(seed))


UNCERTAINTY = ["least_confidence", "margin", "entropy", "mean_std", "variation_ratios", "vote_entropy", "mean_kl"]


@pytest.mark.parametrize("name", [*UNCERTAINTY, "consensus_entropy", "bald"])
def test_uncertainty_picks_the_highest_scores_first(name):
    line = {f"u{i}": [float(i)] for i in range(9)}
    assert pick(name, pool_of(line, scores={i: float(i[1]) for i in line}), 3) == ["u8", "u7", "u6"]


def test_equal_scores_are_drawn_at_random():
    line = {f"u{i}": [float(i)] for i in range(60)}
    pool = pool_of(line, scores=dict.fromkeys(line, 0.5))
    assert pick("margin", pool, 10, seed=1) != pick("margin", pool, 10, seed=2)


def test_random_draws_every_sample_about_equally_often():
    line = {f"u{i:02d}": [float(i)] for i in range(60)}
    counts = dict.fromkeys(line, 0)
    for seed in range(300):
        for sample in pick("random", pool_of(line), 20, seed):
            counts[sample] += 1
    assert 60 < min(counts.values()) <= max(counts.values()) < 140  # 100 expected


def test_highest_puts_the_highest_first_also_when_all_are_asked_for():
    rng = np.random.default_rng(0)
    assert highest(np.array([1.0, 3.0, 2.0]), 5, rng).tolist() == [1, 2, 0]
    assert highest(np.array([]), 5, rng).tolist() == []


def test_candidates_are_ten_for_each_pick():
    line = {f"u{i:03d}": [float(i)] for i in range(100)}
    pool = pool_of(line, scores={i: float(i[1:]) for i in line})
    assert set(candidates(pool, 2, np.random.default_rng(0))) == {f"u{i:03d}" for i in range(80, 100)}


# ---- power_margin ------------------------------------------------------------------------------------


def test_power_margin_draws_in_proportion_to_the_score():
    rows = {"three": [0.0], "one": [0.0], "never": [0.0]}
    pool = pool_of(rows, scores={"three": 0.75, "one": 0.25, "never": 0.0})
    drawn = [pick("power_margin", pool, 1, seed)[0] for seed in range(1000)]
    assert 700 < drawn.count("three") < 800
    assert drawn.count("never") == 0


# ---- class_balanced ----------------------------------------------------------------------------------


def by_sign(rows: np.ndarray) -> np.ndarray:
    """Class 1 right of zero, class 0 left of it."""
    return softmax(np.stack([-rows[:, 0], rows[:, 0]], axis=1))[:, None, :]


def test_class_balanced_fills_up_the_class_that_has_the_fewest_labels():
    line = {f"{i:+03d}": [float(i)] for i in (-9, -8, -7, -6, -5, -4, 4, 5, 6, 7)} | {
        "a": [1.0],
        "b": [1.0],
        "c": [-1.0],
    }
    scores = {i: 1 - abs(row[0]) / 10 for i, row in line.items()}
    # Bought: two of class 1 and one of class 0. Four more make it seven: class 0 gets three of them at most.
    pool = pool_of(line, ["a", "b", "c"], scores, by_sign, classes_of_labelled=[1, 1, 0])
    assert pick("class_balanced", pool, 5) == ["-04", "-05", "+04", "-06", "+05"]


def test_class_balanced_goes_on_with_the_others_when_a_class_has_no_sample_left():
    line = {"-1": [-1.0], "+1": [1.0], "+2": [2.0], "+3": [3.0]}
    pool = pool_of(line, scores={i: 1 / abs(row[0]) for i, row in line.items()}, classify=by_sign)
    assert pick("class_balanced", pool, 4) == ["-1", "+1", "+2", "+3"]


def test_class_balanced_does_not_count_what_is_drawn_and_not_answered_yet():
    line = {"-1": [-1.0], "+1": [1.0], "a": [5.0], "b": [5.0]}
    pool = pool_of(line, ["a", "b"], {"-1": 0.5, "+1": 0.5}, by_sign, classes_of_labelled=[0, -1])
    assert pick("class_balanced", pool, 1) == ["+1"]


def test_class_balanced_predicts_no_more_than_it_needs_and_picks_as_if_it_had_predicted_all():
    rng = np.random.default_rng(0)
    rows = {f"{i:04d}": [float(x)] for i, x in enumerate(rng.normal(size=3000) + 1)}
    scores = {i: 1 - abs(row[0]) / 10 for i, row in rows.items()}
    labelled = list(rows)[:30]
    pool = pool_of(rows, labelled, scores, by_sign, classes_of_labelled=[1] * 30)
    picked = pick("class_balanced", pool, 100)
    assert len(pool.embeddings.asked) == 1024  # one step of three thousand
    ranked = sorted(pool.ids, key=lambda i: -scores[i])
    left = {0: [i for i in ranked if rows[i][0] < 0], 1: [i for i in ranked if rows[i][0] >= 0]}
    owned, expected = {0: 0, 1: 30}, []
    for _ in range(100):
        poorest = min(owned, key=lambda c: (owned[c], c))
        expected.append(left[poorest].pop(0))
        owned[poorest] += 1
    assert picked == expected


# ---- cluster_margin ----------------------------------------------------------------------------------


def test_cluster_margin_takes_turns_among_the_clusters_of_the_smallest_margins(monkeypatch):
    monkeypatch.setattr("services.trainer.strategies.cluster_margin._ROWS_IN_A_CLUSTER", 14)  # three clusters of 42
    rows = group("east", 0, 30) | group("north", 90, 8) | group("west", 180, 4)
    # Everything east is more uncertain than all else: the plain margin would buy nothing but these.
    scores = {i: {"e": 0.9, "n": 0.8, "w": 0.7}[i[0]] for i in rows}
    picked = pick("cluster_margin", pool_of(rows, scores=scores), 5)
    assert {i.split("-")[0] for i in pick("margin", pool_of(rows, scores=scores), 5)} == {"east"}
    assert {i.split("-")[0] for i in picked} == {"east", "north", "west"}
    assert picked[0].startswith("west")  # the smallest group first


def test_the_place_within_a_group_counts_its_earlier_members():
    assert _place_within(np.array([2, 0, 2, 2, 0, 1])).tolist() == [0, 0, 1, 2, 1, 0]


# ---- badge -------------------------------------------------------------------------------------------


def test_badge_measures_the_distances_of_gradients_that_it_never_builds(monkeypatch):
    """Each draw's chances are the squared distances to the nearest gradient that was drawn before."""
    rng = np.random.default_rng(0)
    residuals, embeddings = rng.normal(size=(30, 4)), rng.normal(size=(30, 6))
    gradients = np.einsum("mc,md->mcd", residuals, embeddings).reshape(30, -1)
    seen = []

    def first_of_the_highest(chances, _rng):
        seen.append(chances.copy())
        return int(chances.argmax())

    monkeypatch.setattr("services.trainer.strategies.badge.draw", first_of_the_highest)
    chosen = spread_out(residuals, embeddings, 5, rng, pool_of({"a": [0.0]}))
    assert chosen[0] == (gradients**2).sum(axis=1).argmax()
    for step, chances in enumerate(seen, start=1):
        exact = ((gradients[:, None] - gradients[chosen[:step]]) ** 2).sum(axis=2).min(axis=1)
        np.testing.assert_allclose(chances, exact, atol=1e-9)


def test_badge_takes_one_of_each_kind_before_it_takes_a_copy():
    rows = {f"{kind}-{copy}": at_angle(angle) for kind, angle in (("a", 0), ("b", 60), ("c", 120)) for copy in range(9)}

    def torn(some):
        return np.full((len(some), 1, 2), 0.5, np.float32)

    pool = pool_of(rows, scores=dict.fromkeys(rows, 1.0), classify=torn)
    for seed in range(5):
        assert {i[0] for i in pick("badge", pool, 3, seed)} == {"a", "b", "c"}
    assert len(set(pick("badge", pool, 20))) == 20


# ---- drop_query --------------------------------------------------------------------------------------


def test_a_class_that_hangs_on_every_value_changes_and_one_that_hangs_on_none_does_not():
    def two_of_three(some):  # class 1 where the sum reaches what all sixteen values make together
        sums = some.sum(axis=1) * 0.25  # masks multiply what they keep by four
        return softmax(np.stack([np.full(len(some), 15.5), sums * 4], axis=1))[:, None, :]

    fragile, robust = np.ones((50, 16), np.float32), np.full((50, 16), 100.0, np.float32)
    pool = pool_of({"a": [0.0]}, classify=two_of_three)
    rng = np.random.default_rng(0)
    assert class_changes(pool, fragile, rng).mean() > 1
    assert class_changes(pool, robust, rng).max() <= 1


def test_the_bar_is_lowered_until_there_are_candidates_enough():
    changes = np.array([3, 2, 1, 1, 0, 0])
    assert most_changed(changes, 2).tolist() == [0, 1]
    assert most_changed(changes, 3).tolist() == [0, 1, 2, 3]
    assert most_changed(changes, 5).tolist() == [0, 1, 2, 3, 4, 5]
    assert most_changed(changes, 50).tolist() == [0, 1, 2, 3, 4, 5]


def test_drop_query_takes_one_of_each_group_of_candidates():
    rows = group("east", 0, 20) | group("north", 90, 10) | group("west", 180, 6)
    assert {i.split("-")[0] for i in pick("drop_query", pool_of(rows), 3)} == {"east", "north", "west"}


def test_a_pool_without_a_model_says_so():
    with pytest.raises(AssertionError, match="without a model"):
        core.ScoredPool(("a",), (), None, lambda ids: np.zeros((len(ids), 2))).classify(np.zeros((1, 2)))
