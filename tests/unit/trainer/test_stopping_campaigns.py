"""Campaigns that stop before their budget is spent, over a real database and registry."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import BadConfig
from services.trainer.metrics import TrainerMetrics
from services.trainer.oracle import Answer, SimulatedOracle
from services.trainer.reporting import outlook_of
from services.trainer.rounds import PROMOTE, STEPS, Tools, ignore_step
from services.trainer.task_runner import TaskRunner
from tests.fakes import FakeExporter, FakeLearner, FakePool, FakeScorer
from tests.unit.trainer.conftest import make_config

# Rule -> (what is asked, the round after which it is enough, the labels bought by then)
EARLY = {
    "target_accuracy": (0.5, 1, 20),
    "plateau": ({"gain": 0.5, "rounds": 1}, 2, 30),
    "kappa": ({"above": 0.5, "rounds": 2}, 3, 40),
    "expected_gain": ({"below": 0.5}, 4, 50),
}
BUDGET = 100


class Killed(BaseException):
    """What a test raises in the place of SIGKILL: nothing catches it."""


@pytest.fixture
def pool():
    return FakePool(size=200)


@pytest.fixture
def make_campaign(store):
    def make(**stopping):
        changes = {"initial": {"labels": 20}, "rounds": {"count": 8, "batch": 10}, "random_share": 0.5}
        return store.create(make_config(stopping=stopping, **changes), "source", ["cat", "dog"])

    return make


@pytest.fixture
def make_tasks(store, leases, registry, pool):
    def make(on_step=ignore_step, test_truth=None, prometheus=None):
        truth = np.array([pool.truth[i] for i in pool.test_ids]) if test_truth is None else test_truth
        oracle, scorer = SimulatedOracle(pool.truth), FakeScorer(pool)
        tools = Tools(pool.pool_ids, pool.test_ids, truth, oracle, scorer, FakeLearner(pool), FakeExporter(pool))
        metrics = TrainerMetrics(prometheus or CollectorRegistry())
        return TaskRunner(
            store, leases, registry, lambda c, w: tools, metrics, "me", 30, lambda c, reason: None, on_step
        )

    return make


def drain(tasks, *queue):
    """Run tasks in the order in which they are enqueued, as one worker would."""
    waiting = list(queue)
    while waiting:
        task, name, round_no = waiting.pop(0)
        getattr(tasks, task)(name, round_no, lambda *following: waiting.append(following))


def drain_until(tasks, first, stop_at):
    """`drain`, but gives back the first task that is `stop_at` instead of running it."""
    waiting = [first]
    while waiting[0] != stop_at:
        task, name, round_no = waiting.pop(0)
        getattr(tasks, task)(name, round_no, lambda *following: waiting.append(following))
    return waiting[0]


def decisions(store, campaign):
    return {r.round_no: r.report["stopping"] for r in store.rounds(campaign.name)}


@pytest.mark.parametrize("rule", EARLY)
def test_each_rule_ends_a_campaign_and_leaves_the_rest_of_the_budget(store, registry, make_tasks, make_campaign, rule):
    asked, last_round, labels = EARLY[rule]
    campaign = make_campaign(**{rule: asked})
    drain(make_tasks(), ("train_round", campaign.name, 0))
    ended = store.campaign(campaign.name)
    assert ended.state == "finished"
    assert ended.reason.startswith(f"enough by {rule}: ")
    assert ended.reason.endswith(f"; {labels} of {BUDGET} labels bought")
    assert len(store.labels(campaign.name)) == labels
    assert registry.versions(campaign.name) == list(range(1, last_round + 2))
    assert store.picks(campaign.name, last_round + 1) == []


def test_without_rules_the_budget_is_spent_as_ever(store, make_tasks, make_campaign):
    campaign = make_campaign()
    drain(make_tasks(), ("train_round", campaign.name, 0))
    assert store.campaign(campaign.name).reason == "the budget is spent: 100 labels bought"
    assert len(store.labels(campaign.name)) == BUDGET


def test_of_several_rules_the_first_that_says_enough_ends_it(store, make_tasks, make_campaign):
    campaign = make_campaign(target_accuracy=0.999, **{r: EARLY[r][0] for r in ("kappa", "plateau")})
    drain(make_tasks(), ("train_round", campaign.name, 0))
    assert store.campaign(campaign.name).reason.startswith("enough by plateau")


@pytest.mark.parametrize("step", [*STEPS, PROMOTE])
def test_a_kill_at_any_step_of_the_last_round_decides_the_same(store, registry, make_tasks, make_campaign, step):
    rules = {"plateau": EARLY["plateau"][0]}
    undisturbed = make_campaign(**rules)
    drain(make_tasks(), ("train_round", undisturbed.name, 0))
    killed = make_campaign(**rules)

    def kill(begun, round_no):
        if (begun, round_no) == (step, 2):
            raise Killed

    with pytest.raises(Killed):
        drain(make_tasks(kill), ("train_round", killed.name, 0))
    assert store.campaign(killed.name).state == "running"
    due = store.newest_round(killed.name)
    drain(make_tasks(), ("select_batch" if due.state == "selecting" else "train_round", killed.name, 2))
    assert store.campaign(killed.name).reason == store.campaign(undisturbed.name).reason
    assert decisions(store, killed) == decisions(store, undisturbed)


def test_a_decision_delivered_twice_changes_nothing(store, registry, make_tasks, make_campaign):
    campaign, tasks = make_campaign(kappa=EARLY["kappa"][0]), make_tasks()
    decide = drain_until(tasks, ("train_round", campaign.name, 0), ("advance_campaign", campaign.name, 3))
    before = decisions(store, campaign)
    drain(tasks, decide, decide, ("train_round", campaign.name, 3), decide)
    assert store.campaign(campaign.name).reason.startswith("enough by kappa")
    assert decisions(store, campaign) == before
    assert registry.versions(campaign.name) == [1, 2, 3, 4]


def test_a_worker_killed_while_it_finishes_decides_the_same(store, make_tasks, make_campaign, monkeypatch):
    campaign, tasks = make_campaign(kappa=EARLY["kappa"][0]), make_tasks()
    decide = drain_until(tasks, ("train_round", campaign.name, 0), ("advance_campaign", campaign.name, 3))

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(store, "finish", killed)
        with pytest.raises(Killed):
            drain(tasks, decide)
    assert store.campaign(campaign.name).state == "running"
    drain(make_tasks(), decide)
    assert store.campaign(campaign.name).reason.startswith("enough by kappa")
    assert store.newest_round(campaign.name).round_no == 3


def test_the_test_samples_decide_nothing(store, make_tasks, make_campaign, pool):
    """With every test class turned round the accuracies differ, and each round's decision is the same."""
    rules = {"target_accuracy": 0.97, "expected_gain": EARLY["expected_gain"][0]}
    honest, turned = make_campaign(**rules), make_campaign(**rules)
    truth = np.array([pool.truth[i] for i in pool.test_ids])
    drain(make_tasks(), ("train_round", honest.name, 0))
    drain(make_tasks(test_truth=1 - truth), ("train_round", turned.name, 0))
    accuracies = [store.newest_round(c.name).report["metrics"]["test"]["accuracy"] for c in (honest, turned)]
    assert accuracies[0] > 0.9
    assert accuracies[1] < 0.1
    assert decisions(store, honest) == decisions(store, turned)
    assert store.campaign(honest.name).reason == store.campaign(turned.name).reason


