"""Tasks under leases: what a failure means, and that nothing is done twice."""

import threading
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from services.common.errors import BadRequest, Forbidden, LeaseLost, Stopped, Unauthenticated, Unavailable
from services.trainer.campaign import Round
from services.trainer.metrics import TrainerMetrics
from services.trainer.oracle import Answer, SimulatedOracle
from services.trainer.rounds import Tools, ignore_step
from services.trainer.task_runner import TaskRunner, task_of
from services.trainer.worker import DueLoop, LeaseKeeper, RoundWatch
from tests.fakes import FakeExporter, FakeLearner, FakeScorer
from tests.unit.trainer.conftest import make_config

ON_BOTH_DATABASES = True


@pytest.fixture
def tools(pool):
    truth = np.array([pool.truth[i] for i in pool.test_ids])
    oracle, scorer = SimulatedOracle(pool.truth), FakeScorer(pool)
    return Tools(pool.pool_ids, pool.test_ids, truth, oracle, scorer, FakeLearner(pool), FakeExporter(pool))


@pytest.fixture
def prometheus():
    return CollectorRegistry()


@pytest.fixture
def make_tasks(store, leases, registry, tools, prometheus):
    def make(make_tools=lambda campaign, watch: tools, on_finished=lambda campaign, reason: None):
        metrics = TrainerMetrics(prometheus)
        return TaskRunner(store, leases, registry, make_tools, metrics, "me", 30, on_finished, ignore_step)

    return make


@pytest.fixture
def campaign(store):
    return store.create(make_config(), "source", ["cat", "dog"])


def drain(tasks, first):
    """Run tasks in the order in which they are enqueued, as one worker would."""
    queue = [first]
    while queue:
        task, name, round_no = queue.pop(0)
        getattr(tasks, task)(name, round_no, lambda *following: queue.append(following))


def test_one_first_task_runs_the_whole_campaign(store, registry, make_tasks, campaign):
    finished = []
    drain(make_tasks(on_finished=lambda c, reason: finished.append(reason)), ("train_round", campaign.name, 0))
    assert store.campaign(campaign.name).state == "finished"
    assert finished == ["the budget is spent: 30 labels bought"]
    assert registry.versions(campaign.name) == [1, 2, 3, 4]


def test_tasks_delivered_twice_and_in_the_wrong_order_change_nothing(store, registry, make_tasks, campaign):
    tasks = make_tasks()
    drain(tasks, ("train_round", campaign.name, 0))
    labels = store.labels(campaign.name)
    store.set_state(campaign.name, "running", "")
    for task in ("train_round", "select_batch", "advance_campaign"):
        getattr(tasks, task)(campaign.name, 1, lambda *following: None)
    assert store.labels(campaign.name) == labels
    assert registry.versions(campaign.name) == [1, 2, 3, 4]


def test_a_report_that_cannot_be_written_does_not_fail_the_campaign(store, make_tasks, campaign):
    def broken(campaign, reason):
        raise OSError("disk full")

    drain(make_tasks(on_finished=broken), ("train_round", campaign.name, 0))
    assert store.campaign(campaign.name).state == "finished"


def failing_with(error):
    def make_tools(campaign, watch):
        raise error

    return make_tools


@pytest.mark.parametrize("error", [Unavailable, Unauthenticated, Forbidden])
def test_inference_away_or_refusing_makes_the_campaign_wait_and_keeps_nothing(
    store, leases, make_tasks, campaign, error
):
    make_tasks(failing_with(error("no route"))).train_round(campaign.name, 0, pytest.fail)
    waiting = store.campaign(campaign.name)
    assert (waiting.state, waiting.reason) == ("running", "waiting: no route")
    assert [r.round_no for r in leases.due_rounds(60)] == [0]  # the next look tries again


def test_an_error_that_would_come_again_fails_the_campaign_at_once(store, make_tasks, campaign):
    make_tasks(failing_with(BadRequest("a single class"))).train_round(campaign.name, 0, pytest.fail)
    failed = store.campaign(campaign.name)
    assert (failed.state, failed.reason) == ("failed", "round 0: a single class")


