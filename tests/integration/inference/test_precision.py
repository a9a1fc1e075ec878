"""Variants from the exporter's gate to the answers of a real server."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from services.common.embeddings import EmbeddingStore
from services.common.files import sha256_file
from services.common.manifest import VARIANT_FILES
from services.common.pb import model_registry_pb2
from services.inference.runtime import CUDA
from services.trainer.export import OnnxExporter
from services.trainer.learning import VersionFacts
from services.trainer.parity import session
from services.trainer.variants import Variants
from tests.integration.inference.harness import serving
from tests.tiny_models import Folders, TinyModel, embeddings, probabilities, publish, running_inference
from tests.unit.learning.conftest import CountingWatch
from tests.unit.learning.test_variants import POOL, convolution, fitted, images, labelled_by

PIXELS = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


def published(folders: Folders, cache: Path) -> Path:
    """A version made by the trainer's own code, with the fp16 graph that passed its gate."""
    cache.mkdir()
    model = fitted(cache, convolution())
    classes, labelled = tuple("abcd"), labelled_by(model)
    exporter = OnnxExporter(lambda: images(POOL[:256]), images, variants=Variants(("fp16",), POOL, images))
    folders.registry.create_campaign("birds", classes)
    staged = folders.registry.staging_dir()
    facts = VersionFacts("birds", 1, 1, classes, len(labelled), {}, labelled)
    exporter.stage(model, facts, {}, staged, CountingWatch())
    folders.registry.publish(staged, "birds", 1)
    folders.registry.promote("birds", 1)
    return folders.registry.version_dir("birds", 1)


async def test_a_replica_that_is_told_to_answers_with_the_fp16_graph(folders: Folders, tmp_path: Path) -> None:
    folder = published(folders, tmp_path / "cache")
    shown = images(POOL[:8])
    expected, _, embedding = session(folder / VARIANT_FILES["fp16"]).run(None, {"image": shown})
    async with serving(folders, precision="fp16") as served:
        answer = await served.client.predict(shown, with_embedding=True)
        given = np.array(
            [[{c.label: c.probability for c in p.classes}[name] for name in "abcd"] for p in answer.predictions]
        )
        np.testing.assert_allclose(given, expected, atol=1e-6)
        np.testing.assert_array_equal([p.embedding for p in answer.predictions], embedding)
        # It is another graph than fp32's: the bits tell.
        exact = session(folder / "model.onnx").run(["embedding"], {"image": shown})[0]
        assert not np.array_equal(exact, embedding)


async def test_metrics_and_getmodel_say_which_precision_serves(folders: Folders) -> None:
    publish(folders.registry, TinyModel(variants=("int8",)), promote=True)
    async with serving(folders, precision="int8") as served:
        await served.client.predict(PIXELS)
        version = {"model": "tiny", "version": "1", "round": "0", "provider": "CPUExecutionProvider"}
        assert served.metric("inference_model_info", **version, precision="int8") == 1
        assert not served.has_series("inference_model_info", **version, precision="fp32")
        described = await served.models.GetModel(model_registry_pb2.GetModelRequest(model="tiny"))
        assert described.provider == "CPUExecutionProvider int8"


async def test_stored_embeddings_are_fp32s_whatever_answers(folders: Folders) -> None:
    model = TinyModel(variants=("int8",))
    publish(folders.registry, model, promote=True)
    source = folders.source(splits={"pool": 40})
    async with serving(folders, precision="int8") as served:
        ids = source.ids["pool"]
        await served.client.score_pool(source.source_id, "entropy", model="tiny", version=1)
        stored = EmbeddingStore(folders.embeddings_dir, model.embedding_id, source.source_id).read(ids)
        np.testing.assert_allclose(stored, embeddings(model, source.images(ids)), atol=1e-3)


async def test_a_damaged_variant_leaves_the_version_serving_in_fp32(folders: Folders) -> None:
    model = TinyModel(variants=("int8",))
    folder = publish(folders.registry, model, promote=True)
    (folder / VARIANT_FILES["int8"]).write_bytes(b"damaged")
    async with serving(folders, precision="int8") as served:
        answer = await served.client.predict(PIXELS)
        given = [{c.label: c.probability for c in p.classes} for p in answer.predictions]
        for row, prediction in zip(probabilities(model, PIXELS), given, strict=True):
            np.testing.assert_allclose([prediction[name] for name in model.classes], row, atol=1e-5)
        assert served.metric("inference_model_load_failures_total", reason="variant") == 1


def test_a_replica_that_was_asked_for_cuda_and_has_none_is_not_ready_and_says_why(folders: Folders) -> None:
    if CUDA in ort.get_available_providers():
        pytest.skip("this onnxruntime has CUDA; what is missing here is there")
    with running_inference(folders, INFERENCE_DEVICE="cuda") as running:
        record = running.wait_for_log("device_missing")
        assert "install onnxruntime-gpu" in str(record["why"])
        assert "INFERENCE_DEVICE=auto" in str(record["consequence"])


def test_the_manifest_holds_the_checksum_of_every_variant(folders: Folders, tmp_path: Path) -> None:
    folder = published(folders, tmp_path / "cache")
    manifest = folders.registry.verify("birds", 1)
    assert manifest.files["model.fp16.onnx"] == sha256_file(folder / "model.fp16.onnx")
