from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from services.common.errors import DamagedArtefact
from services.common.files import sha256_file
from services.common.manifest import read_manifest
from services.trainer.calibration import softmax
from services.trainer.export import OnnxExporter
from services.trainer.heads import zero_head
from services.trainer.learning import FittedModel, VersionFacts
from services.trainer.onnx_graph import model_graph
from services.trainer.parity import batches, top1_disagreements
from tests.fakes import BACKBONE
from tests.unit.learning.conftest import CountingWatch
from tests.unit.learning.test_onnx_graph import D, mean_pixels, random_head

FACTS = VersionFacts("birds", 2, 1, ("a", "b", "c", "d"), 100, {"test": {"accuracy": 0.5}})


def mean_of_pixels(images: np.ndarray) -> np.ndarray:
    mean = images.mean(axis=(1, 2), dtype=np.float32)
    return np.concatenate([mean, mean], axis=1)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (256, 5, 7, 3), dtype=np.uint8)


@pytest.fixture
def model(tmp_path: Path) -> FittedModel:
    graph = tmp_path / "cache" / "e1.onnx"
    graph.parent.mkdir()
    graph.write_bytes(mean_pixels().SerializeToString())
    head = replace(random_head(1), mean=np.full(D, 127, np.float32), scale=np.full(D, 7, np.float32))
    return FittedModel(head, BACKBONE, "e1", D, True, graph, reference=mean_of_pixels)


@pytest.fixture
def exporter(images: np.ndarray) -> OnnxExporter:
    return OnnxExporter(parity_images=lambda: images, images=lambda ids: images[[int(i) for i in ids]])


def test_a_staged_version_is_whole_and_says_what_it_is(exporter, model, tmp_path):
    folder = tmp_path / "birds" / "2"
    manifest = exporter.stage(model, FACTS, {"report.json": b"{}"}, folder, CountingWatch())
    assert read_manifest(folder) == manifest
    assert set(manifest.files) == {"model.onnx", "head.onnx", "report.json"}
    assert all(sha256_file(folder / name) == digest for name, digest in manifest.files.items())
    assert (manifest.head, manifest.members, manifest.input_height, manifest.input_width) == ("logistic", 1, 5, 7)
    assert manifest.temperature == 1.7
    assert (manifest.parity.images, manifest.parity.top1_disagreements) == (256, 0)
    assert manifest.parity.max_logit_error < 1e-4
    assert {"python", "onnxruntime", "torch", "numpy"} <= set(manifest.software)


def test_probabilities_of_a_published_version_follow_the_ids(exporter, model, images, tmp_path):
    folder = tmp_path / "birds" / "2"
    exporter.stage(model, FACTS, {}, folder, CountingWatch())
    ids = ["200", "3", "3"]
    expected = model.head.probabilities(mean_of_pixels(images[[200, 3, 3]]))
    np.testing.assert_allclose(exporter.probabilities(folder, ids), expected, atol=1e-5)
    assert exporter.probabilities(folder, []).shape == (0, 4)


@pytest.mark.parametrize("members", [1, 3])
def test_the_head_of_a_published_version_answers_for_each_member(exporter, model, images, tmp_path, members):
    head = random_head(members)
    folder = tmp_path / "birds" / "2"
    exporter.stage(replace(model, head=head), FACTS, {}, folder, CountingWatch())
    embeddings = mean_of_pixels(images[:9]) / 100
    found = exporter.head(folder)(embeddings)
    assert found.shape == (9, members, 4)
    np.testing.assert_allclose(found, softmax(head.logits(embeddings)), atol=1e-5)
    np.testing.assert_allclose(found.mean(axis=1), head.probabilities(embeddings), atol=1e-5)


def test_a_graph_that_is_not_the_network_is_never_staged(exporter, model, tmp_path):
    other = replace(model, reference=lambda images: mean_of_pixels(images) + 3)
    with pytest.raises(DamagedArtefact, match="does not agree with the network on 256 images"):
        exporter.stage(other, FACTS, {"report.json": b"{}"}, tmp_path / "birds" / "2", CountingWatch())
    assert not (tmp_path / "birds").exists()


def test_a_zero_head_does_not_hide_a_wrong_backbone(exporter, model, tmp_path):
    zero = replace(model, head=zero_head(4, D), reference=lambda images: mean_of_pixels(images) + 3)
    with pytest.raises(DamagedArtefact, match="embeddings by up to"):
        exporter.stage(zero, FACTS, {}, tmp_path / "birds" / "1", CountingWatch())


def test_a_network_that_gives_nan_is_never_staged(exporter, model, tmp_path):
    broken = replace(model, reference=lambda images: mean_of_pixels(images) * np.nan)
    with pytest.raises(DamagedArtefact):
        exporter.stage(broken, FACTS, {}, tmp_path / "birds" / "2", CountingWatch())


def test_the_network_is_asked_once_for_a_shared_embedding(exporter, model, tmp_path):
    exporter.stage(model, FACTS, {}, tmp_path / "birds" / "2", CountingWatch())
    again = replace(model, reference=None)
    exporter.stage(again, FACTS, {}, tmp_path / "birds" / "3", CountingWatch())


def test_a_fine_tuned_network_is_asked_every_time(exporter, model, tmp_path):
    tuned = replace(model, embedding_shared=False)
    exporter.stage(tuned, FACTS, {}, tmp_path / "birds" / "2", CountingWatch())
    with pytest.raises(DamagedArtefact, match="without the network"):
        exporter.stage(replace(tuned, reference=None), FACTS, {}, tmp_path / "birds" / "3", CountingWatch())


def test_every_parity_image_is_run_once_in_batches_of_1_5_and_32():
    parts = list(batches(256))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(256))
    assert {part.stop - part.start for part in parts} >= {1, 5, 32}


def test_a_tie_is_no_disagreement():
    expected = np.array([[0.50003, 0.49997], [0.6, 0.4]])
    found = np.array([[0.49999, 0.50001], [0.4, 0.6]])
    assert top1_disagreements(expected, found) == 1


def test_the_merged_graph_keeps_the_embedding_graph_as_it_was(model):
    embedding = onnx.load_model_from_string(model.embedding_graph.read_bytes())
    before = embedding.SerializeToString(deterministic=True)
    from services.trainer.onnx_graph import head_graph

    model_graph(embedding, head_graph(model.head))
    assert embedding.SerializeToString(deterministic=True) == before