def test_an_unexpected_error_is_tried_three_times(store, make_tasks, campaign, prometheus):
    tasks = make_tasks(failing_with(RuntimeError("boom")))
    for state in ("running", "running", "failed"):
        tasks.train_round(campaign.name, 0, pytest.fail)
        assert store.campaign(campaign.name).state == state
    assert store.campaign(campaign.name).reason == "round 0: RuntimeError: boom"
    counted = {"campaign": campaign.name, "reason": "error"}
    assert prometheus.get_sample_value("al_round_failures_total", counted) == 3


def test_resuming_a_failed_campaign_counts_failures_anew(store, make_tasks, campaign):
    broken = make_tasks(failing_with(RuntimeError("boom")))
    for _ in range(3):
        broken.train_round(campaign.name, 0, pytest.fail)
    store.set_state(campaign.name, "running", "", only_from=("failed",))
    for _ in range(2):
        broken.train_round(campaign.name, 0, pytest.fail)
    assert store.campaign(campaign.name).state == "running"


def test_a_message_about_a_round_that_is_not_due_does_nothing(store, make_tasks, campaign):
    tasks = make_tasks()
    tasks.train_round(campaign.name, 0, lambda *following: None)
    tasks.advance_campaign(campaign.name, 0, lambda *following: None)
    # Round 1 waits for its picks: training it now would skip a whole batch.
    tasks.train_round(campaign.name, 1, pytest.fail)
    tasks.select_batch(campaign.name, 7, pytest.fail)
    assert store.round(campaign.name, 1).state == "selecting"
    assert store.campaign(campaign.name).state == "running"


def test_duplicates_of_a_message_do_not_multiply(make_tasks, campaign):
    tasks, delivered = make_tasks(), []
    queue = [("train_round", campaign.name, 0)] * 5
    while queue:
        delivered.append(queue.pop(0))
        task, name, round_no = delivered[-1]
        getattr(tasks, task)(name, round_no, lambda *following: queue.append(following))
    # Rounds 0 to 3: a training each, a selection each but the first, an advance each; and four that found nothing.
    assert len(delivered) == 4 + 3 + 4 + 4


def test_a_worker_that_lost_its_lease_cannot_fail_the_campaign(store, leases, make_tasks, campaign):
    def taken_over(campaign, watch):
        with leases.writing() as session:  # as when the lease had run out and another worker took it
            session.execute(text("UPDATE leases SET owner = 'another', token = token + 1"))
        raise BadRequest("seen by the old owner only")

    make_tasks(taken_over).train_round(campaign.name, 0, pytest.fail)
    assert store.campaign(campaign.name).state == "running"


def test_a_campaign_that_waits_says_since_when(store, make_tasks, campaign, prometheus):
    tasks = make_tasks(failing_with(Unavailable("no route")))
    tasks.train_round(campaign.name, 0, pytest.fail)
    tasks.refresh_metrics()
    labels = {"campaign": campaign.name}
    assert prometheus.get_sample_value("al_campaign_waiting_since_seconds", labels) > time.time() - 60


def test_trying_again_does_not_end_a_wait(store, make_tasks, campaign, prometheus, monkeypatch):
    tasks, labels = make_tasks(failing_with(Unavailable("no route"))), {"campaign": campaign.name}
    tasks.train_round(campaign.name, 0, pytest.fail)
    tasks.refresh_metrics()
    since = prometheus.get_sample_value("al_campaign_waiting_since_seconds", labels)
    store.set_state(campaign.name, "running", "")  # as at the start of each try
    tasks.refresh_metrics()
    assert prometheus.get_sample_value("al_campaign_waiting_since_seconds", labels) == since
    monkeypatch.setattr("services.trainer.metrics.time.time", lambda: since + 120)
    tasks.refresh_metrics()
    assert prometheus.get_sample_value("al_campaign_waiting_since_seconds", labels) == 0


