"""Heads that learn from the unlabelled pool, and what they must not know."""

import numpy as np
import pytest

from services.trainer.heads import HeadTask, UnlabelledPool
from services.trainer.heads import core as heads_core
from services.trainer.heads.core import with_all_rows
from services.trainer.heads.knn_graph import knn_graph, propagate
from services.trainer.heads.label_propagation import LABEL_PROPAGATION, spread
from services.trainer.heads.logistic import LOGISTIC
from services.trainer.heads.pool_taught import Classroom
from services.trainer.heads.pool_view import PoolView
from services.trainer.heads.self_training import SELF_TRAINING, pseudo_labels, teach
from services.trainer.learning import SilentWatch
from services.trainer.logistic import fit_logistic, fit_soft
from tests.unit.learning.conftest import CountingWatch, blobs, labelled

pool_heads = pytest.mark.parametrize("method", [LABEL_PROPAGATION, SELF_TRAINING], ids=lambda method: method.name)


def no_look() -> None: ...


def pool_of(rows: np.ndarray) -> UnlabelledPool:
    return UnlabelledPool(tuple(f"u{i}" for i in range(len(rows))), lambda ids: rows[[int(i[1:]) for i in ids]])


def bands(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ along the first axis; twelve other axes are noise that a few labels get lost in."""
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % 2
    rows = rng.normal(size=(count, 13))
    rows[:, 0] = 5 * (2 * truth - 1) + rng.normal(size=count)
    return rows.astype(np.float32), truth


# ---- graph ----------------------------------------------------------------------------------------------


def test_the_graph_joins_the_nearest_directions():
    angle = np.deg2rad([0, 10, 21, 90, 101, 113])
    rows = np.column_stack([np.cos(angle), np.sin(angle)]) * np.array([1, 5, 2, 1, 9, 3])[:, None]
    graph = knn_graph(rows, no_look, neighbours=2).toarray()
    np.testing.assert_allclose(graph, graph.T, rtol=1e-6)
    np.testing.assert_array_equal(graph > 0, np.kron(np.eye(2), np.ones((3, 3)) - np.eye(3)) > 0)
    assert np.abs(np.linalg.eigvalsh(graph)).max() <= 1 + 1e-5


def test_blocks_of_similarities_make_the_same_graph(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(101, 9))
    whole = knn_graph(rows, no_look)
    monkeypatch.setattr("services.trainer.heads.knn_graph._BLOCK_BYTES", 4 * 101 * 7)
    watch = CountingWatch()
    in_blocks = knn_graph(rows, lambda: watch.progress("fit", 0, 1))
    np.testing.assert_allclose(in_blocks.toarray(), whole.toarray(), atol=1e-6)
    assert len(watch.seen) == 15


def test_a_graph_is_never_as_large_as_all_pairs():
    graph = knn_graph(np.random.default_rng(0).normal(size=(2000, 16)), no_look, neighbours=15)
    assert graph.nnz <= 2 * 15 * 2000


def test_a_label_reaches_its_own_component_and_no_other():
    angle = np.deg2rad([0, 10, 21, 90, 101, 113])
    graph = knn_graph(np.column_stack([np.cos(angle), np.sin(angle)]), no_look, neighbours=2)
    labels = np.zeros((6, 1, 2))
    labels[0, 0, 0] = 1
    heard = propagate(graph, labels, np.ones((6, 1), bool), no_look)[:, 0]
    assert (heard[:3, 0] > 0).all()
    assert not heard[3:].any()
    assert not heard[:, 1].any()


def test_who_takes_no_part_passes_nothing_on():
    # A chain whose middle alone joins its ends.
    graph = np.diag([0.5] * 4, 1) + np.diag([0.5] * 4, -1)
    labels = np.zeros((5, 2, 1))
    labels[0] = labels[2] = 1
    taking_part = np.ones((5, 2), bool)
    taking_part[2, 1] = False
    heard = propagate(graph, labels, taking_part, no_look)[..., 0]
    assert (heard[:, 0] > 0).all()
    assert (heard[:2, 1] > 0).all()
    assert not heard[2:, 1].any()


# ---- what a fold's teacher may know -----------------------------------------------------------------------


def classroom(classes: np.ndarray) -> Classroom:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(60, 10))
    view = PoolView(np.zeros(10), np.ones(10), np.eye(10), rows, np.float32(rows + 0.01 * rng.normal(size=rows.shape)))
    return Classroom(view, classes, with_all_rows(np.arange(60) % 3), 2, no_look)


@pytest.fixture
def two_labellings() -> tuple[np.ndarray, np.ndarray]:
    """They differ in the rows of fold 1, and in nothing else."""
    classes = np.random.default_rng(4).integers(0, 2, 60)
    return classes, np.where(np.arange(60) % 3 == 1, 1 - classes, classes)


def test_propagation_for_a_fold_does_not_know_the_labels_that_it_is_judged_on(two_labellings):
    (one, trust_one), (other, trust_other) = (spread(classroom(classes)) for classes in two_labellings)
    np.testing.assert_array_equal(one[:, 1], other[:, 1])
    np.testing.assert_array_equal(trust_one[1], trust_other[1])
    # The other folds and the head itself are taught by those labels.
    assert all((trust_one[problem] != trust_other[problem]).any() for problem in (0, 2, 3))


def test_self_training_for_a_fold_does_not_know_the_labels_that_it_is_judged_on(two_labellings):
    lessons = []
    for classes in two_labellings:
        room = classroom(classes)
        rows = np.column_stack([room.view.labelled, np.ones(60)])
        weights = fit_logistic(rows, classes, room.known.astype(float), 2, 0.1, None, 1e-6, no_look)
        lessons.append(teach(room, 0.5, weights))
    one, other = lessons
    np.testing.assert_array_equal(one.targets[:, 1], other.targets[:, 1])
    np.testing.assert_array_equal(one.trust[1], other.trust[1])
    assert (one.targets[:, 3] != other.targets[:, 3]).any()


@pool_heads
def test_flipping_a_folds_labels_changes_no_prediction_of_that_fold(method, monkeypatch):
    """End to end: the head taught by the pool is forced on, and each row's own fold is told lies."""
    rows, truth = bands(60, 0)
    fold_of = np.arange(60) % 3
    monkeypatch.setattr(heads_core, "stratified_folds", lambda ids, classes, folds, seed: fold_of)
    monkeypatch.setattr("services.trainer.heads.pool_taught.fit_head", without_opinion)
    seen = []
    monkeypatch.setattr("services.trainer.heads.pool_taught.calibrated", lambda *a: seen.append(a[1]) or a[1])
    monkeypatch.setattr("services.trainer.heads.pool_taught.out_of_fold_loss", lambda logits, task: 1.0)
    for classes in (truth, np.where(fold_of == 1, 1 - truth, truth)):
        method.fit(
            HeadTask(rows, labelled(classes), 2, 0, SilentWatch(), c_grid=(0.1,), pool=pool_of(bands(200, 1)[0]))
        )
    one, other = seen
    here = fold_of == 1
    np.testing.assert_allclose(one[here], other[here], atol=1e-2)
    assert np.abs(one[~here] - other[~here]).max() > 0.5


def without_opinion(*given):
    fit = LOGISTIC.fit(HeadTask(*given[:3], given[5], given[6], given[3], given[4]))
    fit.notes["out_of_fold_log_loss"] = np.inf
    return fit


# ---- what they are for ------------------------------------------------------------------------------------


@pool_heads
def test_the_pool_helps_where_few_labels_lose_themselves_in_noise(method):
    tests, of_tests = bands(1000, 9)
    gains, used = [], 0
    for seed in range(4):
        rows, truth = bands(16, seed)
        task = HeadTask(rows, labelled(truth), 2, 0, SilentWatch(), pool=pool_of(bands(600, 100 + seed)[0]))
        fit = method.fit(task)
        used += fit.notes["stage"] > 0
        right, alone = (
            (head.probabilities(tests).argmax(axis=1) == of_tests).mean()
            for head in (fit.head, LOGISTIC.fit(task).head)
        )
        gains.append(right - alone)
    assert used >= 2
    assert np.mean(gains) > 0.01


@pool_heads
def test_a_pool_that_only_misleads_leaves_the_logistic_head(method):
    rows, truth = bands(200, 0)
    # Nothing but noise, far from every labelled row.
    astray = np.random.default_rng(1).normal(size=(300, 13)).astype(np.float32) * 0.01
    astray[:, 0] += 20
    task = HeadTask(rows, labelled(truth), 2, 0, SilentWatch(), pool=pool_of(astray))
    fit, alone = method.fit(task), LOGISTIC.fit(task)
    assert fit.notes["out_of_fold_log_loss"] <= alone.notes["out_of_fold_log_loss"]
    assert (fit.head.probabilities(rows).argmax(axis=1) == truth).mean() > 0.98


def test_each_predicted_class_passes_its_own_most_confident():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.45, 0.55], [0.48, 0.52]])
    labels, passed = pseudo_labels(probabilities, 0.5)
    np.testing.assert_array_equal(labels.argmax(axis=1), [0, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(passed, [True, True, False, False, True, False])


def test_soft_labels_of_certainty_are_labels():
    rows, truth = blobs(60, 8)
    rows = np.column_stack([(rows - rows.mean(axis=0)) / rows.std(axis=0), np.ones(60)])
    weights = np.ones((2, 60))
    hard = fit_logistic(rows, truth, weights, 3, 0.1, None, 1e-8, no_look)
    soft = fit_soft(rows, np.repeat(np.eye(3)[truth][:, None], 2, axis=1), weights, 0.1, None, 1e-8, no_look)
    np.testing.assert_allclose(hard, soft, atol=1e-6)


def test_problems_may_differ_in_their_targets():
    rows, truth = blobs(60, 8)
    rows = np.column_stack([(rows - rows.mean(axis=0)) / rows.std(axis=0), np.ones(60)])
    turned = (truth + 1) % 3
    targets = np.stack([np.eye(3)[truth], np.eye(3)[turned]], axis=1)
    both = fit_soft(rows, targets, np.ones((2, 60)), 0.1, None, 1e-8, no_look)
    np.testing.assert_allclose(both[0], np.roll(both[1], -1, axis=0), atol=1e-5)


# ---- bounded reading ---------------------------------------------------------------------------------------


def test_a_large_pool_is_read_in_parts_and_only_as_many_rows_as_are_kept(monkeypatch):
    monkeypatch.setattr("services.trainer.heads.pool_view.MOST_ROWS", 9000)
    asked = []

    def embeddings(ids):
        asked.append(len(ids))
        return np.random.default_rng(len(ids)).normal(size=(len(ids), 300)).astype(np.float32)

    rows, truth = blobs(30, 300)
    pool = UnlabelledPool(tuple(f"u{i}" for i in range(20_000)), embeddings)
    view = PoolView.of(HeadTask(rows, labelled(truth), 3, 0, SilentWatch(), pool=pool))
    assert view.unlabelled.shape == (9000, 256)
    assert view.unlabelled.dtype == np.float32
    assert max(asked) <= 4096
    assert sum(asked) < 9000 + 2048


def test_the_same_rows_are_drawn_round_after_round():
    ids = tuple(f"u{i}" for i in range(1000))
    first = set(UnlabelledPool(ids, lambda some: np.empty((0, 0))).draw(100))
    later = set(UnlabelledPool(ids[::-1][50:], lambda some: np.empty((0, 0))).draw(100))
    assert len(first) == 100
    assert first & set(ids[:950]) <= later
