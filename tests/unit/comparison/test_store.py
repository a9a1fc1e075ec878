"""Which cells are due, and who may write: when workers die, messages come twice and configurations change."""

import time

import pytest

from services.common.errors import Conflict, NotFound
from services.trainer.comparison.cells import CellResult, Point
from services.trainer.comparison.store import ComparisonStore
from services.trainer.database import open_database
from tests.unit.comparison.conftest import make_comparison

IDS = {"small": "embedding"}

ON_BOTH_DATABASES = True


@pytest.fixture
def store(database_url):
    engine = open_database(database_url)
    yield ComparisonStore(engine)
    engine.dispose()


@pytest.fixture
def comparison(store):
    return store.begin(make_comparison(), "source", IDS)


def result(cell, accuracy=0.5):
    return CellResult(cell, (Point(10, accuracy, 0.5, 0.1, 1.0, 0.2, 0.0, None, 0.1),))


def claimed(store, name="study", owner="me", seconds=30.0):
    key = store.next_due(name)
    return store.claim(name, key, owner, seconds)


def finish(store, owner="me"):
    cell = claimed(store, owner=owner)
    store.save("study", owner, result(cell))
    return cell


def test_cells_are_worked_off_in_order_until_none_is_left(store, comparison):
    done = [finish(store) for _ in comparison.config.cells()]
    assert done == comparison.config.cells()
    assert store.next_due("study") is None
    assert store.tally(comparison).over


def test_a_claimed_cell_is_nobody_elses(store, comparison):
    first = claimed(store)
    assert store.claim("study", first.key, "another", 30) is None
    assert claimed(store, owner="another") != first


def test_a_killed_workers_cell_is_due_again_when_its_claim_has_run_out(store, comparison):
    first = claimed(store, owner="killed", seconds=0.0)
    time.sleep(0.01)
    assert claimed(store, owner="next") == first


def test_what_a_late_worker_saves_changes_nothing(store, comparison):
    first = claimed(store, owner="late", seconds=0.0)
    time.sleep(0.01)
    claimed(store, owner="next")
    store.save("study", "late", result(first, accuracy=0.9))
    assert store.tally(comparison).done == 0
    store.save("study", "next", result(first, accuracy=0.5))
    store.save("study", "next", result(first, accuracy=0.9))  # delivered twice
    assert [r.points[0].accuracy for r in store.results(comparison)] == [0.5]


def test_a_renewed_claim_does_not_run_out(store, comparison):
    first = claimed(store, seconds=0.0)
    assert store.renew("study", first.key, "me", 30)
    assert store.claim("study", first.key, "another", 30) is None


def test_a_claim_that_another_has_taken_cannot_be_renewed(store, comparison):
    first = claimed(store, owner="late", seconds=0.0)
    time.sleep(0.01)
    claimed(store, owner="next")
    assert not store.renew("study", first.key, "late", 30)


def test_a_stopped_comparison_gives_out_nothing_and_ends_what_runs(store, comparison):
    first = claimed(store)
    store.stop("study")
    assert not store.renew("study", first.key, "me", 30)
    assert store.next_due("study") is None
    assert store.due_cells(60, 8) == []
    store.give_back("study", first.key, "me")
    store.begin(make_comparison(), "source", IDS)
    assert store.next_due("study") == first.key


def test_so_many_cells_are_on_their_way_and_no_more(store, comparison):
    assert len(store.due_cells(60, 2)) == 2
    assert store.due_cells(60, 2) == []
    claimed(store)
    assert len(store.due_cells(60, 2)) == 1


def test_cells_whose_message_was_lost_are_enqueued_again(store, comparison):
    lost = store.due_cells(60, 2)
    assert store.due_cells(0, 2) == lost


def test_going_on_keeps_what_is_done(store, comparison):
    finish(store)
    again = store.begin(make_comparison(), "source", IDS)
    assert store.tally(again).done == 1


def test_more_seeds_and_strategies_add_cells(store, comparison):
    before = finish(store)
    more = store.begin(make_comparison(seeds=3, strategies=["margin", "entropy"]), "source", IDS)
    assert store.tally(more).total == 3 * 3 + 1
    assert [r.cell for r in store.results(more)] == [before]


def test_what_is_left_out_is_not_reported(store, comparison):
    for _ in comparison.config.cells():
        finish(store)
    fewer = store.begin(make_comparison(seeds=[1]), "source", IDS)
    assert {r.cell.seed for r in store.results(fewer)} == {1}


@pytest.mark.parametrize("changes", [{"batch": 20}, {"random_share": 0.5}, {"heads": {"logistic": {"folds": 3}}}])
def test_another_configuration_under_the_same_name_is_refused_and_nothing_changes(store, comparison, changes):
    finish(store)
    with pytest.raises(Conflict, match="another name"):
        store.begin(make_comparison(**changes), "source", IDS)
    assert store.comparison("study").config == make_comparison()
    assert store.tally(comparison).done == 1


def test_another_embedding_is_another_configuration(store, comparison):
    with pytest.raises(Conflict):
        store.begin(make_comparison(), "source", {"small": "other"})


def test_a_cell_that_fails_three_times_is_given_up_and_tried_again_when_asked(store, comparison):
    for _ in range(3):
        first = claimed(store)
        store.fail("study", first.key, "me", "no memory", for_good=False)
        store.give_back("study", first.key, "me")
    assert store.tally(comparison).failed == {first.key: "no memory"}
    assert store.next_due("study") != first.key
    store.begin(make_comparison(), "source", IDS)
    assert store.next_due("study") == first.key


def test_an_unknown_comparison_is_answered_with_the_nearest(store, comparison):
    with pytest.raises(NotFound, match="study"):
        store.comparison("studi")
