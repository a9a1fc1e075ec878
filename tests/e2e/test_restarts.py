"""Any one part of the stack restarts in mid-campaign and nothing is lost, with everything as compose has it."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from services.common.manifest import HEAD_FILE
from services.trainer.campaign import Campaign
from tests.e2e.compose_stack import PARTS, STOP_SIGNALS, HeldStack
from tests.e2e.stack import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = {"count": 10, "batch": 15}


@dataclass(frozen=True)
class Restart:
    """Of `part`, by `sent`, when the worker begins `step`."""

    round_no: int
    step: str
    part: str
    sent: signal.Signals
    # What the worker says of it before the part is started again; a worker that ends is not let out of its step.
    told: str = ""


RESTARTS = [
    Restart(2, "score", "inference", signal.SIGTERM, "shard_retried"),
    Restart(3, "score", "inference", signal.SIGKILL, "shard_retried"),
    # It keeps nothing on disk here: everything in it is lost.
    Restart(4, "pick", "redis", signal.SIGKILL, "Redis cannot be reached"),
    Restart(5, "label", "postgres", signal.SIGINT, "the database does not answer"),
    Restart(6, "fit", "postgres", signal.SIGQUIT, "the database does not answer"),
    Restart(7, "evaluate", "worker", signal.SIGTERM),
    Restart(8, "publish", "worker", signal.SIGKILL),
    Restart(9, "save", "redis", signal.SIGKILL, "Redis cannot be reached"),
    Restart(10, "promote", "postgres", signal.SIGINT, "the database does not answer"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeldStack]:
    # Leases, and looks for what is due, in a tenth of compose's time; tests/faults has a campaign with compose's own.
    times = {"TRAINER_LEASE_SECONDS": "3", "TRAINER_DUE_SECONDS": "1", "TRAINER_GRACE_SECONDS": "2"}
    stack = HeldStack(tmp_path_factory.mktemp("restarts"), **times)
    try:
        stack.begin(*PARTS)
        yield stack
    finally:
        stack.end_all()


@pytest.fixture(scope="module")
def undisturbed(stack: HeldStack) -> Campaign:
    campaign = stack.start_digits(name="undisturbed", rounds=ROUNDS)
    assert stack.wait_until_at_rest(campaign.name).state == "finished"
    return campaign


@pytest.fixture(scope="module")
def disturbed(stack: HeldStack, undisturbed: Campaign) -> Campaign:
    for restart in RESTARTS:
        stack.hold(restart.step, restart.round_no)
    campaign = stack.start_digits(name="disturbed", rounds=ROUNDS)
    for restart in RESTARTS:
        carry_out(restart, stack)
        goes_on = lambda at=restart.round_no: at in stack.store.finished_rounds(campaign.name)  # noqa: E731
        wait_for(goes_on, f"the campaign to go on by itself after {restart}")
    ended = stack.wait_until_at_rest(campaign.name)
    assert ended.state == "finished", ended.reason
    return ended


def carry_out(restart: Restart, stack: HeldStack) -> None:
    at = restart.step, restart.round_no
    stack.wait_until_held(*at)
    heard = len(stack.said("worker"))
    stack.stop(restart.part, restart.sent)
    stack.release(*at)
    wait_for(lambda: restart.told in stack.said("worker")[heard:], f"the worker to notice {restart}")
    stack.begin(restart.part)


def test_the_labels_are_those_of_an_undisturbed_campaign_each_bought_once(
    stack: HeldStack, undisturbed: Campaign, disturbed: Campaign
) -> None:
    labels = stack.store.labels(disturbed.name)
    assert labels == stack.store.labels(undisturbed.name)
    assert len({label.sample_id for label in labels}) == len(labels) == disturbed.config.budget


def test_the_rounds_are_the_same(stack: HeldStack, undisturbed: Campaign, disturbed: Campaign) -> None:
    def shown(name: str) -> list[tuple[Any, ...]]:
        told = ("labels", "class_counts", "metrics", "out_of_fold", "stopping")
        return [
            (r.round_no, r.state, r.version, r.promoted, r.query_score, *(r.report.get(key) for key in told))
            for r in stack.store.rounds(name)
        ]

    assert len(shown(disturbed.name)) == ROUNDS["count"] + 2
    assert shown(disturbed.name) == shown(undisturbed.name)
    for round_no in range(ROUNDS["count"] + 2):
        assert stack.store.picks(disturbed.name, round_no) == stack.store.picks(undisturbed.name, round_no)


def test_every_version_is_published_whole_and_the_same(
    stack: HeldStack, undisturbed: Campaign, disturbed: Campaign
) -> None:
    registry = stack.registry
    assert registry.versions(disturbed.name) == list(range(1, ROUNDS["count"] + 3))
    for version in registry.versions(disturbed.name):
        registry.verify(disturbed.name, version)
        manifests = [registry.manifest(it.name, version) for it in (disturbed, undisturbed)]
        assert manifests[0].files[HEAD_FILE] == manifests[1].files[HEAD_FILE]
    assert registry.current(disturbed.name) == registry.current(undisturbed.name)


def test_in_the_end_every_part_ends_within_its_time_and_with_zero(stack: HeldStack, disturbed: Campaign) -> None:
    for part in reversed(PARTS):
        stack.stop(part, STOP_SIGNALS[part])
