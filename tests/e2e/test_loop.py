"""Both services as processes, real Redis, real Celery, real gRPC, real ONNX: the loop from end to end."""

import re
import signal
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import onnxruntime
import pytest

from services.client.client import QuerentClient
from services.client.messages import Feedback
from services.common.samples import SampleStore
from services.trainer.oracle import read_truth
from services.trainer.rounds import STEPS
from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCORED = re.compile(r'inference_images_total\{model="(.+?)",purpose="score",round="(\d+)",version="(\d+)"\}')

FINETUNE = {
    "mode": "finetune",
    "folds": 2,
    "finetune": {"epochs": 12, "batch_size": 16, "learning_rate": 0.003, "backbone_lr_share": 1.0, "mirror": False},
}


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("stack"))
    stack.start_redis()
    stack.start_inference()
    yield stack
    stack.end_all()


@pytest.fixture(scope="module")
def worker(stack):
    return stack.start_worker()


@pytest.fixture(scope="module")
def scored(stack):
    """(model, version, round) of everything that inference ever scored with: series of unloaded versions go."""
    seen: set[tuple[str, str, str]] = set()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            for line in metrics(stack.inference_metrics_port):
                found = SCORED.match(line)
                if found:
                    seen.add((found[1], found[3], found[2]))

    thread = threading.Thread(target=watch)
    thread.start()
    yield seen
    ended.set()
    thread.join()


@pytest.fixture(scope="module")
def finished(stack, scored, worker):
    """A campaign of three rounds in which the small network itself is trained."""
    campaign = stack.start_digits(name="trained", learner=FINETUNE)
    ended = stack.wait_until_at_rest(campaign.name, 400)
    assert ended.state == "finished", ended.reason
    return ended


def test_accuracy_goes_up(stack, finished):
    rounds = [r for r in stack.store.rounds(finished.name) if r.round_no > 0]
    accuracy = [r.report["metrics"]["test"]["accuracy"] for r in rounds]
    assert [r.report["labels"] for r in rounds] == [30, 60, 90]
    assert accuracy[-1] > accuracy[0]
    assert accuracy[-1] > 0.6


def test_the_version_served_is_the_version_promoted(stack, finished):
    current = stack.registry.current(finished.name)
    assert current is not None
    samples = SampleStore.open(stack.folder / "sources", stack.folder / "data", finished.source_id)
    images = samples.encoded(samples.ids("test")[:5])
    with QuerentClient(f"127.0.0.1:{stack.grpc_port}") as client:
        wait_for(lambda: client.predict(images, model=finished.name).version == current, "the promoted version")
        answer = client.predict(images, model=finished.name)
    expected = (
        logits(stack, finished.name, current, samples.images(samples.ids("test")[:5])).mean(axis=1).argmax(axis=1)
    )
    assert [p.classes[0].index for p in answer.predictions] == expected.tolist()


def test_each_round_scored_the_pool_with_the_newest_published_version(scored, finished):
    # Round 1 draws at random; round 2 scores with round 1's version, round 3 with round 2's.
    assert {(version, round_no) for name, version, round_no in scored if name == finished.name} == {
        ("2", "1"),
        ("3", "2"),
    }


def test_the_trainer_tells_accuracy_by_round(stack, finished):
    text = metrics(stack.trainer_metrics_port)
    rounds = stack.store.rounds(finished.name)
    for done in rounds[1:]:
        value = done.report["metrics"]["test"]["accuracy"]
        assert f'al_round_accuracy{{campaign="{finished.name}",round="{done.round_no}",split="test"}} {value}' in text


def test_doctor_finds_the_running_services_in_order(stack, finished):
    command = [sys.executable, "-m", "services.trainer.cli", "doctor"]
    result = subprocess.run(command, env=stack.environment, capture_output=True, text=True, timeout=60, check=False)
    for sound in ("redis", "database", "registry", "embeddings", "inference", "data", "providers"):
        assert f"ok      {sound}" in result.stdout, result.stdout


def test_the_report_lies_on_disk(stack, finished):
    folder = stack.folder / "reports" / finished.name
    assert (folder / "report.html").stat().st_size > 10_000
    assert (folder / "rounds.csv").read_text().count("\n") == 4