def test_rows_chosen_by_the_strategy_decide_nothing(store, make_tasks, make_campaign):
    campaign = make_campaign(plateau=EARLY["plateau"][0])
    drain(make_tasks(), ("train_round", campaign.name, 0))
    report = store.newest_round(campaign.name).report
    drawn = {label.sample_id for label in store.labels(campaign.name) if label.drawn_at_random}
    assert drawn == report["out_of_fold"].keys() == report["out_of_fold_classes"].keys()
    assert len(drawn) == 25  # of 30


# ---- labels that are imported meanwhile -----------------------------------------------------------------


def told(store, campaign, pool, count):
    left = store.pool(campaign.name, pool.pool_ids).unlabelled[:count]
    return [Answer(i, pool.truth[i], "ann", "feedback") for i in left]


def test_labels_imported_after_it_was_enough_get_their_round_which_buys_nothing(
    store, imports, registry, make_tasks, make_campaign, pool
):
    campaign, tasks = make_campaign(target_accuracy=0.5), make_tasks()
    decide = drain_until(tasks, ("train_round", campaign.name, 0), ("advance_campaign", campaign.name, 1))
    imports.add(campaign, lambda standing: told(store, campaign, pool, 4))
    drain(tasks, decide)
    assert store.campaign(campaign.name).reason.endswith("; 24 of 100 labels bought")
    assert store.picks(campaign.name, 2) == []
    assert registry.versions(campaign.name) == [1, 2, 3]