def test_a_campaign_that_waits_for_whoever_labels_says_since_when(store, leases, make_tasks, campaign, prometheus):
    tasks = make_tasks()
    tasks.train_round(campaign.name, 0, lambda *_: None)
    tasks.advance_campaign(campaign.name, 0, lambda *_: None)
    tasks.select_batch(campaign.name, 1, lambda *_: None)
    tasks.refresh_metrics()
    assert store.newest_round(campaign.name).state == "labelling"
    labels = {"campaign": campaign.name}
    assert prometheus.get_sample_value("al_campaign_waiting_since_seconds", labels) > 0
    tasks.train_round(campaign.name, 1, lambda *_: None)
    tasks.refresh_metrics()
    assert prometheus.get_sample_value("al_campaign_waiting_since_seconds", labels) == 0


def test_a_worker_is_busy_while_it_works_and_not_after_it_failed(store, make_tasks, campaign, prometheus):
    seen = []

    def make_tools(campaign, watch):
        seen.append(prometheus.get_sample_value("al_worker_busy"))
        raise Unavailable("no route")

    make_tasks(make_tools).train_round(campaign.name, 0, pytest.fail)
    assert (seen, prometheus.get_sample_value("al_worker_busy")) == ([1], 0)


def test_failures_are_counted_from_0_so_that_increase_sees_the_first(make_tasks, campaign, prometheus):
    tasks = make_tasks(failing_with(Unavailable("no route")))
    tasks.refresh_metrics()
    labels = {"campaign": campaign.name, "reason": "unavailable"}
    assert prometheus.get_sample_value("al_round_failures_total", labels) == 0
    tasks.train_round(campaign.name, 0, pytest.fail)
    assert prometheus.get_sample_value("al_round_failures_total", labels) == 1


def test_a_damaged_pointer_leaves_the_other_gauges_right(store, registry, make_tasks, campaign, prometheus):
    tasks = make_tasks()
    drain(tasks, ("train_round", campaign.name, 0))
    (registry.root / campaign.name / "current").write_text("not a number")
    tasks.refresh_metrics()
    assert prometheus.get_sample_value("al_campaign_round", {"campaign": campaign.name}) == 3


def test_a_deleted_campaign_leaves_no_series(store, make_tasks, campaign, prometheus):
    tasks = make_tasks()
    drain(tasks, ("train_round", campaign.name, 0))
    store.delete(campaign.name)
    tasks.refresh_metrics()
    gauges = [m for m in prometheus.collect() if m.type == "gauge"]
    assert not [s for m in gauges for s in m.samples if s.labels.get("campaign") == campaign.name]


def test_a_round_is_observed_once_however_often_gauges_are_restored(store, make_tasks, campaign, prometheus):
    tasks = make_tasks()
    drain(tasks, ("train_round", campaign.name, 0))
    tasks.refresh_metrics()
    labels = {"campaign": campaign.name, "phase": "fit"}
    assert prometheus.get_sample_value("al_round_phase_seconds_count", labels) == 4


@pytest.mark.parametrize("error", [Stopped("sigterm"), LeaseLost("another")])
def test_work_that_is_given_back_is_no_failure(store, leases, make_tasks, campaign, error):
    make_tasks(failing_with(error)).train_round(campaign.name, 0, pytest.fail)
    assert store.campaign(campaign.name).state == "running"
    assert store.count_failure(leases.take_lease(campaign.name, "me", 30), 0) == 1


