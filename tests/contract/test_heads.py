"""One contract for every head in the table."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from services.common.errors import BadRequest, Stopped
from services.trainer.config import COMMITTEES, LINEAR, HeadName, LearnerConfig
from services.trainer.evaluation import evaluate
from services.trainer.heads import ABSENT_BIAS, HEADS, HeadTask, UnlabelledPool, fit_blocks, random_classes
from services.trainer.learning import LabelledSamples
from services.trainer.onnx_graph import head_graph
from services.trainer.parity import MAX_PROBABILITY_ERROR, session, top1_disagreements
from tests.unit.learning.conftest import CountingWatch, blobs, labelled

every_head = pytest.mark.parametrize("name", sorted(HEADS))
# The sizes of two backbones' parts of twelve dimensions.
BLOCKS = (5, 7)
every_linear_head = pytest.mark.parametrize("name", LINEAR)
every_committee = pytest.mark.parametrize("name", sorted(n for n, method in HEADS.items() if method.committee))


def pool_of(rows: np.ndarray) -> UnlabelledPool:
    """The rows as unlabelled samples u0, u1, ..."""
    return UnlabelledPool(tuple(f"u{i}" for i in range(len(rows))), lambda ids: rows[[int(i[1:]) for i in ids]])


def easy(count: int, seed: int = 0, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Clouds that nobody could confuse: (N, 12), (N,)"""
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % classes
    centres = 6 * np.eye(12)[:classes]
    return (centres[truth] + rng.normal(size=(count, 12))).astype(np.float32), truth


def fit(name, rows, samples: LabelledSamples, class_count=3, seed=0, watch=None, members=4, unlabelled=None):
    unlabelled = easy(90, seed=5)[0] if unlabelled is None else unlabelled
    watch = watch or CountingWatch()
    if samples.rounds is None:
        samples = in_rounds(samples)
    task = HeadTask(rows, samples, class_count, seed, watch, members=members, pool=pool_of(unlabelled))
    return HEADS[name].fit(task)


