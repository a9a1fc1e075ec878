import json
import time

import pytest
from sqlalchemy import inspect, text

from services.common.errors import BadRequest, Conflict, LeaseLost, NotFound
from services.trainer.campaign import Pick, Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.comparison.cells import CellResult
from services.trainer.comparison.store import ComparisonStore
from services.trainer.database import open_database
from services.trainer.leases import Workload
from services.trainer.oracle import Answer
from services.trainer.tables import Base
from tests.unit.comparison.conftest import make_comparison
from tests.unit.trainer.conftest import make_config

ON_BOTH_DATABASES = True


@pytest.fixture
def campaign(store):
    return store.create(make_config(), "source", ["cat", "dog"])


@pytest.fixture
def lease(leases, campaign):
    return leases.take_lease(campaign.name, "me", 30)


def picked(store, lease, round_no=1, ids=("a", "b")):
    store.begin_round(lease, round_no, "random")
    store.save_picks(lease, round_no, [Pick(i, 0.5, True) for i in ids], {"score": 1.0}, 100.0)


def answers(*pairs):
    return [Answer(sample, index, "simulated", "simulated") for sample, index in pairs]


def test_campaigns_are_numbered(store):
    names = [store.create(make_config(), "source", ["cat", "dog"]).name for _ in range(3)]
    assert names == ["demo-1", "demo-2", "demo-3"]


def test_a_name_that_the_registry_holds_is_not_given_again(store):
    assert store.create(make_config(), "source", ["cat"], taken=["demo-4", "other-9"]).name == "demo-5"


def test_the_name_of_a_deleted_campaign_never_comes_again(store, campaign):
    store.delete(campaign.name)  # a replica may still hold its models
    assert store.create(make_config(), "source", ["cat", "dog"]).name == "demo-2"


def test_an_unknown_campaign_names_the_nearest(store, campaign):
    with pytest.raises(NotFound, match="did you mean 'demo-1'"):
        store.campaign("demo-11")


def test_a_second_worker_gets_no_lease(leases, campaign, lease):
    assert leases.take_lease(campaign.name, "you", 30) is None


def test_an_expired_lease_passes_on_and_the_old_owner_can_write_nothing(store, leases, campaign):
    old = leases.take_lease(campaign.name, "old", 0.05)
    time.sleep(0.1)
    new = leases.take_lease(campaign.name, "new", 30)
    assert new.token == old.token + 1
    with pytest.raises(LeaseLost):
        store.begin_round(old, 1, "random")
    with pytest.raises(LeaseLost):
        leases.renew_lease(old, 30)
    assert [r.round_no for r in store.rounds(campaign.name)] == [0]
    leases.give_back(old)  # changes nothing for the new owner
    store.begin_round(new, 1, "random")


def test_a_lease_that_is_given_back_is_free_at_once(leases, campaign, lease):
    leases.give_back(lease)
    assert leases.take_lease(campaign.name, "you", 30) is not None


@pytest.mark.parametrize("state", ["paused", "cancelled", "finished", "failed"])
def test_nobody_gets_the_lease_of_a_campaign_at_rest(store, leases, campaign, state):
    store.set_state(campaign.name, state, "")
    assert leases.take_lease(campaign.name, "me", 30) is None
    assert leases.due_rounds(0) == []


def test_the_workload_is_what_a_worker_could_begin_and_what_one_works_on(engine, store, leases, campaign):
    assert leases.workload() == Workload(queued=1, running=0)
    leases.due_rounds(0)  # its message is on the way
    assert leases.workload() == Workload(queued=1, running=0)
    lease = leases.take_lease(campaign.name, "me", 30)
    assert leases.workload() == Workload(queued=0, running=1)
    store.set_reason(lease, "waiting: inference is away")
    leases.give_back(lease)  # only a worker can try again
    assert leases.workload() == Workload(queued=1, running=0)
    store.set_state(campaign.name, "paused", "")
    assert leases.workload() == Workload(queued=0, running=0)


def test_a_killed_workers_task_is_queued_again(leases, campaign):
    leases.take_lease(campaign.name, "killed", 0.0)
    assert leases.workload() == Workload(queued=1, running=0)


def test_cells_of_running_comparisons_belong_to_the_workload(engine, leases):
    comparisons = ComparisonStore(engine)
    comparison = comparisons.begin(make_comparison(), "source", {"small": "embedding"})
    cells = len(comparison.config.cells())
    key = comparisons.next_due(comparison.name)
    cell = comparisons.claim(comparison.name, key, "me", 30)
    assert leases.workload() == Workload(queued=cells - 1, running=1)
    comparisons.save(comparison.name, "me", CellResult(cell, ()))
    assert leases.workload() == Workload(queued=cells - 1, running=0)
    comparisons.stop(comparison.name)
    assert leases.workload() == Workload(queued=0, running=0)


def test_labels_are_written_together_or_not_at_all(store, lease, campaign):
    picked(store, lease)
    with pytest.raises(BadRequest, match="sample b: class 7"):
        store.save_labels(lease, 1, answers(("a", 0), ("b", 7)), class_count=2)
    assert store.labels(campaign.name) == []
    assert store.round(campaign.name, 1).state == "labelling"


def test_an_answer_that_was_not_asked_for_is_refused(store, lease, campaign):
    picked(store, lease)
    with pytest.raises(BadRequest, match="not asked for"):
        store.save_labels(lease, 1, answers(("a", 0), ("z", 1)), class_count=2)
    assert store.labels(campaign.name) == []


