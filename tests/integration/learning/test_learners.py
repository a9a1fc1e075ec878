"""Both learners from labels to a staged ONNX version."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from sklearn.datasets import load_digits

from services.common.errors import BadRequest, Stopped
from services.common.manifest import read_manifest
from services.trainer.evaluation import evaluate
from services.trainer.export import OnnxExporter
from services.trainer.heads import HEADS
from services.trainer.learners import make_learner
from services.trainer.learning import LabelledSamples, VersionFacts
from tests.integration.learning.conftest import campaign, noise_images
from tests.unit.learning.conftest import CountingWatch

ROOT = Path(__file__).parents[3]


class Digits:
    """scikit-learn's 8 x 8 digits as RGB images; a sample's id is its row."""

    def __init__(self) -> None:
        digits = load_digits()
        self.truth = digits.target
        self._images = np.repeat((digits.images * 255 / 16).astype(np.uint8)[..., None], 3, axis=3)

    def images(self, ids) -> np.ndarray:
        return self._images[[int(i) for i in ids]]

    def labelled(self, count: int) -> LabelledSamples:
        return LabelledSamples(tuple(map(str, range(count))), self.truth[:count], np.arange(count) % 4 == 0)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def no_embeddings(ids):
    raise AssertionError("a network that is trained reads no stored embeddings")


def learner_for(config, source, cache_dir, weights_dir=None, embeddings=no_embeddings, threads=2, pool_ids=()):
    return make_learner(
        config,
        source_height=config.source.size,
        source_width=config.source.size,
        weights_dir=weights_dir,
        cache_dir=cache_dir,
        embeddings=embeddings,
        images=source.images,
        threads=threads,
        pool_ids=pool_ids,
    )


def stage(model, source, folder, watch):
    parity = source.images([str(i) for i in range(256)])
    exporter = OnnxExporter(parity_images=lambda: parity, images=source.images)
    names = tuple(f"class {i}" for i in range(model.head.weights.shape[1]))
    facts = VersionFacts(folder.parent.name, int(folder.name), 0, names, 0, {})
    exporter.stage(model, facts, {}, folder, watch)
    return read_manifest(folder)


def base_cnn(folds=3, **finetune):
    learner = {"mode": "finetune", "folds": folds, "finetune": {"batch_size": 16, **finetune}}
    return campaign({"name": "base_cnn", "weights": "none"}, learner, 8)


# ---- fine-tuning --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_base_cnn_learns_the_digits_and_is_exported(digits, tmp_path, watch):
    # One thread: on 8 x 8 pixels a second one only waits for the first.
    learner = learner_for(base_cnn(epochs=8, learning_rate=0.003), digits, tmp_path / "cache", threads=1)
    model = learner.fit(digits.labelled(400), 10, 0, watch)
    test_ids = [str(i) for i in range(1000, 1797)]
    metrics = evaluate(learner.probabilities(model, test_ids, watch), digits.truth[1000:]).metrics
    assert metrics["accuracy"] > 0.9
    assert (model.head.kind, model.embedding_shared, set(model.out_of_fold)) == (
        "linear",
        False,
        {str(i) for i in range(0, 400, 4)},
    )
    assert np.mean(list(model.out_of_fold.values())) > 0.8
    manifest = stage(model, digits, tmp_path / "digits" / "2", watch)
    assert manifest.embedding_id == model.embedding_id
    assert manifest.parity.top1_disagreements == 0


@pytest.mark.slow
def test_same_seed_same_network(digits, tmp_path, watch):
    models = []
    for name in ("one", "two"):
        learner = learner_for(base_cnn(epochs=2), digits, tmp_path / name, threads=1)
        models.append(learner.fit(digits.labelled(60), 10, 7, watch))
    one, two = models
    assert one.embedding_id == two.embedding_id
    np.testing.assert_array_equal(one.head.weights, two.head.weights)
    assert one.out_of_fold == two.out_of_fold
    # Days later the same labels give the same network again: its graph must not be tidied away under it.
    for path in (tmp_path / "two").rglob("*.onnx"):
        os.utime(path, (0, 0))
    assert learner.fit(digits.labelled(60), 10, 7, watch).embedding_graph.is_file()
    # A fit leaves nothing behind for the next one, and the seed matters.
    again = learner.fit(digits.labelled(60), 10, 7, watch)
    assert again.embedding_id == one.embedding_id
    assert learner.fit(digits.labelled(60), 10, 8, watch).embedding_id != one.embedding_id


def test_training_looks_at_the_watch_every_step(digits, tmp_path):
    learner = learner_for(base_cnn(epochs=3), digits, tmp_path, threads=1)
    watch = CountingWatch(stop_at=20)
    with pytest.raises(Stopped):
        learner.fit(digits.labelled(64), 10, 0, watch)
    steps = [done for phase, done, _ in watch.seen if phase == "train"]
    assert steps == sorted(steps)
    assert len(steps) > 10


def test_a_single_class_is_refused_before_anything_is_trained(digits, tmp_path, watch):
    learner = learner_for(base_cnn(), digits, tmp_path)
    one = LabelledSamples(("0", "1"), np.zeros(2, np.int64), np.ones(2, bool))
    with pytest.raises(BadRequest, match="1 class"):
        learner.fit(one, 10, 0, watch)


# ---- a frozen backbone --------------------------------------------------------------------------------


class Noise:
    def images(self, ids):
        return noise_images(300)[[int(i) for i in ids]]


@pytest.fixture(scope="module")
def frozen_config():
    return campaign({"name": "base_cnn", "weights": "none"})


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory, frozen_config) -> Path:
    """A cache that holds the frozen backbone's graph."""
    folder = tmp_path_factory.mktemp("cache")
    learner_for(frozen_config, Noise(), folder).initial_model(3, CountingWatch())
    return folder


