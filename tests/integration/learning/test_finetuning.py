"""Trained networks from labels to published versions: committees, faster variants, trainings that were cut short."""

import numpy as np
import onnxruntime as ort
import pytest

from services.common.errors import Stopped
from services.common.manifest import read_manifest
from services.trainer.export import OnnxExporter
from services.trainer.learning import LabelledSamples, VersionFacts
from services.trainer.variants import COMPARED, Variants
from tests.integration.learning.conftest import campaign
from tests.integration.learning.test_learners import learner_for, stage
from tests.unit.learning.conftest import CountingWatch

CLASSES = 3
POOL = tuple(f"{i:040d}" for i in range(2600))


class Colours:
    """A sample's class is the colour that its noise leans to."""

    def __init__(self, side: int = 8) -> None:
        self._side = side

    def images(self, ids) -> np.ndarray:
        return np.stack([self._image(int(i)) for i in ids])

    def truth(self, ids) -> np.ndarray:
        return np.array([int(i) % CLASSES for i in ids], np.int64)

    def labelled(self, count: int) -> LabelledSamples:
        ids = POOL[:count]
        return LabelledSamples(ids, self.truth(ids), np.arange(count) % 3 != 0)

    def _image(self, number: int) -> np.ndarray:
        image = np.random.default_rng(number).integers(0, 100, (self._side, self._side, 3))
        image[..., number % CLASSES] += 120
        return image.astype(np.uint8)


def config(**finetune):
    learner = {"mode": "finetune", "folds": 2, "finetune": {"batch_size": 16, "epochs": 4, "device": "cpu", **finetune}}
    return campaign({"name": "base_cnn", "weights": "none"}, learner, 8)


def learner(folder, **finetune):
    return learner_for(config(**finetune), Colours(), folder, threads=1)


def test_a_committee_of_trained_members_is_one_graph(tmp_path, watch):
    model = learner(tmp_path / "cache", members=2, bootstrap=True).fit(Colours().labelled(60), CLASSES, 0, watch)
    members, classes, size = model.head.weights.shape
    assert (members, classes, size, model.embedding_size) == (2, CLASSES, 512, 512)
    # Each member sees its own network's embedding and nothing of the other's.
    assert not model.head.weights[0, :, 256:].any()
    assert not model.head.weights[1, :, :256].any()
    manifest = stage(model, Colours(), tmp_path / "colours" / "2", watch)
    assert (manifest.members, manifest.parity.top1_disagreements) == (2, 0)
    session = ort.InferenceSession(tmp_path / "colours" / "2" / "model.onnx")
    images = Colours().images(POOL[1000:1030])
    probabilities, logits = session.run(["probabilities", "logits"], {"image": images})
    assert logits.shape == (30, 2, CLASSES)
    assert np.abs(logits[:, 0] - logits[:, 1]).max() > 0.01
    assert (probabilities.argmax(axis=1) == Colours().truth(POOL[1000:1030])).mean() > 0.9
    assert model.notes["trainings"] == 6  # two members for each of two folds, and two that are published
    assert model.out_of_fold.keys() == model.out_of_fold_classes.keys()


@pytest.mark.slow
def test_every_variant_of_a_trained_network_is_published_with_its_figures(tmp_path, watch):
    model = learner(tmp_path / "cache").fit(labelled := Colours().labelled(60), CLASSES, 0, watch)
    images = Colours().images(POOL[:256])
    variants = Variants(("fp16", "int8"), POOL, Colours().images)
    folder = tmp_path / "colours" / "2"
    facts = VersionFacts("colours", 2, 1, tuple("abc"), 60, {}, labelled)
    OnnxExporter(lambda: images, Colours().images, variants=variants).stage(model, facts, {}, folder, watch)
    manifest = read_manifest(folder)
    assert manifest.published_variants == {"fp16", "int8"}
    for kind, check in manifest.variants.items():
        assert (check.images, check.refused) == (COMPARED, "")
        assert check.agreement >= 0.995
        assert check.max_probability_error is not None
        found = ort.InferenceSession(folder / f"model.{kind}.onnx").run(["probabilities"], {"image": images})[0]
        assert (found.argmax(axis=1) == Colours().truth(POOL[:256])).mean() > 0.9


def test_a_round_that_was_stopped_goes_on_where_it_was_and_ends_in_the_same_version(tmp_path):
    labelled = Colours().labelled(60)
    expected = learner(tmp_path / "other").fit(labelled, CLASSES, 0, CountingWatch())
    stopped = CountingWatch(stop_at=25)  # in the second training
    with pytest.raises(Stopped):
        learner(tmp_path / "cache").fit(labelled, CLASSES, 0, stopped)
    watch = CountingWatch()
    model = learner(tmp_path / "cache").fit(labelled, CLASSES, 0, watch)
    steps = [done for phase, done, _ in watch.seen if phase == "train"]
    assert steps[0] == [done for phase, done, _ in stopped.seen if phase == "train"][-1]
    assert model.embedding_id == expected.embedding_id
    np.testing.assert_array_equal(model.head.weights, expected.head.weights)
    assert model.out_of_fold == expected.out_of_fold
    # Kept for a worker that dies before the version is published, and then no longer.
    kept = tmp_path / "cache" / "checkpoints"
    assert list(kept.rglob("*.pt"))
    model.on_published()
    assert not list(kept.iterdir())


def test_other_labels_or_settings_never_use_a_checkpoint(tmp_path):
    def trained_from(step_of, labels=60, **finetune):
        watch = CountingWatch(stop_at=step_of)
        with pytest.raises(Stopped):
            learner(tmp_path, **finetune).fit(Colours().labelled(labels), CLASSES, 0, watch)
        return next(done for phase, done, _ in watch.seen if phase == "train")

    assert trained_from(20) == 0
    assert trained_from(20, labels=63) == 0
    assert trained_from(20, learning_rate=0.002) == 0
    assert trained_from(10) > 0


def test_progress_tells_how_the_training_goes(tmp_path):
    told: list[str] = []

    class Listening(CountingWatch):
        def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
            if phase == "train":
                told.append(detail)
            super().progress(phase, done, total, detail)

    learner(tmp_path).fit(Colours().labelled(60), CLASSES, 0, Listening())
    assert told[0] == "training 1 of 3, epoch 1/4"
    assert told[-1].startswith("training 3 of 3, epoch 4/4, loss ")
    assert all(word in told[-1] for word in ("accuracy", "images/s", "left"))
