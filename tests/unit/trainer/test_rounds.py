"""The story of a round over a real database and a real registry, with fakes at the ports to inference and torch."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from services.common.errors import Conflict, DamagedArtefact, LeaseLost
from services.common.registry import Registry
from services.trainer.campaign_store import CampaignStore
from services.trainer.database import open_database
from services.trainer.evaluation import Reliability
from services.trainer.leases import LeaseStore
from services.trainer.oracle import SimulatedOracle
from services.trainer.rounds import PROMOTE, STEPS, RoundRunner, Tools
from services.trainer.strategies import STRATEGIES, Kept, Strategy
from tests.fakes import FakeExporter, FakeLearner, FakeScorer, RecordingWatch
from tests.unit.trainer.conftest import make_config


class Killed(BaseException):
    """What a test raises in the place of SIGKILL: nothing catches it."""


@pytest.fixture
def tools(pool):
    return Tools(
        pool_ids=pool.pool_ids,
        test_ids=pool.test_ids,
        test_truth=np.array([pool.truth[i] for i in pool.test_ids]),
        oracle=SimulatedOracle(pool.truth),
        scorer=FakeScorer(pool),
        learner=FakeLearner(pool),
        exporter=FakeExporter(pool),
    )


@pytest.fixture
def campaign(store):
    return store.create(make_config(), "source", ["cat", "dog"])


@pytest.fixture
def make_runner(store, leases, registry, campaign, tools):
    def make(on_step=lambda step, round_no: None, watch=None, campaign=campaign):
        lease = leases.take_lease(campaign.name, "me", 30)
        return RoundRunner(store, registry, campaign, tools, lease, watch or RecordingWatch(), on_step), lease

    return make


def run_rounds(store, leases, make_runner, name, last):
    """What the tasks do, one after another."""
    for round_no in range(last + 1):
        if any(r.round_no == round_no and r.state == "done" for r in store.rounds(name)):
            continue
        runner, lease = make_runner()
        if round_no:
            store.begin_round(lease, round_no, store.campaign(name).config.strategy_of(round_no))
            runner.select_batch(round_no)
        assert runner.train_round(round_no)
        leases.give_back(lease)


def both_tasks(runner, round_no):
    runner.select_batch(round_no)
    return runner.train_round(round_no)


def outcome(store, registry, name):
    labels = [
        (label.sample_id, label.class_index, label.round_no, label.drawn_at_random) for label in store.labels(name)
    ]
    models = {v: (registry.root / name / str(v) / "model.onnx").read_bytes() for v in registry.versions(name)}
    return labels, models, registry.current(name)


def test_round_0_publishes_the_backbone_and_promotes_nothing(store, leases, registry, make_runner, campaign):
    run_rounds(store, leases, make_runner, campaign.name, 0)
    assert registry.versions(campaign.name) == [1]
    assert registry.manifest(campaign.name, 1).head == "zero"
    assert registry.current(campaign.name) is None


def test_each_round_scores_with_the_newest_published_version(store, leases, make_runner, campaign, tools):
    run_rounds(store, leases, make_runner, campaign.name, 3)
    # Round 1 draws at random and needs no scores; rounds 2 and 3 score what is unlabelled by then.
    assert tools.scorer.asked == [(2, "margin", 30), (3, "margin", 20)]


def test_the_budget_is_spent_and_not_exceeded(store, leases, registry, make_runner, campaign):
    run_rounds(store, leases, make_runner, campaign.name, 3)
    labels = store.labels(campaign.name)
    assert len(labels) == len({label.sample_id for label in labels}) == campaign.config.budget == 30
    assert [sum(label.round_no == r for label in labels) for r in (1, 2, 3)] == [10, 10, 10]
    assert registry.versions(campaign.name) == [1, 2, 3, 4]
    assert registry.manifest(campaign.name, 4).labels_used == 30


def test_a_tenth_of_every_batch_is_drawn_at_random(store, leases, make_runner, campaign):
    run_rounds(store, leases, make_runner, campaign.name, 3)
    drawn = [sum(p.drawn_at_random for p in store.picks(campaign.name, r)) for r in (1, 2, 3)]
    assert drawn == [10, 1, 1]


def test_the_strategy_takes_the_highest_scores_of_what_is_left(store, leases, make_runner, campaign):
    run_rounds(store, leases, make_runner, campaign.name, 2)
    first = {p.sample_id for p in store.picks(campaign.name, 1)}
    picks = store.picks(campaign.name, 2)
    drawn = {p.sample_id for p in picks if p.drawn_at_random}
    left = sorted((i for i in tools_ids(store, campaign) if i not in first | drawn), reverse=True)
    assert [p.sample_id for p in picks if not p.drawn_at_random] == left[:9]


def tools_ids(store, campaign):
    return [f"pool-{i:04d}" for i in range(40)]


def test_the_report_tells_test_and_random_slice_apart(store, leases, make_runner, campaign):
    run_rounds(store, leases, make_runner, campaign.name, 2)
    metrics = store.round(campaign.name, 2).report["metrics"]
    assert metrics["random_slice"]["rows"] == 11  # the ten initial ones and one of the second batch
    assert {"accuracy", "macro_f1", "ece"} <= set(metrics["test"])


def test_the_exporter_learns_what_was_labelled_and_what_of_it_at_random(store, leases, make_runner, campaign, tools):
    told = []
    stage = tools.exporter.stage

    def remembering(model, facts, extra, folder, watch):
        told.append(facts)
        return stage(model, facts, extra, folder, watch)

    tools.exporter.stage = remembering
    run_rounds(store, leases, make_runner, campaign.name, 2)
    last = told[-1]
    labels = store.labels(campaign.name, up_to_round=2)
    assert last.labels_used == len(last.labelled) == 20
    assert last.labelled.ids == tuple(label.sample_id for label in labels)
    assert last.labelled.drawn_at_random.tolist() == [label.drawn_at_random for label in labels]
    assert last.labelled.rounds.tolist() == [label.round_no for label in labels]


@pytest.mark.parametrize("round_no", [1, 2])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_changes_nothing(store, leases, registry, make_runner, campaign, tmp_path, step, round_no):
    run_rounds(store, leases, make_runner, campaign.name, 3)
    undisturbed = outcome(store, registry, campaign.name)
    store.delete(campaign.name)
    registry.delete(campaign.name)
    again = store.create(make_config(), "source", ["cat", "dog"])
    make_runner = partial(make_runner, campaign=again)
    run_rounds(store, leases, make_runner, again.name, round_no - 1)

    def kill(begun, in_round):
        if (begun, in_round) == (step, round_no):
            raise Killed

    runner, lease = make_runner(kill)
    store.begin_round(lease, round_no, again.config.strategy_of(round_no))
    with pytest.raises(Killed):
        both_tasks(runner, round_no)
    leases.give_back(lease)  # as its expiry would

    run_rounds(store, leases, make_runner, again.name, 3)
    assert outcome(store, registry, again.name) == undisturbed


def test_a_version_that_was_published_before_a_kill_is_not_fitted_again(
    store, leases, registry, make_runner, campaign, tools
):
    run_rounds(store, leases, make_runner, campaign.name, 0)

    def kill_before_saving(step, round_no):
        if step == "save":
            raise Killed

    runner, lease = make_runner(kill_before_saving)
    store.begin_round(lease, 1, "random")
    with pytest.raises(Killed):
        both_tasks(runner, 1)
    leases.give_back(lease)
    assert tools.learner.fits == 1
    run_rounds(store, leases, make_runner, campaign.name, 1)
    assert tools.learner.fits == 1
    assert store.round(campaign.name, 1).report["metrics"]["test"]["accuracy"] > 0.5


def test_a_kill_between_publishing_and_promoting_is_repaired(store, leases, registry, make_runner, campaign):
    run_rounds(store, leases, make_runner, campaign.name, 0)

    def kill(step, round_no):
        if step == PROMOTE:
            raise Killed

    runner, lease = make_runner(kill)
    store.begin_round(lease, 1, "random")
    with pytest.raises(Killed):
        both_tasks(runner, 1)
    leases.give_back(lease)
    assert (registry.versions(campaign.name), registry.current(campaign.name)) == ([1, 2], None)
    run_rounds(store, leases, make_runner, campaign.name, 1)
    assert registry.current(campaign.name) == 2


def test_a_version_of_another_campaign_of_the_same_name_is_refused(
    store, leases, registry, make_runner, campaign, tools, tmp_path
):
    run_rounds(store, leases, make_runner, campaign.name, 1)
    engine = open_database(f"sqlite:///{tmp_path}/new.db")  # the database is lost, the registry is not
    fresh = CampaignStore(engine)
    again = fresh.create(make_config(seed=9), "source", ["cat", "dog"])
    assert again.name == campaign.name
    lease = LeaseStore(engine).take_lease(again.name, "me", 30)
    runner = RoundRunner(fresh, registry, again, tools, lease, RecordingWatch())
    with pytest.raises(Conflict, match="another campaign"):
        runner.train_round(0)


def test_a_failed_export_leaves_nothing_behind(registry, make_runner, campaign, tools, monkeypatch):
    def broken(*arguments):
        raise DamagedArtefact("no parity")

    monkeypatch.setattr(tools.exporter, "stage", broken)
    runner, _ = make_runner()
    with pytest.raises(DamagedArtefact):
        runner.train_round(0)
    assert registry.versions(campaign.name) == []
    assert list((registry.root.parent / "registry-staging").iterdir()) == []


def test_a_task_that_is_delivered_twice_changes_nothing(store, leases, registry, make_runner, campaign):
    run_rounds(store, leases, make_runner, campaign.name, 2)
    before = outcome(store, registry, campaign.name)
    runner, _ = make_runner()
    assert both_tasks(runner, 2)
    assert outcome(store, registry, campaign.name) == before


def test_a_worker_that_lost_its_lease_writes_nothing(store, leases, registry, make_runner, campaign):
    run_rounds(store, leases, make_runner, campaign.name, 0)
    runner, lease = make_runner()
    store.begin_round(lease, 1, "random")
    leases.give_back(lease)
    leases.take_lease(campaign.name, "another", 30)
    with pytest.raises(LeaseLost):
        runner.select_batch(1)
    assert store.picks(campaign.name, 1) == []


def test_a_stop_is_felt_inside_a_step(store, leases, registry, make_runner, campaign):
    run_rounds(store, leases, make_runner, campaign.name, 0)
    runner, lease = make_runner(watch=RecordingWatch(end_in="fit", error=LeaseLost("gone")))
    store.begin_round(lease, 1, "random")
    runner.select_batch(1)
    with pytest.raises(LeaseLost):
        runner.train_round(1)
    assert registry.versions(campaign.name) == [1]
    assert len(store.labels(campaign.name)) == 10  # bought labels are kept


DIVERSE = ["badge", "class_balanced", "cluster_margin", "drop_query", "k_center", "typiclust", "prob_cover"]


@pytest.mark.parametrize("name", DIVERSE)
def test_a_worker_that_starts_anew_before_every_round_buys_the_same(name, engine, tmp_path, pool, tools):
    """What strategies keep between rounds lies in a worker's memory: losing it must not change a batch."""

    def bought(folder, fresh_each_round):
        registry, engine = Registry(tmp_path / folder), open_database(f"sqlite:///{tmp_path}/{folder}.db")
        store, leases = CampaignStore(engine), LeaseStore(engine)
        campaign = store.create(make_config(strategy=name), "source", ["cat", "dog"])
        used = tools

        def make(watch=None):
            nonlocal used
            used = replace(used, kept=Kept()) if fresh_each_round else used
            lease = leases.take_lease(campaign.name, "me", 30)
            return RoundRunner(store, registry, campaign, used, lease, RecordingWatch()), lease

        run_rounds(store, leases, make, campaign.name, 3)
        return [label.sample_id for label in store.labels(campaign.name)]

    assert bought("kept", False) == bought("lost", True)