def metrics(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.read().decode().splitlines()


def logits(stack: Stack, name: str, version: int, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = stack.registry.version_dir(name, version) / "model.onnx"
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def test_a_campaign_stops_early_and_the_mistakes_of_its_oracle_are_found(stack, worker):
    campaign = stack.start_digits(
        name="early",
        initial={"labels": 100},
        rounds={"count": 4, "batch": 20},
        stopping={"plateau": {"gain": 0.5, "rounds": 1}},
        oracle={"noise": 0.1},
    )
    ended = stack.wait_until_at_rest(campaign.name)
    assert (ended.state, ended.reason.split(":")[0]) == ("finished", "enough by plateau"), ended.reason
    assert ended.reason.endswith("; 120 of 180 labels bought")
    samples = SampleStore.open(stack.folder / "sources", stack.folder / "data", ended.source_id)
    truth = read_truth(stack.folder / "sources", samples.source)
    labels = stack.store.labels(campaign.name)
    flipped = {label.sample_id for label in labels if label.class_index != truth[label.sample_id]}
    assert flipped == {label.sample_id for label in labels if label.origin == "simulated-noise"}
    assert flipped
    command = [sys.executable, "-m", "services.trainer.cli", "labels", "audit", campaign.name]
    result = subprocess.run(command, env=stack.environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert f"The simulated oracle got {len(flipped)} wrong on purpose; " in result.stdout
    listed = (stack.folder / "reports" / campaign.name / "audit.csv").read_text()
    assert any(sample in listed for sample in flipped)


# ---- kills -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(stack, finished, worker):
    """The same campaign as in the kill tests, with nobody killed. Its worker ends with it."""
    campaign = stack.start_digits(name="undisturbed", rounds={"count": 1, "batch": 30})
    assert stack.wait_until_at_rest(campaign.name).state == "finished"
    assert stack.end(worker) == 0
    return campaign


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_at_any_step_is_resumed_to_the_same_labels_and_model(stack, undisturbed, step):
    campaign = stack.start_digits(name=f"killed-at-{step}", rounds={"count": 1, "batch": 30})
    dying = stack.start_worker_that_dies(step, 2)
    assert dying.wait(timeout=120) == -signal.SIGKILL
    stack.flush_redis()  # the broker may be lost too
    worker = stack.start_worker()
    ended = stack.wait_until_at_rest(campaign.name)
    assert stack.end(worker) == 0
    assert ended.state == "finished", ended.reason

    assert labels(stack, campaign.name) == labels(stack, undisturbed.name)
    samples = SampleStore.open(stack.folder / "sources", stack.folder / "data", campaign.source_id)
    images = samples.images(samples.ids("test")[:64])
    resumed, expected = (logits(stack, name, 3, images) for name in (campaign.name, undisturbed.name))
    np.testing.assert_allclose(resumed, expected, atol=1e-5, rtol=0)
    assert stack.registry.current(campaign.name) == stack.registry.current(undisturbed.name)


def labels(stack: Stack, name: str) -> list[tuple[str, int, int]]:
    return [(label.sample_id, label.class_index, label.round_no) for label in stack.store.labels(name)]


def test_sigterm_ends_a_worker_in_the_middle_of_training_and_another_goes_on(stack, undisturbed):
    campaign = stack.start_digits(name="stopped", learner=FINETUNE, rounds={"count": 0, "batch": 30})
    worker = stack.start_worker()
    store = stack.store
    wait_for(lambda: stack.phase(campaign) == (1, "train"), "training")
    assert stack.end(worker) == 0
    assert store.campaign(campaign.name).state == "running"
    assert len(store.labels(campaign.name)) == 30
    again = stack.start_worker()
    assert stack.wait_until_at_rest(campaign.name).state == "finished"
    assert stack.end(again) == 0


# ---- feedback ------------------------------------------------------------------------------------------


def test_feedback_on_predictions_is_trained_on_next_round_and_that_much_less_is_bought(stack, undisturbed):
    campaign = stack.start_digits(name="told")  # 30 labels, then two rounds of 30
    store, worker = stack.store, stack.start_worker()
    wait_for(lambda: stack.registry.current(campaign.name) == 2, "the first trained version")
    store.set_state(campaign.name, "paused", "to be told", only_from=("running",))
    assert stack.end(worker) == 0  # a batch that it was choosing would be chosen to its end

    samples = SampleStore.open(stack.folder / "sources", stack.folder / "data", campaign.source_id)
    truth = read_truth(stack.folder / "sources", samples.source)
    asked = {row.sample_id for row in store.labels(campaign.name)} | {
        pick.sample_id for r in store.rounds(campaign.name) for pick in store.picks(campaign.name, r.round_no)
    }
    told = [sample for sample in samples.ids("pool") if sample not in asked][:12]
    with QuerentClient(f"127.0.0.1:{stack.grpc_port}") as client:
        wait_for(lambda: any(m.name == campaign.name for m in client.list_models()), "inference to see it")
        answer = client.predict(samples.encoded(told), model=campaign.name, version=2, with_feedback_id=True)
        assert client.feedback(
            Feedback(prediction.prediction_id, truth[sample], "ann")
            for sample, prediction in zip(told, answer.predictions, strict=True)
        ) == len(told)

    command = ["labels", "import-feedback", campaign.name, stack.environment["INFERENCE_FEEDBACK_DIR"]]
    result = subprocess.run([sys.executable, "-m", "services.trainer.cli", *command], env=stack.environment,
                            capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    assert result.returncode == 0, result.stderr
    store.set_state(campaign.name, "running", "", only_from=("paused",))
    worker = stack.start_worker()
    ended = stack.wait_until_at_rest(campaign.name)
    assert stack.end(worker) == 0
    assert ended.state == "finished", ended.reason

    labels_then = store.labels(campaign.name)
    imported = [label for label in labels_then if label.origin == "feedback"]
    assert [label.sample_id for label in imported] == told
    assert [label.class_index for label in imported] == [truth[sample] for sample in told]
    assert len(labels_then) == campaign.config.budget == 90
    bought = [len(store.picks(campaign.name, r)) for r in (1, 2, 3)]
    assert bought == [30, 30, 18]
    (round_no,) = {label.round_no for label in imported}
    trained_on = {r.round_no: r.report["labels"] for r in store.rounds(campaign.name)}
    assert trained_on[round_no] == sum(bought[:round_no]) + len(told)
    assert stack.registry.manifest(campaign.name, round_no + 1).labels_used == trained_on[round_no]