def test_gauges_are_restored_from_the_database_and_the_registry(store, leases, registry, make_tasks, campaign):
    drain(make_tasks(), ("train_round", campaign.name, 0))
    fresh = CollectorRegistry()
    TrainerMetrics(fresh).restore(store, registry, leases.workload())
    accuracy = store.round(campaign.name, 3).report["metrics"]["test"]["accuracy"]
    labels = {"campaign": campaign.name, "round": "3"}
    assert fresh.get_sample_value("al_round_accuracy", {**labels, "split": "test"}) == accuracy
    assert fresh.get_sample_value("al_round_labelled_samples", labels) == 30
    assert fresh.get_sample_value("al_campaign_round", {"campaign": campaign.name}) == 3
    promoted = fresh.get_sample_value("al_promoted_version", {"campaign": campaign.name})
    assert promoted == registry.current(campaign.name)
    state = {"campaign": campaign.name, "state": "finished"}
    assert fresh.get_sample_value("al_campaign_state", state) == 1


@pytest.mark.parametrize(
    ("state", "task"),
    [
        ("selecting", "select_batch"),
        ("labelling", "train_round"),
        ("training", "train_round"),
        ("done", "advance_campaign"),
    ],
)
def test_every_state_of_a_round_has_a_task(state, task):
    assert task_of(Round("demo-1", 1, state, "random")) == task


# ---- imported labels ---------------------------------------------------------------------------------


def drain_until(tasks, first, stop_at):
    """`drain`, but gives back the first task that is `stop_at` instead of running it."""
    queue = [first]
    while queue[0] != stop_at:
        task, name, round_no = queue.pop(0)
        getattr(tasks, task)(name, round_no, lambda *following: queue.append(following))
    return queue[0]


def told(pool, *numbers):
    return [Answer(f"pool-{n:04d}", pool.truth[f"pool-{n:04d}"], "ann", "feedback") for n in numbers]


def unlabelled_numbers(store, campaign, pool, count):
    left = store.pool(campaign.name, pool.pool_ids).unlabelled
    return [int(sample.rsplit("-", 1)[1]) for sample in left[:count]]


def labels_by_round(store, campaign):
    return {r.round_no: r.report["labels"] for r in store.rounds(campaign.name)}


def test_the_next_round_trains_on_imported_labels_and_that_much_less_is_bought(
    store, imports, make_tasks, campaign, pool
):
    tasks = make_tasks()
    after_round_1 = drain_until(tasks, ("train_round", campaign.name, 0), ("advance_campaign", campaign.name, 1))
    answers = told(pool, *unlabelled_numbers(store, campaign, pool, 4))
    assert imports.add(campaign, lambda standing: answers).round_no == 2
    drain(tasks, after_round_1)
    assert store.campaign(campaign.name).state == "finished"
    # Each round buys its ten, the imported four come on top, and the last round buys what is left of thirty.
    assert labels_by_round(store, campaign) == {0: 0, 1: 10, 2: 24, 3: 30}
    assert [len(store.picks(campaign.name, r)) for r in (1, 2, 3)] == [10, 10, 6]
    labels = store.labels(campaign.name)
    assert len(labels) == len({label.sample_id for label in labels}) == campaign.config.budget
    imported = [label for label in labels if label.origin == "feedback"]
    assert [(label.sample_id, label.round_no) for label in imported] == [(a.sample_id, 2) for a in answers]


def test_imported_labels_judge_nothing(store, imports, make_tasks, campaign, pool):
    tasks = make_tasks()
    after_round_1 = drain_until(tasks, ("train_round", campaign.name, 0), ("advance_campaign", campaign.name, 1))
    answers = told(pool, *unlabelled_numbers(store, campaign, pool, 4))
    imports.add(campaign, lambda standing: answers)
    drain(tasks, after_round_1)
    assert not any(label.drawn_at_random for label in store.labels(campaign.name) if label.origin == "feedback")
    report = store.round(campaign.name, 2).report
    assert report["metrics"]["random_slice"]["rows"] == 11  # the ten initial ones and one of the second batch
    assert not {a.sample_id for a in answers} & report["out_of_fold"].keys()