def test_saving_labels_twice_keeps_the_first(store, lease, campaign):
    picked(store, lease)
    store.save_labels(lease, 1, answers(("b", 1), ("a", 0)), class_count=2)
    store.save_labels(lease, 1, answers(("a", 1), ("b", 0)), class_count=2)
    labels = store.labels(campaign.name)
    assert [(label.sample_id, label.class_index) for label in labels] == [("a", 0), ("b", 1)]
    assert all(label.drawn_at_random for label in labels)


def test_picks_are_recorded_once(store, lease, campaign):
    picked(store, lease)
    store.save_picks(lease, 1, [Pick("c", 1.0, False)], {}, None)
    assert [p.sample_id for p in store.picks(campaign.name, 1)] == ["a", "b"]
    assert store.pool(campaign.name, ["a", "b", "c"]).unlabelled == ("c",)


def test_a_finished_round_stays_as_it_is(store, lease, campaign):
    picked(store, lease)
    store.save_round(lease, Round(campaign.name, 1, "done", "random", version=2, report={"labels": 2}))
    store.save_round(lease, Round(campaign.name, 1, "done", "random", version=9, report={"labels": 9}))
    saved = store.round(campaign.name, 1)
    assert (saved.version, saved.report, saved.seconds) == (2, {"labels": 2}, {"score": 1.0})


def test_a_round_whose_worker_died_is_due_when_its_lease_ends(leases, campaign):
    assert len(leases.due_rounds(60)) == 1  # enqueued now
    leases.take_lease(campaign.name, "dies", 0.05)
    time.sleep(0.1)
    assert len(leases.due_rounds(60)) == 1


def test_what_is_due_is_the_newest_round_that_nobody_works_on(store, leases, campaign, lease):
    assert leases.due_rounds(0) == []  # it is being worked on
    store.begin_round(lease, 1, "random")
    leases.give_back(lease)
    assert [(r.campaign, r.round_no) for r in leases.due_rounds(60)] == [("demo-1", 1)]
    assert leases.due_rounds(60) == []  # enqueued a moment ago
    assert [r.round_no for r in leases.due_rounds(-1)] == [1]


def test_a_state_change_that_makes_no_sense_is_refused(store, campaign):
    store.set_state(campaign.name, "cancelled", "")
    with pytest.raises(Conflict, match="is cancelled"):
        store.set_state(campaign.name, "running", "", only_from=("paused",))


def test_delete_forgets_everything(store, leases, lease, campaign):
    picked(store, lease)
    store.save_progress(campaign.name, 1, "score", 1, 2)
    store.delete(campaign.name)
    assert store.campaigns() == []
    assert leases.due_rounds(0) == []


def test_progress_keeps_the_start_of_its_phase(store, campaign):
    store.save_progress(campaign.name, 1, "score", 1, 10)
    first = store.progress(campaign.name)
    store.save_progress(campaign.name, 1, "score", 5, 10)
    second = store.progress(campaign.name)
    assert (second.done, second.started_at) == (5, first.started_at)


def test_progress_says_how_it_goes_and_keeps_no_more_than_fits(store, campaign):
    store.save_progress(campaign.name, 1, "train", 1, 10, "loss 0.81")
    assert store.progress(campaign.name).detail == "loss 0.81"
    store.save_progress(campaign.name, 1, "train", 2, 10, "x" * 1000)
    assert len(store.progress(campaign.name).detail) == 255
    store.save_progress(campaign.name, 1, "publish", 0, 1)
    assert store.progress(campaign.name).detail == ""


def test_the_migrations_make_the_schema_that_the_code_uses(engine):
    def shape():
        inspector = inspect(engine)
        names = sorted(n for n in inspector.get_table_names() if n != "alembic_version")
        return {n: sorted((c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(n)) for n in names}

    migrated = shape()
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    assert migrated == shape()


def test_a_database_from_before_predictions_were_kept_is_brought_up_to_date(
    store, engine, campaign, lease, database_url
):
    picked(store, lease)
    with engine.begin() as connection:  # as version 0002 left it
        for column in ("predicted", "confidence"):
            connection.execute(text(f"ALTER TABLE picks DROP COLUMN {column}"))
        connection.execute(text("ALTER TABLE progress DROP COLUMN detail"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
    again = open_database(database_url)
    picks = CampaignStore(again).picks(campaign.name, 1)
    assert [(p.sample_id, p.score, p.predicted, p.confidence) for p in picks] == [
        ("a", 0.5, None, None),
        ("b", 0.5, None, None),
    ]
    again.dispose()


def test_what_was_said_of_a_pick_is_kept(store, lease, campaign):
    store.begin_round(lease, 2, "margin")
    said = Pick("a", 0.5, False, predicted=1, confidence=0.75)
    store.save_picks(lease, 2, [said], {}, None)
    assert store.picks(campaign.name, 2) == [said]


def test_campaigns_from_before_the_section_of_fine_tuning_can_still_be_read(store, engine, database_url):
    name = store.create(make_config(), "s1", ("a", "b")).name
    with engine.begin() as connection:
        config = json.loads(connection.execute(text("SELECT config FROM campaigns")).scalar_one())
        del config["learner"]["finetune"]
        config["learner"] |= {"mode": "finetune", "epochs": 7, "stages": 2, "mirror": False}
        connection.execute(text("UPDATE campaigns SET config = :config"), {"config": json.dumps(config)})
        connection.execute(text("UPDATE alembic_version SET version_num = '0004'"))
    again = open_database(database_url)
    learner = CampaignStore(again).campaign(name).config.learner
    again.dispose()
    assert (learner.mode, learner.finetune.epochs, learner.finetune.stages) == ("finetune", 7, 2)
    assert not learner.finetune.mirror
