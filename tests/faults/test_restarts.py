"""Restarts in the middle of fine-tuning, with compose's own leases and times: the worker itself, held nowhere."""

import shutil
import signal
import time
from collections.abc import Iterator

import pytest

from services.trainer.campaign import Round
from tests.e2e.compose_stack import PARTS, ComposeStack
from tests.e2e.stack import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

FINETUNE = {
    "learner": {
        "mode": "finetune",
        "folds": 2,
        "finetune": {"epochs": 60, "batch_size": 16, "learning_rate": 0.003, "backbone_lr_share": 1.0, "mirror": False},
    },
    "rounds": {"count": 4, "batch": 20},
}
# (round, phase, part, signal)
RESTARTS = [
    (1, "train", "postgres", signal.SIGINT),
    (1, "export", "worker", signal.SIGKILL),
    (2, "train", "redis", signal.SIGKILL),
    (2, "export", "postgres", signal.SIGQUIT),
    (3, "train", "inference", signal.SIGKILL),
    (4, "train", "worker", signal.SIGKILL),
    (4, "export", "inference", signal.SIGTERM),
    (5, "train", "worker", signal.SIGTERM),
]
# Long enough for somebody to look and for every part to meet what is away.
AWAY_S = 5.0


@pytest.fixture
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    stack = ComposeStack(tmp_path_factory.mktemp("restarts"))
    try:
        stack.begin(*PARTS)
        yield stack
    finally:
        stack.end_all()


def test_a_campaign_that_is_fine_tuned_outlives_a_restart_of_every_part(stack: ComposeStack) -> None:
    undisturbed = stack.start_digits(name="undisturbed", **FINETUNE)
    assert stack.wait_until_at_rest(undisturbed.name, 600).state == "finished"
    # Equal networks have equal graphs: the second campaign would find those of the first.
    shutil.rmtree(stack.environment["TRAINER_CACHE_DIR"])
    disturbed = stack.start_digits(name="disturbed", **FINETUNE)
    for round_no, phase, part, sent in RESTARTS:
        wait_for(lambda at=(round_no, phase): stack.phase(disturbed) == at, f"{phase} of round {round_no}", 240)
        stack.stop(part, sent)
        time.sleep(AWAY_S)
        stack.begin(part)
    ended = stack.wait_until_at_rest(disturbed.name, 600)
    assert ended.state == "finished", ended.reason

    labels = stack.store.labels(disturbed.name)
    assert labels == stack.store.labels(undisturbed.name)
    assert len({label.sample_id for label in labels}) == len(labels) == disturbed.config.budget
    rounds = zip(stack.store.rounds(disturbed.name), stack.store.rounds(undisturbed.name), strict=True)
    for one, other in rounds:
        assert (one.state, one.version, one.promoted) == (other.state, other.version, other.promoted)
        assert accuracy(one) == pytest.approx(accuracy(other), abs=1e-5)
        stack.registry.verify(disturbed.name, one.round_no + 1)


def accuracy(of: Round) -> float | None:
    return of.report["metrics"].get("test", {}).get("accuracy")
