"""Which graph of a version answers, which one embeds, and what happens when the faster one is damaged."""

from pathlib import Path

import numpy as np
import pytest

from services.common.errors import DamagedArtefact
from services.common.manifest import MODEL_FILE, VARIANT_FILES
from services.common.registry import Registry
from services.inference.loading import Loader
from services.inference.metrics import Metrics
from services.inference.model import Model, Refused, load
from services.inference.runtime import Runtime
from tests.tiny_models import TinyModel, embeddings, probabilities, publish, stage

MODEL = TinyModel(variants=("fp16", "int8"))
PIXELS = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


def loaded(folder: Path, runtime: Runtime, model: TinyModel = MODEL) -> Model:
    return load(folder, stage(model, folder), runtime, [2, 1])


def test_a_variant_predicts_and_fp32_embeds(tmp_path):
    model = loaded(tmp_path / "1", Runtime("cpu", 1, "int8"))
    assert model.precision == "int8"
    np.testing.assert_allclose(model.predict(PIXELS).probabilities, probabilities(MODEL.as_variant, PIXELS), atol=1e-5)
    np.testing.assert_allclose(model.embed(PIXELS), embeddings(MODEL, PIXELS), atol=1e-6)


def test_auto_takes_int8_on_a_cpu_with_vnni_and_fp32_on_another(tmp_path):
    for vnni, precision in ((True, "int8"), (False, "fp32")):
        assert loaded(tmp_path / "1", Runtime("cpu", 1, vnni=vnni)).precision == precision


def test_what_was_not_published_is_not_looked_for(tmp_path):
    assert loaded(tmp_path / "1", Runtime("cpu", 1, "fp16"), TinyModel(variants=("int8",))).precision == "fp32"


def test_the_fp32_network_is_in_memory_only_once_somebody_embeds(tmp_path):
    made: list[int] = []

    class Counting(Runtime):
        def network(self, graph, sizes):
            made.append(len(graph))
            return super().network(graph, sizes)

    model = loaded(tmp_path / "1", Counting("cpu", 1, "int8"))
    model.predict(PIXELS)
    assert len(made) == 1
    model.embed(PIXELS)
    model.embed(PIXELS)
    assert len(made) == 2


@pytest.mark.parametrize("damage", ["changed", "missing", "not a graph"])
def test_a_damaged_variant_is_replaced_by_fp32(tmp_path, damage):
    manifest = stage(MODEL, tmp_path / "1")
    path = tmp_path / "1" / VARIANT_FILES["int8"]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"x" + path.read_bytes()[1:])
    if damage == "not a graph":
        from services.common.files import sha256_file

        manifest = manifest.model_copy(update={"files": {**manifest.files, path.name: sha256_file(path)}})
    model = load(tmp_path / "1", manifest, Runtime("cpu", 1, "int8"), [2, 1])
    assert model.precision == "fp32"
    assert path.name in model.variant_refused
    np.testing.assert_allclose(model.predict(PIXELS).probabilities, probabilities(MODEL, PIXELS), atol=1e-5)


def test_a_version_whose_fp32_graph_is_damaged_is_refused_though_its_variant_is_whole(tmp_path):
    manifest = stage(MODEL, tmp_path / "1")
    (tmp_path / "1" / MODEL_FILE).write_bytes(b"damaged")
    with pytest.raises(Refused, match="does not match its checksum"):
        load(tmp_path / "1", manifest, Runtime("cpu", 1, "int8"), [1])


def test_an_fp32_graph_that_is_damaged_later_is_noticed_by_the_call_that_embeds(tmp_path):
    model = loaded(tmp_path / "1", Runtime("cpu", 1, "int8"))
    (tmp_path / "1" / MODEL_FILE).write_bytes(b"damaged")
    with pytest.raises(DamagedArtefact, match="does not match its checksum"):
        model.embed(PIXELS)
    assert len(model.predict(PIXELS).probabilities) == 4


def test_a_replaced_variant_is_counted(tmp_path):
    registry, metrics = Registry(tmp_path / "registry"), Metrics()
    folder = publish(registry, MODEL)
    (folder / VARIANT_FILES["int8"]).write_bytes(b"damaged")
    loader = Loader(registry, Runtime("cpu", 1, "int8"), [1], metrics)
    assert loader.load((MODEL.campaign, 1)).precision == "fp32"
    assert metrics.registry.get_sample_value("inference_model_load_failures_total", {"reason": "variant"}) == 1