def test_the_head_is_read_once_a_round_and_not_before_there_is_a_model(store, leases, registry, tools, monkeypatch):
    head = tools.exporter.head
    for strategy_name in ("margin", "class_balanced"):
        read = []
        monkeypatch.setattr(tools.exporter, "head", lambda folder, read=read: read.append(folder.name) or head(folder))
        campaign = store.create(make_config(strategy=strategy_name), "source", ["cat", "dog"])

        def make(watch=None, campaign=campaign):
            lease = leases.take_lease(campaign.name, "me", 30)
            return RoundRunner(store, registry, campaign, tools, lease, RecordingWatch()), lease

        run_rounds(store, leases, make, campaign.name, 3)
        assert read == ["2", "3"]  # the newest published version each time


def test_what_the_model_said_of_a_pick_is_kept_as_it_was_when_it_was_asked_for(
    store, leases, make_runner, campaign, tools, registry, pool
):
    run_rounds(store, leases, make_runner, campaign.name, 3)
    assert {(p.predicted, p.confidence) for p in store.picks(campaign.name, 1)} == {(None, None)}
    for round_no in (2, 3):
        picks = store.picks(campaign.name, round_no)
        head = tools.exporter.head(registry.version_dir(campaign.name, round_no))  # version = round before + 1
        said = head(pool.embeddings([p.sample_id for p in picks])).mean(axis=1)
        assert [p.predicted for p in picks] == said.argmax(axis=1).tolist()
        assert [p.confidence for p in picks] == pytest.approx(said.max(axis=1).tolist())


