"""Faster graphs: how they are made, and that each of the rules can refuse one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from services.common.errors import Stopped
from services.common.manifest import Manifest, read_manifest
from services.trainer import variants as gate
from services.trainer.export import OnnxExporter
from services.trainer.heads import zero_head
from services.trainer.learning import FittedModel, Head, LabelledSamples, VersionFacts
from services.trainer.parity import session
from services.trainer.variant_cache import VariantCache
from services.trainer.variant_graphs import LARGEST, fp16_graph, int8_graph, rounded_to_fp16, with_largest
from services.trainer.variants import COMPARED, Variants, compare
from tests.fakes import BACKBONE
from tests.unit.learning.conftest import CountingWatch

SIDE, D, C = 6, 8, 4
POOL = tuple(f"{i:040d}" for i in range(2600))


def images(ids) -> np.ndarray:
    """uint8 [N, 6, 6, 3], of each id always the same."""
    return np.stack([np.random.default_rng(int(i)).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for i in ids])


def convolution(gain: float = 1.0) -> onnx.ModelProto:
    """`image` -> scaled pixels -> convolution -> relu -> second convolution, over `gain` -> mean: `embedding`."""
    rng = np.random.default_rng(0)
    constants = {
        "white": np.array(255, np.float32),
        "first": (gain * rng.normal(size=(D, 3, 3, 3))).astype(np.float32),
        "second": (rng.normal(size=(D, D, 1, 1)) / gain).astype(np.float32),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], name="transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "white"], ["pixels"], name="divide"),
        helper.make_node("Conv", ["pixels", "first"], ["edges"], name="conv1"),
        helper.make_node("Relu", ["edges"], ["kept"], name="relu"),
        helper.make_node("Conv", ["kept", "second"], ["mixed"], name="conv2"),
        helper.make_node("ReduceMean", ["mixed", "axes"], ["embedding"], name="mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", D])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def embeddings(graph: onnx.ModelProto, ids) -> np.ndarray:
    return session(graph.SerializeToString()).run(["embedding"], {"image": images(ids)})[0]


def head() -> Head:
    """Tells apart what `convolution` makes: classes along the directions in which its embeddings differ most."""
    rows = embeddings(convolution(), POOL[:200])
    directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2]
    weights = np.stack([directions[0], -directions[0], directions[1], -directions[1]]).astype(np.float32)
    return Head(
        "logistic", rows.mean(axis=0), rows.std(axis=0).mean() * np.ones(D), 9 * weights[None], np.zeros((1, C))
    )


def fitted(folder: Path, graph: onnx.ModelProto) -> FittedModel:
    path = folder / "e1.onnx"
    path.write_bytes(graph.SerializeToString())
    return FittedModel(head(), BACKBONE, "e1", D, True, path, reference=lambda pixels: reference(graph, pixels))


def reference(graph: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return session(graph.SerializeToString()).run(["embedding"], {"image": pixels})[0]


@pytest.fixture
def model(tmp_path: Path) -> FittedModel:
    return fitted(tmp_path, convolution())


@pytest.fixture
def labelled(model: FittedModel) -> LabelledSamples:
    return labelled_by(model)


def labelled_by(model: FittedModel) -> LabelledSamples:
    """Forty, every second one drawn at random; their classes are those that the model says."""
    ids = POOL[::60][:40]
    classes = model.head.probabilities(embeddings(convolution(), ids)).argmax(axis=1)
    return LabelledSamples(tuple(ids), classes, np.arange(40) % 2 == 0)


# ---- the three rules ----------------------------------------------------------------------------------


def rows(predictions: list[int]) -> np.ndarray:
    return np.eye(C, dtype=np.float32)[predictions]


ONE_HOT = Head("logistic", np.zeros(C), np.ones(C), 5 * np.eye(C)[None], np.zeros((1, C)))
RIGHT = [0, 1, 2, 3] * 250
EMPTY = np.empty(0, np.int64)


def check(found: np.ndarray, slice_found=None, kind="fp16", largest=10.0, classes=EMPTY):
    slice_expected = rows(list(classes)).reshape(-1, C)
    slice_found = slice_expected if slice_found is None else rows(slice_found)
    return compare(kind, ONE_HOT, (rows(RIGHT), slice_expected), (found, slice_found), classes, largest)


@pytest.mark.parametrize(("wrong", "refused"), [(5, False), (6, True)])
def test_agreement_of_99_5_percent_is_asked_and_enough(wrong, refused):
    found = check(rows([*RIGHT[:-wrong], *[(c + 1) % C for c in RIGHT[-wrong:]]]))
    assert found.agreement == pytest.approx(1 - wrong / 1000)
    assert bool(found.refused) == refused
    assert not refused or "agrees with fp32 on 99.40%" in found.refused


@pytest.mark.parametrize(("lost", "refused"), [(1, False), (2, True)])
def test_one_label_of_the_random_slice_may_be_lost_and_no_more(lost, refused):
    truth = np.array([0, 1, 2, 3, 0, 1])
    found = check(rows(RIGHT), [*([2, 3][:lost]), *truth[lost:]], classes=truth)
    assert (found.random_slice, found.random_slice_correct_fp32, found.random_slice_correct) == (6, 6, 6 - lost)
    assert bool(found.refused) == refused


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite_is_enough_to_refuse(value):
    broken = rows(RIGHT)
    broken[7, 1] = value
    found = check(broken)
    assert (found.refused, found.max_probability_error) == ("it gives values that are not finite", None)


def test_layers_that_float16_cannot_hold_are_refused_for_fp16_alone():
    assert "its layers reach 70,000" in check(rows(RIGHT), largest=70_000.0).refused
    assert not check(rows(RIGHT), largest=17_715.0).refused  # VGG16's
    assert not check(rows(RIGHT), kind="int8", largest=70_000.0).refused


# ---- the graphs ---------------------------------------------------------------------------------------


def test_fp16_keeps_the_contract_and_rounds_like_a_gpu():
    graph = fp16_graph(convolution())
    assert [v.type.tensor_type.elem_type for v in (*graph.graph.input, *graph.graph.output)] == [2, 1]
    assert len(graph.SerializeToString()) < len(convolution().SerializeToString())
    exact = embeddings(convolution(), POOL[:50])
    for faster in (graph, rounded_to_fp16(convolution())):
        error = np.abs(embeddings(faster, POOL[:50]) - exact).max() / np.abs(exact).max()
        assert 0 < error < 2e-3


def test_an_overflow_between_layers_shows_in_the_rounded_graph_and_in_the_largest_value():
    loud = convolution(gain=1e5)
    assert np.isfinite(embeddings(loud, POOL[:4])).all()
    assert not np.isfinite(embeddings(rounded_to_fp16(loud), POOL[:4])).all()
    largest = session(with_largest(loud).SerializeToString()).run([LARGEST], {"image": images(POOL[:4])})[0]
    assert largest > 65_504


def test_the_largest_value_is_that_of_the_layers_and_the_embedding_stays():
    exact, largest = session(with_largest(convolution()).SerializeToString()).run(None, {"image": images(POOL[:9])})
    np.testing.assert_allclose(exact, embeddings(convolution(), POOL[:9]), atol=1e-6)
    # A convolution's sums lie above the pixels once they are divided, and below them as they came.
    assert 1 < largest < 255


def test_int8_quantises_convolutions_and_leaves_the_pixels_alone():
    graph = int8_graph(convolution(), iter([images(POOL[:64])]))
    quantised = {node.op_type for node in graph.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= quantised
    producers = {name: node for node in graph.graph.node for name in node.output}
    divide = next(node for node in graph.graph.node if node.op_type == "Div")
    assert all(producers[name].op_type == "Cast" for name in divide.input if name in producers)
    exact = embeddings(convolution(), POOL[:50])
    assert np.abs(embeddings(graph, POOL[:50]) - exact).max() < 0.1 * np.abs(exact).max()


def test_making_a_variant_leaves_the_graph_as_it_was():
    graph = convolution()
    before = graph.SerializeToString(deterministic=True)
    for make in (fp16_graph, rounded_to_fp16, with_largest):
        make(graph)
    int8_graph(graph, iter([images(POOL[:8])]))
    assert graph.SerializeToString(deterministic=True) == before


# ---- from model to version ----------------------------------------------------------------------------


def stage(
    model: FittedModel, labelled: LabelledSamples, folder: Path, kinds=("fp16",), pool=POOL, watch=None
) -> Manifest:
    parity = images(POOL[:256])
    exporter = OnnxExporter(lambda: parity, images, variants=Variants(kinds, pool, images))
    facts = VersionFacts("birds", int(folder.name), 1, tuple("abcd"), len(labelled), {}, labelled)
    exporter.stage(model, facts, {}, folder, watch or CountingWatch())
    return read_manifest(folder)


def test_a_variant_that_agrees_is_published_with_its_figures(model, labelled, tmp_path):
    folder = tmp_path / "birds" / "2"
    manifest = stage(model, labelled, folder, ("fp16", "int8"))
    found = manifest.variants["fp16"]
    assert manifest.published_variants >= {"fp16"}
    assert (found.refused, found.images, found.random_slice) == ("", COMPARED, 20)
    assert found.agreement >= 0.995
    assert found.largest_activation is not None
    assert 1 < found.largest_activation < 255
    probabilities, logits, embedding = session(folder / "model.fp16.onnx").run(None, {"image": images(POOL[:40])})
    assert (probabilities.dtype, logits.dtype, embedding.dtype) == (np.float32,) * 3
    expected = model.head.probabilities(embeddings(convolution(), POOL[:40]))
    np.testing.assert_allclose(probabilities, expected, atol=0.02)
    # Eight channels in eight bits do not pass here, and what does not pass leaves its reason and no file.
    int8 = manifest.variants["int8"]
    assert (folder / "model.int8.onnx").exists() == (not int8.refused)
    assert int8.images == COMPARED


def test_an_int8_variant_that_agrees_is_published(model, labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "MIN_AGREEMENT", 0.5)
    monkeypatch.setattr(gate, "MAX_LOST_LABELS", 20)
    folder = tmp_path / "birds" / "2"
    assert stage(model, labelled, folder, ("int8",)).published_variants == {"int8"}
    found = session(folder / "model.int8.onnx").run(["probabilities"], {"image": images(POOL[:40])})[0]
    expected = model.head.probabilities(embeddings(convolution(), POOL[:40]))
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.5


def test_a_source_with_fewer_than_2000_unlabelled_images_has_no_variant(model, labelled, tmp_path):
    manifest = stage(model, labelled, tmp_path / "birds" / "2", pool=POOL[: COMPARED + len(labelled) - 10])
    assert "unlabelled images to compare on; 2000 are asked" in manifest.variants["fp16"].refused
    assert manifest.published_variants == set()
    assert set(manifest.files) == {"model.onnx", "head.onnx"}


def test_layers_beyond_float16_are_refused_before_anything_is_published(labelled, tmp_path):
    manifest = stage(fitted(tmp_path, convolution(gain=1e5)), labelled, tmp_path / "birds" / "2")
    assert manifest.variants["fp16"].refused
    assert not (tmp_path / "birds" / "2" / "model.fp16.onnx").exists()


def test_a_graph_that_cannot_be_converted_costs_the_variant_and_not_the_round(model, labelled, tmp_path, monkeypatch):
    def cannot(graph):
        raise NotImplementedError("an operator from the future")

    monkeypatch.setattr("services.trainer.variant_graphs.fp16_graph", cannot)
    manifest = stage(model, labelled, tmp_path / "birds" / "2")
    assert "an operator from the future" in manifest.variants["fp16"].refused


def test_a_zero_head_has_no_variants(model, labelled, tmp_path):
    zero = replace(model, head=zero_head(C, D))
    assert stage(zero, labelled, tmp_path / "birds" / "1").variants == {}


def test_a_later_round_runs_only_the_images_that_it_has_not_seen(model, labelled, tmp_path, monkeypatch):
    stage(model, labelled, tmp_path / "birds" / "2")
    ran: list[int] = []
    run = Variants._run

    def counting(self, graph, ids, watch):
        ran.append(len(ids))
        return run(self, graph, ids, watch)

    monkeypatch.setattr(Variants, "_run", counting)
    stage(model, labelled, tmp_path / "birds" / "3")
    assert ran == []
    # Five more labels among the images compared: five others take their place.
    bought = [i for i in POOL if i not in labelled.ids][:5]
    more = LabelledSamples(
        (*labelled.ids, *bought), np.append(labelled.classes, [0] * 5), np.append(labelled.drawn_at_random, [False] * 5)
    )
    stage(model, more, tmp_path / "birds" / "4")
    assert ran == [5, 5, 5]  # fp32, fp16 as it is published, fp16 as a GPU rounds it


def test_a_damaged_variant_in_the_cache_is_made_again(tmp_path):
    cache = VariantCache(tmp_path)
    assert cache.graph("e", "fp16-1", lambda: b"graph") == b"graph"
    assert cache.graph("e", "fp16-1", lambda: b"other") == b"graph"
    (path,) = tmp_path.glob("e.fp16-1.*.onnx")
    path.write_bytes(b"grap")
    assert cache.graph("e", "fp16-1", lambda: b"other") == b"other"


def test_damaged_embeddings_in_the_cache_are_computed_again(tmp_path):
    cache = VariantCache(tmp_path)
    asked: list[list[str]] = []

    def run(ids):
        asked.append(list(ids))
        return np.array([[float(i)] for i in ids], np.float32), 3.0

    assert cache.seen(b"graph", ["2", "1"], run).of(["1", "2", "1"]).tolist() == [[1], [2], [1]]
    assert cache.seen(b"graph", ["3", "2"], run).largest == 3.0
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:40])
    cache.seen(b"graph", ["3"], run)
    assert asked == [["1", "2"], ["3"], ["3"]]


def test_the_gate_ends_when_the_worker_is_told_to_stop(model, labelled, tmp_path):
    class StopsInVariants(CountingWatch):
        def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
            if phase == "variants" and done > 64:
                raise Stopped("asked to")

    with pytest.raises(Stopped):
        stage(model, labelled, tmp_path / "birds" / "2", watch=StopsInVariants())
    assert not (tmp_path / "birds").exists()


def test_a_manifest_from_before_there_were_variants_still_loads(model, labelled, tmp_path):
    manifest = stage(model, labelled, tmp_path / "birds" / "2", kinds=())
    old = manifest.model_dump(mode="json")
    del old["variants"]
    assert Manifest.model_validate(old) == manifest
    assert manifest.published_variants == set()