def test_a_budget_spent_by_an_import_still_gets_its_labels_trained_on(
    store, imports, registry, make_tasks, campaign, pool, tools
):
    tasks = make_tasks()
    after_round_1 = drain_until(tasks, ("train_round", campaign.name, 0), ("advance_campaign", campaign.name, 1))
    imports.add(campaign, lambda standing: told(pool, *unlabelled_numbers(store, campaign, pool, 20)))
    drain(tasks, after_round_1)
    assert store.campaign(campaign.name).reason == "the budget is spent: 30 labels bought"
    assert labels_by_round(store, campaign) == {0: 0, 1: 10, 2: 30}  # and no third round
    assert store.picks(campaign.name, 2) == []
    assert tools.scorer.asked == []  # nothing to buy, so nothing to score
    assert registry.versions(campaign.name) == [1, 2, 3]


def test_an_import_while_a_round_is_trained_waits_for_the_next_one(store, imports, make_tasks, campaign, pool, tools):
    """Its model must depend on the same labels after any crash."""
    tasks = make_tasks()
    training = drain_until(tasks, ("train_round", campaign.name, 0), ("train_round", campaign.name, 2))
    asked = {pick.sample_id for pick in store.picks(campaign.name, 2)}
    standing = imports.look(campaign, lambda standing: [])
    assert (standing.round_no, standing.room, standing.asked) == (3, 10, asked)
    imports.add(campaign, lambda standing: told(pool, *unlabelled_numbers(store, campaign, pool, 3)))
    drain(tasks, training)
    assert labels_by_round(store, campaign) == {0: 0, 1: 10, 2: 20, 3: 30}
    assert len(store.picks(campaign.name, 3)) == 7


def test_an_import_while_a_batch_is_chosen_makes_the_worker_choose_again(
    store, leases, imports, make_tasks, campaign, pool, tools
):
    tasks = make_tasks()
    selecting = drain_until(tasks, ("train_round", campaign.name, 0), ("select_batch", campaign.name, 2))
    # The strategy takes the highest numbers; these are what the worker is about to pick.
    wanted = sorted(unlabelled_numbers(store, campaign, pool, 30))[-4:]

    def imported_meanwhile(at, ids, acquisition, watch):
        tools.scorer.score = score
        imports.add(campaign, lambda standing: told(pool, *wanted))
        return score(at, ids, acquisition, watch)

    score, tools.scorer.score = tools.scorer.score, imported_meanwhile
    tasks.select_batch(campaign.name, 2, pytest.fail)
    assert store.picks(campaign.name, 2) == []
    assert [(due.round_no, due.state) for due in leases.due_rounds(60)] == [(2, "selecting")]  # at once
    drain(tasks, selecting)
    assert labels_by_round(store, campaign) == {0: 0, 1: 10, 2: 24, 3: 30}
    labels = store.labels(campaign.name)
    assert len(labels) == len({label.sample_id for label in labels}) == 30


# ---- leases and due work -----------------------------------------------------------------------------


def test_a_lease_is_renewed_beyond_its_own_length(leases, campaign):
    lease = leases.take_lease(campaign.name, "me", 0.3)
    with LeaseKeeper(leases, lease, 0.3, threading.Event()).kept():
        time.sleep(0.7)
        assert leases.take_lease(campaign.name, "you", 30) is None
    assert leases.take_lease(campaign.name, "you", 30) is not None


def test_a_pause_is_felt_by_the_worker(store, leases, campaign):
    lease = leases.take_lease(campaign.name, "me", 0.3)
    keeper = LeaseKeeper(leases, lease, 0.3, threading.Event())
    with keeper.kept():
        keeper.check()
        store.set_state(campaign.name, "paused", "")
        with pytest.raises(Stopped, match="paused"):
            until_raised(keeper.check)


def until_raised(check):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        check()
        time.sleep(0.02)


def test_sigterm_is_felt_at_the_next_look(store, leases, campaign):
    stop = threading.Event()
    lease = leases.take_lease(campaign.name, "me", 30)
    watch = RoundWatch(LeaseKeeper(leases, lease, 30, stop), store, campaign.name, 0)
    watch.progress("fit", 1, 10)
    stop.set()
    with pytest.raises(Stopped):
        watch.progress("fit", 2, 10)


