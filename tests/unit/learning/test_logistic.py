"""The solver behind the logistic heads: L-BFGS on many problems at once."""

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from services.trainer.calibration import softmax
from services.trainer.heads import fit_head, stratified_folds
from services.trainer.heads.core import standardisation
from services.trainer.heads.logistic import choose_c, with_bias
from services.trainer.lbfgs import History
from services.trainer.learning import SilentWatch
from services.trainer.logistic import Rotation, fit_logistic
from tests.unit.learning.conftest import blobs, labelled

GRID = (0.001, 0.01, 0.1, 1.0)


def no_look() -> None: ...


def standard(count: int, size: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised rows with a last column of ones, and their classes."""
    rows, truth = blobs(count, size, seed=seed)
    mean, scale = standardisation(rows)
    return with_bias((rows - mean) / scale), truth


# ---- the steps ------------------------------------------------------------------------------------------


def two_loops(pairs, inverse, gradient):
    """The recursion of the textbook (Nocedal & Wright, algorithm 7.4)."""
    direction, shares = gradient.copy(), []
    for s, y in reversed(pairs):
        share = s @ direction / (s @ y)
        direction -= share * y
        shares.append(share)
    s, y = pairs[-1]
    direction *= inverse * (s @ y) / (y @ (inverse * y))
    for (s, y), share in zip(pairs, reversed(shares), strict=True):
        direction += s * (share - y @ direction / (s @ y))
    return -direction


@pytest.mark.parametrize("steps", [1, 4, 10, 23], ids=lambda n: f"after {n} steps")
def test_a_step_is_that_of_the_textbooks_recursion(steps):
    rng = np.random.default_rng(0)
    hessians = [(lambda a: a @ a.T + np.eye(6))(rng.normal(size=(6, 6))) for _ in range(2)]
    curvature = rng.uniform(1, 5, (2, 1, 3))
    history, pairs = History(curvature, 2), ([], [])
    gradient = rng.normal(size=(2, 2, 3))
    history.step(gradient)
    for _ in range(steps):
        step = rng.normal(size=(2, 2, 3))
        change = np.stack([h @ s.ravel() for h, s in zip(hessians, step, strict=True)])
        for of_problem, s, y in zip(pairs, step, change, strict=True):
            of_problem.append((s.ravel(), y))
        before, gradient = gradient, gradient + change.reshape(2, 2, 3)
        history.add(step, gradient, before)
    found, slope = history.step(gradient)
    for problem in range(2):
        inverse = np.tile(1 / curvature[problem, 0], 2)
        expected = two_loops(pairs[problem][-10:], inverse, gradient[problem].ravel())
        np.testing.assert_allclose(found[problem].ravel(), expected, rtol=1e-7, atol=1e-9)
        assert slope[problem] == pytest.approx(expected @ gradient[problem].ravel(), rel=1e-7)


def test_a_step_without_curvature_changes_no_later_one():
    rng = np.random.default_rng(0)
    history, gradient = History(np.ones((1, 1, 3)), 2), rng.normal(size=(1, 2, 3))
    history.add(rng.normal(size=(1, 2, 3)), gradient, gradient)
    np.testing.assert_allclose(history.step(gradient)[0], -gradient)


# ---- many problems at once ------------------------------------------------------------------------------


def test_problems_that_are_solved_together_are_solved_as_if_alone():
    rows, truth = standard(90)
    row_weights = np.random.default_rng(1).integers(0, 3, (4, 90)).astype(float)
    together = fit_logistic(rows, truth, row_weights, 3, 0.1, None, 1e-8, no_look)
    for problem, weights in enumerate(row_weights):
        alone = fit_logistic(rows, truth, weights[None], 3, 0.1, None, 1e-8, no_look)[0]
        np.testing.assert_allclose(together[problem], alone, atol=1e-6)


def test_a_problem_with_a_looser_tolerance_stops_earlier_and_holds_up_nobody():
    rows, truth = standard(90)
    row_weights = np.ones((2, 90))
    loose, tight = fit_logistic(rows, truth, row_weights, 3, 0.1, None, np.array([1e-2, 1e-9]), no_look)
    exact = fit_logistic(rows, truth, row_weights[:1], 3, 0.1, None, 1e-9, no_look)[0]
    np.testing.assert_allclose(tight, exact, atol=1e-7)
    assert np.abs(loose - exact).max() > 1e-4


def test_where_a_fit_begins_does_not_change_what_it_finds():
    rows, truth = standard(120, 60)
    start = np.random.default_rng(0).normal(size=(1, 3, rows.shape[1]))
    one, two = (fit_logistic(rows, truth, np.ones((1, 120)), 3, 0.1, s, 1e-8, no_look) for s in (None, start))
    np.testing.assert_allclose(softmax(rows @ one[0].T), softmax(rows @ two[0].T), atol=1e-5)


def test_float32_finds_the_same_to_its_own_precision():
    rows, truth = standard(120, 60)
    exact, coarse = (
        fit_logistic(r, truth, np.ones((1, 120)), 3, 0.1, None, 1e-4, no_look) for r in (rows, rows.astype(np.float32))
    )
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(softmax(rows @ coarse[0].T), softmax(rows @ exact[0].T), atol=1e-3)


# ---- the choice of C ------------------------------------------------------------------------------------


def exhaustive(rows, truth, fold_of) -> float:
    """The C at the first valley of the path, every fit brought to its end."""
    losses = [choose_c(rows, truth, fold_of, 3, (c,), SilentWatch()).log_loss for c in GRID]
    rises = [number for number in range(len(GRID) - 1) if losses[number + 1] >= losses[number]]
    return GRID[rises[0] if rises else -1]


def test_coarse_fits_choose_the_c_that_finished_ones_would():
    chosen = set()
    for seed in range(12):
        rows, truth = blobs(40 + 10 * seed, 40, seed=seed)
        flipped = np.random.default_rng(seed).random(len(truth)) < seed / 24
        truth = np.where(flipped, (truth + 1) % 3, truth)
        mean, scale = standardisation(rows)
        rotated = Rotation.of((rows - mean) / scale, no_look).rows
        fold_of = stratified_folds([str(i) for i in range(len(truth))], truth, 5, seed)
        best = choose_c(rotated, truth, fold_of, 3, GRID, SilentWatch())
        assert best.c == exhaustive(rotated, truth, fold_of)
        chosen.add(best.c)
    assert len(chosen) > 1  # or any choice would have done


def test_without_a_row_to_judge_by_the_strongest_regularisation_is_chosen():
    rows, truth = blobs(2)
    fold_of = np.array([0, 1])
    assert choose_c(rows.astype(float), truth, fold_of, 2, GRID, SilentWatch()).c == 0.001


def test_the_number_of_threads_changes_no_prediction():
    rows, truth = blobs(300, 200)
    heads = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads, user_api="blas"):
            heads.append(fit_head(rows, labelled(truth), 3, GRID, 5, 0, SilentWatch()).head)
    one, two = (head.probabilities(rows) for head in heads)
    np.testing.assert_allclose(one, two, atol=1e-5)
