"""What `make down` asks for: SIGTERM ends the worker within ten seconds with exit code 0, whatever it is doing."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.compose_stack import LIMIT_S, ComposeStack
from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Long phases that are not cut into pieces: imports and a network's making, torch's exporter, a step, pictures.
PHASES = [(0, "build"), (0, "export"), (1, "train"), (1, "export"), (2, "report")]
FINETUNE = {
    "mode": "finetune",
    "folds": 2,
    "finetune": {"epochs": 40, "batch_size": 16, "learning_rate": 0.003, "backbone_lr_share": 1.0, "mirror": False},
}


def test_a_worker_ends_in_time_in_every_long_phase_and_another_goes_on(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    campaign = stack.start_digits(name="stopped", learner=FINETUNE, rounds={"count": 1, "batch": 30})
    try:
        stack.start_redis()
        stack.start_inference()
        for at in PHASES:
            worker = stack.start_worker()
            wait_for(lambda at=at: stack.phase(campaign) == at, f"{at[1]} of round {at[0]}", 240)
            ends_in_time(stack, worker)
            assert stack.store.campaign(campaign.name).state == "running", at
        worker = stack.start_worker()
        assert stack.wait_until_at_rest(campaign.name).state == "finished"
        ends_in_time(stack, worker)
    finally:
        stack.end_all()


def ends_in_time(stack: Stack, worker: subprocess.Popen[bytes]) -> None:
    asked = time.monotonic()
    assert stack.end(worker) == 0
    assert time.monotonic() - asked < LIMIT_S


@pytest.fixture
def composed(tmp_path: Path) -> Iterator[ComposeStack]:
    stack = ComposeStack(tmp_path)
    try:
        stack.begin("redis", "postgres", "inference", "worker")
        yield stack
    finally:
        stack.end_all()


@pytest.mark.parametrize("part", ["redis", "postgres"])
def test_a_worker_ends_in_time_while_another_part_hangs(composed: ComposeStack, part: str) -> None:
    learner = {**FINETUNE, "finetune": {**FINETUNE["finetune"], "epochs": 500}}
    campaign = composed.start_digits(name="stopped", learner=learner)
    wait_for(lambda: composed.phase(campaign) == (1, "train"), "training", 240)
    hanging = composed.process(part)
    every = [hanging, *hanging.children(recursive=True)]
    for process in every:
        process.suspend()
    try:
        time.sleep(2.0)  # what renews the lease and what writes progress are in the middle of it
        composed.stop("worker", signal.SIGTERM)
    finally:
        for process in every:
            process.resume()
    before = time.time()
    composed.begin("worker")
    wait_for(lambda: composed.store.progress(campaign.name).updated_at > before, "the campaign to go on")
