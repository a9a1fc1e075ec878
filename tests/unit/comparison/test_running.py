"""A worker on cells: it ends when asked, gives back what it could not do, and a curve does not depend on who ran it."""

import threading

import pytest

from services.common.errors import BadRequest, Unavailable
from services.trainer.comparison.running import CellRunner
from services.trainer.comparison.store import ComparisonStore
from services.trainer.database import open_database
from tests.fakes import FakeLearner
from tests.unit.comparison.conftest import make_comparison

IDS = {"small": "embedding"}


@pytest.fixture
def store(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path}/trainer.db")
    yield ComparisonStore(engine)
    engine.dispose()


@pytest.fixture
def comparison(store):
    return store.begin(make_comparison(), "source", IDS)


@pytest.fixture
def make_runner(store, pool, study):
    def make(learner=None, owner="me", stop=None):
        def tools(comparison, cell, config):
            return study, learner or FakeLearner(pool)

        return CellRunner(store, tools, owner, 30.0, 1, stop or threading.Event())

    return make


class Broken(FakeLearner):
    def __init__(self, pool, error):
        super().__init__(pool)
        self._error = error

    def fit(self, labelled, class_count, seed, watch):
        raise self._error


class Stopping(FakeLearner):
    """The worker is asked to stop while it fits."""

    def __init__(self, pool, stop):
        super().__init__(pool)
        self._stop = stop

    def fit(self, labelled, class_count, seed, watch):
        self._stop.set()
        return super().fit(labelled, class_count, seed, watch)


def work_off(store, runner):
    while (key := store.next_due("study")) is not None:
        assert runner.run("study", key)


def shown(results):
    return [(r.cell, [(p.labels, p.accuracy, p.ece) for p in r.points]) for r in results]


def test_all_cells_get_their_curves_and_the_ceiling_its_point(store, comparison, make_runner):
    work_off(store, make_runner())
    results = store.results(comparison)
    assert {len(r.points) for r in results if not r.cell.is_ceiling} == {3}
    assert [r.points[0].labels for r in results if r.cell.is_ceiling] == [40]


def test_a_cell_runs_once_however_often_its_message_comes(store, comparison, make_runner):
    key = store.next_due("study")
    assert make_runner().run("study", key)
    assert not make_runner(owner="another").run("study", key)


def test_a_worker_that_is_asked_to_stop_gives_its_cell_back_at_once(store, comparison, make_runner, pool):
    key, stop = store.next_due("study"), threading.Event()
    assert not make_runner(Stopping(pool, stop), stop=stop).run("study", key)
    assert store.next_due("study") == key
    assert store.tally(comparison).failed == {}


def test_what_a_second_worker_makes_of_a_killed_ones_cell_is_the_same(store, comparison, make_runner, tmp_path):
    key = store.next_due("study")
    store.claim("study", key, "killed", 0.0)
    work_off(store, make_runner())
    other = ComparisonStore(open_database(f"sqlite:///{tmp_path}/other.db"))
    other.begin(make_comparison(), "source", IDS)
    runner = make_runner(owner="another")
    runner.store = other
    work_off(other, runner)
    assert shown(other.results(comparison)) == shown(store.results(comparison))


def test_an_input_that_cannot_work_fails_its_cell_for_good_and_no_other(store, comparison, make_runner, pool):
    key = store.next_due("study")
    assert not make_runner(Broken(pool, BadRequest("one class"))).run("study", key)
    assert store.tally(comparison).failed == {key: "BadRequest: one class"}
    work_off(store, make_runner())
    assert store.tally(comparison).over


def test_a_database_that_is_away_is_no_failure_of_the_cell(store, comparison, make_runner, pool):
    key = store.next_due("study")
    for _ in range(5):
        assert not make_runner(Broken(pool, Unavailable("the database does not answer"))).run("study", key)
    assert store.tally(comparison).failed == {}
    assert store.next_due("study") == key


def test_an_accident_is_tried_again(store, comparison, make_runner, pool):
    key = store.next_due("study")
    assert not make_runner(Broken(pool, MemoryError())).run("study", key)
    assert store.next_due("study") == key
    assert make_runner().run("study", key)