def in_rounds(samples: LabelledSamples) -> LabelledSamples:
    """As bought in up to ten rounds of at least eight labels."""
    return replace(samples, rounds=np.arange(len(samples)) // max(8, -(-len(samples) // 10)))


def test_a_campaign_can_ask_for_every_head_and_no_other():
    assert set(get_args(HeadName)) == set(HEADS)
    assert all(name == method.name for name, method in HEADS.items())
    assert set(COMMITTEES) == {name for name, method in HEADS.items() if method.committee}
    assert LearnerConfig(head="bootstrap", members=7).committee_size == 7
    assert LearnerConfig(head="logistic", members=7).committee_size == 1
    assert all(not HEADS[name].committee for name in LINEAR)


@every_head
def test_learns_what_is_easy(name):
    rows, truth = easy(60)
    result = fit(name, rows, labelled(truth))
    tests, of_tests = easy(300, seed=1)
    metrics = evaluate(result.head.probabilities(tests), of_tests).metrics
    assert metrics["accuracy"] > 0.98
    assert metrics["nll"] < 0.2
    assert np.mean(list(result.out_of_fold.values())) > 0.95
    assert result.head.kind == name


@every_head
def test_the_exported_graph_is_the_head(name):
    rows, truth = blobs(80, 30)
    head = fit(name, rows, labelled(truth, 0.5), class_count=4, unlabelled=blobs(90, 30, seed=5)[0]).head
    tests = blobs(200, 30, seed=1)[0]
    graph = session(head_graph(head).SerializeToString())
    probabilities, logits = graph.run(["probabilities", "logits"], {"embedding": tests})
    assert logits.shape == (200, head.weights.shape[0], 4)
    expected = head.probabilities(tests)
    assert np.abs(probabilities - expected).max() < MAX_PROBABILITY_ERROR / 10
    assert top1_disagreements(expected, probabilities) == 0
    np.testing.assert_allclose(logits, head.logits(tests), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


@every_head
def test_out_of_fold_logits_say_what_was_right_out_of_fold(name):
    rows, truth = blobs(80, 30)
    samples = labelled(truth, 0.5)
    result = fit(name, rows, samples, class_count=4, unlabelled=blobs(90, 30, seed=5)[0])
    predicted = random_classes(samples, result.out_of_fold_logits)
    of_truth = dict(zip(samples.ids, samples.classes.tolist(), strict=True))
    assert {i: c == of_truth[i] for i, c in predicted.items()} == result.out_of_fold
    assert not all(result.out_of_fold.values())  # or the comparison says little


@every_head
def test_the_same_labels_and_seed_give_the_same_head(name):
    rows, truth = blobs(80, 30)
    one, two = (fit(name, rows, labelled(truth), seed=4, unlabelled=blobs(90, 30, seed=5)[0]) for _ in range(2))
    np.testing.assert_array_equal(one.head.weights, two.head.weights)
    np.testing.assert_array_equal(one.head.biases, two.head.biases)
    assert (one.head.temperature, one.out_of_fold, one.notes) == (two.head.temperature, two.out_of_fold, two.notes)


@every_head
def test_a_class_without_labels_keeps_its_place_and_is_never_predicted(name):
    rows, truth = easy(60, classes=2)
    head = fit(name, rows, labelled(truth * 2), class_count=4).head  # classes 0 and 2 of four
    assert head.weights.shape[1] == 4
    assert not head.weights[:, [1, 3]].any()
    np.testing.assert_array_equal(head.biases[:, [1, 3]], ABSENT_BIAS)
    probabilities = head.probabilities(easy(50, seed=1)[0])
    assert probabilities[:, [1, 3]].max() < 1e-15
    assert np.isfinite(head.logits(rows)).all()


@every_head
def test_a_class_with_a_single_row_is_learned_and_judges_nothing(name):
    rows, truth = easy(40, classes=2)
    rows[0], truth[0] = 6 * np.eye(12)[7], 2
    result = fit(name, rows, labelled(truth))
    assert result.head.probabilities(rows[:1]).argmax() == 2
    assert result.out_of_fold["s0"] is False  # nothing else could have told its class
    assert result.notes["out_of_fold_log_loss"] < 1


@every_head
def test_two_labels_are_enough(name):
    rows, truth = easy(2)
    result = fit(name, rows, labelled(truth))
    assert result.head.probabilities(rows).argmax(axis=1).tolist() == [0, 1]
    assert result.out_of_fold == {"s0": False, "s1": False}


@every_head
def test_a_single_class_is_refused(name):
    rows, _ = easy(10)
    with pytest.raises(BadRequest, match="10 labelled samples are of 1 class"):
        fit(name, rows, labelled(np.zeros(10, np.int64)))


@every_head
def test_embeddings_that_are_not_finite_are_refused(name):
    rows, truth = easy(30)
    rows[3, 3] = np.nan
    with pytest.raises(BadRequest, match="finite"):
        fit(name, rows, labelled(truth))


@every_head
def test_a_dimension_that_never_changes_spoils_nothing(name):
    rows, truth = easy(60)
    rows[:, 11] = 7.0
    unlabelled = easy(90, seed=5)[0]
    unlabelled[:, 11] = 7.0
    head = fit(name, rows, labelled(truth), unlabelled=unlabelled).head
    assert (head.probabilities(rows).argmax(axis=1) == truth).mean() > 0.95


@every_head
def test_only_randomly_drawn_rows_are_judged_and_fewer_than_twenty_fit_no_temperature(name):
    rows, truth = blobs(100, 30)
    unlabelled = blobs(50, 30, seed=5)[0]
    few = fit(name, rows, labelled(truth, 0.19), unlabelled=unlabelled)
    many = fit(name, rows, labelled(truth, 0.40), unlabelled=unlabelled)
    assert set(few.out_of_fold) == {f"s{i}" for i in range(19)}
    assert few.head.temperature == 1.0
    assert many.head.temperature != 1.0


@every_head
def test_labels_of_rows_not_drawn_at_random_do_not_touch_the_temperature(name):
    # The same fits twice, so the same out-of-fold logits; only who was drawn at random differs.
    rows, truth = blobs(200, 30)
    unlabelled = blobs(50, 30, seed=5)[0]
    hard = np.argsort(-np.abs(rows).sum(axis=1))[:60]
    drawn = np.zeros(200, bool)
    drawn[hard] = True
    ids = labelled(truth).ids
    of_hard = fit(name, rows, LabelledSamples(ids, truth, drawn), unlabelled=unlabelled)
    of_others = fit(name, rows, LabelledSamples(ids, truth, ~drawn), unlabelled=unlabelled)
    np.testing.assert_array_equal(of_hard.head.weights, of_others.head.weights)
    assert of_hard.head.temperature != of_others.head.temperature


@every_head
def test_out_of_fold_predictions_do_not_know_their_own_label(name):
    # Labels that nothing can predict; each unlabelled row lies beside a labelled one, to carry its label back to it.
    rng = np.random.default_rng(0)
    rows, noise = rng.normal(size=(200, 40)).astype(np.float32), rng.integers(0, 2, 200)
    beside = (rows + 0.01 * rng.normal(size=rows.shape)).astype(np.float32)
    result = fit(name, rows, labelled(noise), class_count=2, unlabelled=beside)
    assert 0.35 < np.mean(list(result.out_of_fold.values())) < 0.65


@every_head
def test_a_stop_ends_the_fit_at_the_next_look(name):
    rows, truth = blobs(80, 30)
    silent = CountingWatch()
    fit(name, rows, labelled(truth), watch=silent, unlabelled=blobs(50, 30, seed=5)[0])
    for stop_at in {1, len(silent.seen) // 2 or 1, len(silent.seen)}:
        watch = CountingWatch(stop_at=stop_at)
        with pytest.raises(Stopped):
            fit(name, rows, labelled(truth), watch=watch, unlabelled=blobs(50, 30, seed=5)[0])
        assert len(watch.seen) == stop_at


@every_head
def test_works_when_nothing_is_left_unlabelled(name):
    rows, truth = easy(30)
    head = fit(name, rows, labelled(truth), unlabelled=np.empty((0, 12), np.float32)).head
    assert (head.probabilities(rows).argmax(axis=1) == truth).all()


@every_head
@pytest.mark.parametrize("members", [2, 7])
def test_only_committees_have_as_many_members_as_they_are_asked_for(name, members):
    rows, truth = easy(80)
    head = fit(name, rows, labelled(truth), members=members).head
    assert head.weights.shape[0] == head.biases.shape[0] == (members if HEADS[name].committee else 1)


@every_committee
def test_members_disagree_most_where_the_labels_say_least(name):
    rows, truth = easy(64)
    head = fit(name, rows, labelled(truth), members=8).head
    between = np.stack([3 * np.eye(12)[0] + 3 * np.eye(12)[1]] * 2).astype(np.float32)
    centre = np.stack([6 * np.eye(12)[0]] * 2).astype(np.float32)

    def spread(points):
        logits = head.logits(points)
        return (logits[..., 0] - logits[..., 1]).std(axis=1)[0] / abs((logits[..., 0] - logits[..., 1]).mean(axis=1)[0])

    assert spread(between) > 2 * spread(centre)


@every_head
def test_only_heads_that_say_so_read_the_pool(name):
    def read(ids):
        raise AssertionError("the pool was read")

    rows, truth = easy(40)
    pool = UnlabelledPool(("u0", "u1"), read)
    task = HeadTask(rows, labelled(truth), 3, 0, CountingWatch(), pool=pool)
    if HEADS[name].uses_pool:
        with pytest.raises(AssertionError, match="was read"):
            HEADS[name].fit(task)
    else:
        HEADS[name].fit(task)


# ---- one member for each of several backbones --------------------------------------------------------------


def fit_parts(name, rows, truth, class_count=3, unlabelled=None, seed=0):
    unlabelled = easy(90, seed=5)[0] if unlabelled is None else unlabelled
    task = HeadTask(rows, labelled(truth), class_count, seed, CountingWatch(), pool=pool_of(unlabelled))
    return fit_blocks(HEADS[name], task, BLOCKS)


@every_linear_head
def test_each_member_sees_its_own_part_and_is_what_would_be_fitted_on_it_alone(name):
    rows, truth = easy(60)
    head = fit_parts(name, rows, truth).head
    assert head.weights.shape == (2, 3, 12)
    assert not head.weights[0, :, 5:].any()
    assert not head.weights[1, :, :5].any()
    alone = fit(name, rows[:, :5], labelled(truth), unlabelled=easy(90, seed=5)[0][:, :5]).head
    np.testing.assert_array_equal(head.weights[0, :, :5], alone.weights[0])
    np.testing.assert_array_equal(head.biases[0], alone.biases[0])
    np.testing.assert_array_equal(head.mean[:5], alone.mean)


@every_linear_head
def test_a_committee_of_backbones_keeps_the_contract(name):
    rows, truth = blobs(80, 12)
    samples, unlabelled = labelled(truth), blobs(90, 12, seed=5)[0]
    result, again = (fit_parts(name, rows, truth, 4, unlabelled) for _ in range(2))
    head, tests = result.head, blobs(200, 12, seed=1)[0]
    graph = session(head_graph(head).SerializeToString())
    probabilities, logits = graph.run(["probabilities", "logits"], {"embedding": tests})
    expected = head.probabilities(tests)
    assert logits.shape == (200, 2, 4)
    assert top1_disagreements(expected, probabilities) == 0
    np.testing.assert_allclose(probabilities, expected, atol=MAX_PROBABILITY_ERROR / 10)
    np.testing.assert_array_equal(head.weights, again.head.weights)
    np.testing.assert_array_equal(head.biases[:, 3], ABSENT_BIAS)  # blobs are of three classes
    predicted = random_classes(samples, result.out_of_fold_logits)
    of_truth = dict(zip(samples.ids, samples.classes.tolist(), strict=True))
    assert {i: c == of_truth[i] for i, c in predicted.items()} == result.out_of_fold


def test_without_parts_the_method_is_as_it_is():
    rows, truth = easy(40)
    task = HeadTask(rows, labelled(truth), 3, 0, CountingWatch())
    np.testing.assert_array_equal(
        fit_blocks(HEADS["logistic"], task, ()).head.weights, HEADS["logistic"].fit(task).head.weights
    )