def test_a_round_keeps_the_bins_of_its_reliability(store, leases, registry, make_runner, campaign, tools):
    run_rounds(store, leases, make_runner, campaign.name, 2)
    done = store.round(campaign.name, 2).report
    kept = Reliability.from_json(done["reliability"])
    assert kept.counts.sum() == len(tools.test_ids)
    assert kept.ece == pytest.approx(done["metrics"]["test"]["ece"])
    # The version that was published says the same: a crash after it loses nothing.
    published = json.loads((registry.version_dir(campaign.name, 3) / "report.json").read_bytes())
    assert published["reliability"] == done["reliability"]


def test_a_strategy_gets_the_classes_of_what_was_bought_and_of_nothing_else(
    store, leases, make_runner, tools, campaign
):
    seen = []

    def spy(pool, budget, rng):
        seen.append(pool)
        pool.tell(f"took the first {budget}")
        return list(pool.ids[:budget])

    run_rounds(store, leases, make_runner, campaign.name, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STRATEGIES, "margin", Strategy("margin", spy))
        run_rounds(store, leases, make_runner, campaign.name, 2)
    (pool,) = seen
    bought = [label.sample_id for label in store.labels(campaign.name, up_to_round=1)]
    assert list(pool.labelled[:10]) == bought
    assert pool.labelled_classes[:10].tolist() == [tools.oracle.answers([i])[0].class_index for i in bought]
    # The tenth of the batch that was drawn at random: it will be bought, and nobody knows its class yet.
    assert pool.labelled_classes[10:].tolist() == [-1]
    assert not set(pool.ids) & set(pool.labelled)
    # What it says is in the round's report, beside what the round found out.
    report = store.round(campaign.name, 2).report
    assert report["selection"] == ["took the first 9"]
    assert report["labels"] == 20