def test_the_initial_model_is_the_backbone_with_a_zero_head(frozen_config, cache_dir, tmp_path, watch):
    model = learner_for(frozen_config, Noise(), cache_dir).initial_model(3, watch)
    manifest = stage(model, Noise(), tmp_path / "noise" / "1", watch)
    assert (manifest.head, manifest.members, manifest.embedding_shared) == ("zero", 1, True)
    session = ort.InferenceSession(tmp_path / "noise" / "1" / "model.onnx")
    images = noise_images(5)
    probabilities, logits, embedding = session.run(["probabilities", "logits", "embedding"], {"image": images})
    np.testing.assert_allclose(probabilities, np.full((5, 3), 1 / 3), rtol=1e-6)
    assert (logits.shape, embedding.shape) == ((5, 1, 3), (5, 256))
    assert {a.dtype for a in (probabilities, logits, embedding)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(embedding, model.reference(images), atol=1e-4)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_is_published_as_it_is(name, cache_dir, tmp_path, watch):
    config = campaign({"name": "base_cnn", "weights": "none"}, {"head": name, "members": 3})
    asked: list[str] = []

    def embeddings(ids):
        asked.extend(ids)
        return bare.reference(Noise().images(ids))

    bare = learner_for(config, Noise(), cache_dir).initial_model(3, watch)
    pool = [str(i) for i in range(100)]
    learner = learner_for(config, Noise(), cache_dir, embeddings=embeddings, pool_ids=pool)
    labelled = LabelledSamples(tuple(pool[:40]), np.arange(40) % 3, np.ones(40, bool), np.arange(40) // 10)
    model = learner.fit(labelled, 3, 0, watch)
    # The pool is read by the heads that learn from it, and by no other.
    assert set(asked) == set(pool if HEADS[name].uses_pool else pool[:40])
    manifest = stage(model, Noise(), tmp_path / "noise" / "2", watch)
    members = 3 if HEADS[name].committee else 1
    assert (manifest.head, manifest.members) == (name, members)
    assert manifest.parity.top1_disagreements == 0
    assert manifest.temperature == model.head.temperature
    logits = ort.InferenceSession(tmp_path / "noise" / "2" / "model.onnx").run(["logits"], {"image": noise_images(5)})[
        0
    ]
    assert logits.shape == (5, members, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "torchvision/mobilenet_v3_small"])
def test_tapped_networks_of_both_libraries_are_exported_as_they_are(name, cache_dir, watch):
    config = campaign({"name": name, "weights": "none", "input_size": 64, "taps": 2, "flip": True})
    model = learner_for(config, Noise(), cache_dir).initial_model(3, watch)
    images = noise_images(3)
    (embedding,) = ort.InferenceSession(model.embedding_graph).run(None, {"image": images})
    expected = model.reference(images)
    np.testing.assert_allclose(embedding, expected, atol=1e-3 * np.abs(expected).max())


def test_a_committee_of_backbones_is_published_as_one_model(cache_dir, tmp_path, watch):
    members = [{"name": "base_cnn", "weights": "none"}, {"name": "base_cnn", "weights": "none", "taps": 2}]
    config = campaign({"members": members})
    learner = learner_for(
        config, Noise(), cache_dir, embeddings=lambda ids: bare.reference(Noise().images(ids)), pool_ids=()
    )
    bare = learner.initial_model(3, watch)
    assert (bare.embedding_size, bare.backbone.name) == (256 + 384, "base_cnn+base_cnn")
    images = noise_images(5)
    parts = [
        learner_for(campaign(member), Noise(), cache_dir).initial_model(3, watch).reference(images)
        for member in members
    ]
    np.testing.assert_allclose(bare.reference(images), np.concatenate(parts, axis=1), atol=1e-5)
    ids = tuple(str(i) for i in range(40))
    model = learner.fit(LabelledSamples(ids, np.arange(40) % 3, np.ones(40, bool)), 3, 0, watch)
    manifest = stage(model, Noise(), tmp_path / "noise" / "2", watch)
    assert (manifest.head, manifest.members, manifest.parity.top1_disagreements) == ("logistic", 2, 0)
    assert [it.taps for it in manifest.backbone.members] == ["last", "3,4"]
    assert manifest.embedding_id == bare.embedding_id
    logits, embedding = ort.InferenceSession(tmp_path / "noise" / "2" / "model.onnx").run(
        ["logits", "embedding"], {"image": images}
    )
    assert (logits.shape, embedding.shape) == ((5, 2, 3), (5, 640))
    np.testing.assert_allclose(logits, model.head.logits(embedding), atol=1e-3)


def test_a_warm_cache_needs_no_torch(cache_dir, frozen_config):
    """A round on a known backbone must not wait for torch and timm to be imported."""
    program = f"""
import sys
from pathlib import Path
import numpy as np
from services.trainer.learners import make_learner
from services.trainer.export import OnnxExporter
from services.trainer.heads import HEADS
from services.trainer.config import parse_config
from services.trainer.learning import LabelledSamples, SilentWatch
config = parse_config({frozen_config.model_dump(mode="json")!r}, "test")
rng = np.random.default_rng(0)
rows = rng.normal(size=(40, 256)).astype(np.float32)
read = lambda ids: rows[[int(i) for i in ids]]
learner = make_learner(config, 32, 32, None, Path({str(cache_dir)!r}), read, None, 2)
labelled = LabelledSamples(tuple(map(str, range(40))), rng.integers(0, 3, 40), np.ones(40, bool))
model = learner.fit(labelled, 3, 0, SilentWatch())
assert learner.probabilities(model, ["1", "2"], SilentWatch()).shape == (2, 3)
print(model.embedding_id, sorted({{"torch", "timm", "torchvision"}} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout.endswith(" []\n"), found.stdout + found.stderr


@pytest.mark.slow
def test_a_damaged_graph_in_the_cache_is_exported_again(frozen_config, tmp_path, watch):
    before = learner_for(frozen_config, Noise(), tmp_path).initial_model(3, watch)
    whole = before.embedding_graph.read_bytes()
    before.embedding_graph.write_bytes(whole[:1000])
    after = learner_for(frozen_config, Noise(), tmp_path).initial_model(3, watch)
    assert after.embedding_graph.read_bytes() == whole


def test_an_export_can_be_stopped(frozen_config, tmp_path):
    learner = learner_for(frozen_config, Noise(), tmp_path)
    with pytest.raises(Stopped):
        learner.initial_model(3, CountingWatch(stop_at=1))


def test_exported_graphs_do_not_name_this_machine(cache_dir):
    graph = next(cache_dir.glob("*.onnx")).read_bytes()
    assert b"site-packages" not in graph
    assert str(ROOT).encode() not in graph


@pytest.mark.slow
def test_vgg16_end_to_end_on_the_real_weights(weights_dir, tmp_path, watch):
    """Round 0, embeddings through the exported graph, a head on them, and the version that is published."""
    truth = np.arange(300) % 2
    images = noise_images(300)
    images[truth == 1, 8:24, 8:24] //= 4  # a dark square in the middle

    class Squares:
        def images(self, ids):
            return images[[int(i) for i in ids]]

    config = campaign({"name": "vgg16", "input_size": 64})
    stored = {}
    learner = learner_for(
        config, Squares(), tmp_path / "cache", weights_dir, lambda ids: np.stack([stored[i] for i in ids])
    )
    initial = learner.initial_model(2, watch)
    assert (initial.embedding_size, initial.backbone.taps) == (1280, "3,4,5")
    session = ort.InferenceSession(initial.embedding_graph)
    for first in range(0, 300, 50):
        rows = session.run(None, {"image": images[first : first + 50]})[0]
        stored |= {str(first + i): row for i, row in enumerate(rows)}
    labelled = LabelledSamples(tuple(map(str, range(40))), truth[:40], np.ones(40, bool))
    model = learner.fit(labelled, 2, 0, watch)
    manifest = stage(model, Squares(), tmp_path / "squares" / "2", watch)
    assert (manifest.head, manifest.embedding_id) == ("logistic", initial.embedding_id)
    probabilities = learner.probabilities(model, [str(i) for i in range(40, 300)], watch)
    assert evaluate(probabilities, truth[40:]).metrics["accuracy"] > 0.95