def test_an_import_between_the_decision_and_the_end_is_trained_on(
    store, imports, make_tasks, make_campaign, pool, monkeypatch
):
    campaign, tasks = make_campaign(target_accuracy=0.5), make_tasks()
    decide = drain_until(tasks, ("train_round", campaign.name, 0), ("advance_campaign", campaign.name, 1))
    finish = store.finish

    def imported_just_before(*arguments):
        monkeypatch.setattr(store, "finish", finish)
        imports.add(campaign, lambda standing: told(store, campaign, pool, 4))
        return finish(*arguments)

    monkeypatch.setattr(store, "finish", imported_just_before)
    drain(tasks, decide)
    assert store.campaign(campaign.name).state == "finished"
    assert store.newest_round(campaign.name).report["labels"] == 24


# ---- what people see ------------------------------------------------------------------------------------


def test_the_expected_gain_is_a_metric_that_survives_a_restart(store, leases, registry, make_tasks, make_campaign):
    campaign = make_campaign()
    drain(make_tasks(), ("train_round", campaign.name, 0))
    fresh = CollectorRegistry()
    TrainerMetrics(fresh).restore(store, registry, leases.workload())
    gain = store.newest_round(campaign.name).report["stopping"]["expected_gain"]
    assert gain is not None
    assert fresh.get_sample_value("al_expected_gain", {"campaign": campaign.name}) == gain


def test_the_outlook_answers_what_was_asked_or_the_campaigns_own_target(store, make_tasks, make_campaign):
    campaign = make_campaign(target_accuracy=0.999)
    drain(make_tasks(), ("train_round", campaign.name, 0))
    rounds = store.rounds(campaign.name)
    assert list(outlook_of(campaign.config, rounds).forecasts) == ["99.9%"]
    outlook = outlook_of(campaign.config, rounds, [0.5, 0.755])
    assert list(outlook.forecasts) == ["50%", "75.5%"]
    assert outlook.forecasts["50%"].startswith("reached, by the fit")
    assert "60 of 100 labels (60%) were drawn at random: 20 in round 1 and 40 in later batches" in outlook.cost
    assert list(outlook.standings) == ["target_accuracy"]


def test_a_rule_needs_labels_that_are_drawn_at_random():
    with pytest.raises(BadConfig, match="there are none; set random_share above 0"):
        make_config(random_share=0, initial={"labels": 10, "strategy": "k_center"}, stopping={"target_accuracy": 0.9})
    make_config(random_share=0, stopping={"target_accuracy": 0.9})  # the initial ones are


@pytest.mark.parametrize(
    ("stopping", "told"),
    [
        ({"plateau": {"gains": 0.1}}, r"unknown key 'stopping.plateau.gains'; did you mean 'gain'\?"),
        ({"target_accuracy": 75}, r"stopping\.target_accuracy"),
        ({"kappa": {"above": 0.9, "rounds": 0}}, r"stopping\.kappa\.rounds"),
        ({"confidence": 0.2}, r"stopping\.confidence"),
    ],
)
def test_a_rule_that_makes_no_sense_is_explained(stopping, told):
    with pytest.raises(BadConfig, match=told):
        make_config(stopping=stopping)
