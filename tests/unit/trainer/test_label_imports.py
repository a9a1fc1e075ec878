"""Labels that no round asked for: added once, never changed, and paid for from the budget."""

import pytest

from services.common.errors import BadRequest, Conflict, LeaseLost, NotFound
from services.trainer.campaign import Pick
from services.trainer.oracle import Answer
from tests.unit.trainer.conftest import make_config

ON_BOTH_DATABASES = True


@pytest.fixture
def campaign(store):
    return store.create(make_config(), "source", ["cat", "dog"])


@pytest.fixture
def lease(leases, campaign):
    return leases.take_lease(campaign.name, "worker", 30)


def told(*samples, index=0):
    return [Answer(sample, index, "ann", "feedback") for sample in samples]


def add(imports, campaign, *answers):
    return imports.add(campaign, lambda standing: answers)


def samples(store, campaign):
    return [label.sample_id for label in store.labels(campaign.name)]


def in_round(store, lease, state, round_no=1, ids=("a", "b")):
    store.begin_round(lease, round_no, "random")
    if state == "selecting":
        return
    store.save_picks(lease, round_no, [Pick(i, 0.5, True) for i in ids], {}, None)
    if state == "training":
        store.save_labels(lease, round_no, [Answer(i, 1, "simulated", "simulated") for i in ids], 2)


def test_an_imported_label_says_where_it_came_from(store, imports, campaign):
    add(imports, campaign, *told("x"))
    (label,) = store.labels(campaign.name)
    assert (label.annotator, label.origin, label.round_no, label.drawn_at_random) == ("ann", "feedback", 1, False)


@pytest.mark.parametrize(("state", "round_no"), [("selecting", 1), ("labelling", 2), ("training", 2)])
def test_labels_join_the_next_round_that_has_not_chosen_its_batch(store, imports, campaign, lease, state, round_no):
    in_round(store, lease, state)
    assert add(imports, campaign, *told("x")).round_no == round_no
    assert [label.round_no for label in store.labels(campaign.name) if label.origin == "feedback"] == [round_no]


def test_labels_come_in_the_order_of_picks_and_then_of_imports(store, imports, campaign, lease):
    add(imports, campaign, *told("z", "y"))
    in_round(store, lease, "training", ids=("b", "a"))
    add(imports, campaign, *told("x"))
    assert samples(store, campaign) == ["b", "a", "z", "y", "x"]
    assert [label.sample_id for label in store.labels(campaign.name, up_to_round=1)] == ["b", "a", "z", "y"]


def test_what_is_imported_is_not_in_the_unlabelled_pool(store, imports, campaign, lease):
    add(imports, campaign, *told("x"))
    in_round(store, lease, "labelling")
    pool = store.pool(campaign.name, ["x", "y", "a", "b"])
    assert (pool.unlabelled, pool.labelled) == (("y",), ("a", "b", "x"))


def test_what_is_labelled_or_asked_for_is_never_labelled_again(store, imports, campaign, lease):
    add(imports, campaign, *told("x"))
    in_round(store, lease, "labelling")
    before = store.labels(campaign.name)
    for sample in ("x", "a"):
        with pytest.raises(BadRequest, match=f"sample {sample} is labelled or asked for"):
            add(imports, campaign, *told("new", sample, index=1))
    with pytest.raises(BadRequest, match="sample new"):
        add(imports, campaign, *told("new", "new"))
    assert store.labels(campaign.name) == before


def test_a_class_that_is_not_there_writes_nothing(store, imports, campaign):
    with pytest.raises(BadRequest, match=r"sample y: class 2 is not one of 0\.\.1"):
        add(imports, campaign, *told("x"), *told("y", index=2))
    assert store.labels(campaign.name) == []


def test_the_budget_is_not_exceeded(store, imports, campaign, lease):
    in_round(store, lease, "labelling")  # asks for two of thirty
    with pytest.raises(BadRequest, match="29 labels are more than the 28"):
        add(imports, campaign, *told(*(f"s{i}" for i in range(29))))
    assert add(imports, campaign, *told(*(f"s{i}" for i in range(28)))).room == 28
    assert imports.look(campaign, lambda standing: []).room == 0


def test_no_room_is_left_when_no_round_will_follow(store, imports, campaign, lease):
    in_round(store, lease, "labelling", round_no=campaign.config.last_round)
    assert imports.look(campaign, lambda standing: []).room == 0


def test_a_look_writes_nothing(store, imports, campaign):
    standing = imports.look(campaign, lambda standing: told("x"))
    assert (standing.round_no, standing.room) == (1, 30)
    assert store.labels(campaign.name) == []


@pytest.mark.parametrize("state", ["finished", "cancelled"])
def test_a_campaign_that_ended_takes_no_labels(store, imports, campaign, state):
    store.set_state(campaign.name, state, "")
    for attempt in (imports.add, imports.look):
        with pytest.raises(Conflict, match=f"is {state}; no round will come"):
            attempt(campaign, lambda standing: told("x"))


@pytest.mark.parametrize("state", ["paused", "failed"])
def test_a_campaign_that_may_be_resumed_takes_labels(store, imports, campaign, state):
    store.set_state(campaign.name, state, "")
    add(imports, campaign, *told("x"))
    assert samples(store, campaign) == ["x"]


def test_a_deleted_campaign_is_named(store, imports, campaign):
    store.delete(campaign.name)
    with pytest.raises(NotFound, match="demo-1"):
        add(imports, campaign, *told("x"))


def test_delete_forgets_imported_labels(store, imports, campaign):
    add(imports, campaign, *told("x"))
    store.delete(campaign.name)
    assert samples(store, campaign) == []


def test_who_chooses_a_batch_loses_the_lease_and_the_round_is_due(store, leases, imports, campaign, lease):
    in_round(store, lease, "selecting")
    leases.mark_enqueued(campaign.name)
    add(imports, campaign, *told("x"))
    with pytest.raises(LeaseLost):
        store.save_picks(lease, 1, [Pick("x", 0.5, True)], {}, None)
    assert [due.round_no for due in leases.due_rounds(60)] == [1]


@pytest.mark.parametrize("state", ["labelling", "training"])
def test_who_trains_a_round_keeps_the_lease(store, leases, imports, campaign, lease, state):
    in_round(store, lease, state)
    add(imports, campaign, *told("x"))
    assert leases.renew_lease(lease, 30) == "running"


def test_an_import_of_nothing_disturbs_nobody(store, leases, imports, campaign, lease):
    in_round(store, lease, "selecting")
    add(imports, campaign)
    assert leases.renew_lease(lease, 30) == "running"
