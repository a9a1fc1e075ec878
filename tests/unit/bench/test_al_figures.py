"""The benchmark's table on curves so small that every figure can be worked out by eye."""

import pytest

from services.trainer.comparison.cells import Cell, CellResult, Point
from tests.bench.al.figures import ece_goals, goals, rows, saving_goal, summary_of

LABELS = (100, 300, 500)


def run(strategy: str, seed: int, *accuracies: float, ece: float = 0.03, recall: float = 0.4) -> CellResult:
    points = tuple(
        Point(labels, accuracy, accuracy, ece, 1.0, recall, 0.1, None, 0.1)
        for labels, accuracy in zip(LABELS, accuracies, strict=False)
    )
    return CellResult(Cell(seed, "vgg16", "logistic", strategy), points)


def two_seeds(strategy: str, *accuracies: float, spread: float = 0.001, **more: float) -> list[CellResult]:
    return [
        run(strategy, 100, *(a + spread for a in accuracies), **more),
        run(strategy, 101, *(a - spread for a in accuracies), **more),
    ]


RANDOM = two_seeds("random", 0.5, 0.6, 0.7)


def test_a_row_says_the_difference_to_random_and_to_the_contender():
    results = [*RANDOM, *two_seeds("auto", 0.5, 0.64, 0.7), *two_seeds("modAL margin", 0.5, 0.62, 0.7)]
    table = {row.strategy: row for row in rows(summary_of(results), results, "auto", ["modAL margin"])}
    assert table["random"].aubc == pytest.approx(60)
    assert table["auto"].minus_random == pytest.approx(2)
    assert table["auto"].contender_minus is None
    assert table["modAL margin"].contender_minus == pytest.approx(1)
    assert (table["modAL margin"].whose, table["auto"].whose) == ("peer", "ours")


def test_the_contender_must_beat_the_peer_that_comes_closest():
    far, near = two_seeds("modAL entropy", 0.5, 0.5, 0.6), two_seeds("modAL margin", 0.5, 0.65, 0.7)
    results = [*RANDOM, *two_seeds("auto", 0.5, 0.64, 0.7), *far, *near]
    first = goals(summary_of(results), results, "auto", ["modAL entropy", "modAL margin"])[0]
    assert "closest is modAL margin" in first.figure
    assert not first.reached


def test_a_gain_of_a_point_is_reached_and_less_is_not():
    for final, reached in ((0.72, True), (0.70, False)):
        results = [*RANDOM, *two_seeds("auto", 0.5, 0.615, final)]
        gain = next(goal for goal in goals(summary_of(results), results, "auto", []) if "minus random" in goal.figure)
        assert gain.reached is reached, gain


def test_worst_class_recall_is_held_against_randoms():
    results = [*RANDOM, *two_seeds("auto", 0.5, 0.7, 0.8, recall=0.39)]
    recall = next(goal for goal in goals(summary_of(results), results, "auto", []) if "recall" in goal.figure)
    assert not recall.reached


def test_calibration_counts_from_300_labels_on():
    early = CellResult(RANDOM[0].cell, (run("auto", 0, 0.5, ece=0.2).points[0], *run("auto", 0, 0.5, 0.6).points[1:]))
    auto = CellResult(Cell(100, "vgg16", "calibrated", "auto"), early.points)
    (goal,) = ece_goals([auto], "vgg16", ["auto"])
    assert goal.measured == "0.030"
    assert goal.reached


def test_label_saving_is_read_from_the_mean_curve():
    summary = summary_of(RANDOM)
    assert saving_goal(two_seeds("auto", 0.6, 0.7, 0.8), summary, "ours").measured == "300"
    missed = saving_goal(two_seeds("auto", 0.5, 0.6, 0.65), summary, "ours")
    assert not missed.reached
    assert missed.measured.startswith("not by 500")


def test_a_seed_that_a_strategy_lacks_is_left_out():
    results = [*RANDOM, *two_seeds("auto", 0.5, 0.64, 0.7)[:1]]
    assert summary_of(results).seeds == (100,)