def test_progress_is_written_at_most_once_a_second(store, leases, campaign):
    lease = leases.take_lease(campaign.name, "me", 30)
    watch = RoundWatch(LeaseKeeper(leases, lease, 30, threading.Event()), store, campaign.name, 0)
    for done in range(1, 50):
        watch.progress("embed", done, 100)
    assert store.progress(campaign.name).done == 1
    watch.progress("score", 1, 100)
    assert store.progress(campaign.name).phase == "score"


def test_the_due_loop_enqueues_everything_at_start_and_again_only_later(leases, campaign):
    enqueued = []
    loop = DueLoop(leases, enqueued.append, every_s=0.05)
    loop.start()
    time.sleep(0.3)
    loop.stop()
    assert [(due.campaign, due.round_no) for due in enqueued][:1] == [(campaign.name, 0)]
    assert len(enqueued) <= 2


def test_metrics_follow_the_database_while_the_broker_is_away(leases, campaign):
    refreshed = threading.Event()

    def no_broker(due):
        raise ConnectionError("refused")

    loop = DueLoop(leases, no_broker, every_s=0.05, refresh=refreshed.set)
    loop.start()
    assert refreshed.wait(timeout=10)
    loop.stop()


# ---- what a round depends on is away -----------------------------------------------------------------


class Away:
    """A store whose database does not answer."""

    def __getattr__(self, name):
        def call(*arguments, **named):
            raise Unavailable("the database does not answer")

        return call


def test_a_database_that_is_away_ends_a_task_without_a_word_to_celery(store, make_tasks, campaign):
    tasks = make_tasks()
    tasks.leases, leases = Away(), tasks.leases
    for task in ("select_batch", "train_round", "advance_campaign"):
        getattr(tasks, task)(campaign.name, 0, pytest.fail)
    tasks.leases = leases
    drain(tasks, ("train_round", campaign.name, 0))
    assert store.campaign(campaign.name).state == "finished"


def test_a_task_that_could_not_be_sent_on_is_due_at_once(leases, make_tasks, campaign):
    def no_broker(*following):
        raise Unavailable("Redis cannot be reached")

    make_tasks().train_round(campaign.name, 0, no_broker)
    assert [(due.round_no, due.state) for due in leases.due_rounds(again_after_s=60)] == [(0, "done")]


def test_progress_that_cannot_be_written_stops_nothing(leases, campaign):
    stop = threading.Event()
    lease = leases.take_lease(campaign.name, "me", 30)
    watch = RoundWatch(LeaseKeeper(leases, lease, 30, stop), Away(), campaign.name, 0)
    watch.progress("train", 1, 10)
    stop.set()
    with pytest.raises(Stopped):
        watch.progress("train", 2, 10)


def test_a_lease_that_a_dying_process_gives_back_is_taken_at_once(leases, make_tasks, campaign):
    def dies(campaign, watch):
        tasks.give_back()
        assert leases.take_lease(campaign.name, "another", 30) is not None
        raise Stopped("the process is gone")

    tasks = make_tasks(dies)
    tasks.train_round(campaign.name, 0, pytest.fail)
    assert leases.owner(campaign.name) == "another"


def test_after_the_broker_was_away_what_was_sent_before_is_sent_again(store, leases, campaign):
    """It may be lost with it."""
    other = store.create(make_config(), "source", ["cat", "dog"])
    tried, sent, again = [], threading.Event(), threading.Event()

    def flaky(due):
        tried.append(due.campaign)
        if len(tried) == 2:
            sent.set()
        if len(tried) == 3:
            raise ConnectionError("refused")
        if set(tried[3:]) == {campaign.name, other.name}:
            again.set()

    loop = DueLoop(leases, flaky, every_s=0.5)
    loop.start()
    assert sent.wait(timeout=10)
    leases.mark_enqueued(other.name, enqueued=False)  # as when a worker gave it back
    assert again.wait(timeout=2)  # what nobody lost would be sent again after three seconds
    loop.stop()
