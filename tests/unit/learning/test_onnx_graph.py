"""head.onnx and model.onnx against the plain formula, with an embedding graph made by hand."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from services.trainer.heads import zero_head
from services.trainer.learning import SHORTEST, Head, Hidden
from services.trainer.onnx_graph import head_graph, model_graph
from services.trainer.parity import session

D, C = 6, 4


def random_head(members: int) -> Head:
    rng = np.random.default_rng(members)
    return Head(
        kind="logistic",
        mean=rng.normal(size=D).astype(np.float32),
        scale=rng.uniform(0.5, 2, D).astype(np.float32),
        weights=rng.normal(size=(members, C, D)).astype(np.float32),
        biases=rng.normal(size=(members, C)).astype(np.float32),
        temperature=1.7,
    )


def mean_pixels() -> onnx.ModelProto:
    """`image` -> mean over positions, twice over: the smallest embedding graph with the contract's names."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Concat", ["mean", "mean"], ["embedding"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "embedding",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 5, 7, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", D])],
        # The same inner names as the head's: they must not clash.
        [numpy_helper.from_array(np.array([1, 2], np.int64), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("members", [1, 3])
def test_head_graph_is_the_head(members):
    head = random_head(members)
    embeddings = np.random.default_rng(1).normal(size=(8, D)).astype(np.float32)
    graph = session(head_graph(head).SerializeToString())
    probabilities, logits = graph.run(["probabilities", "logits"], {"embedding": embeddings})
    assert (probabilities.shape, logits.shape) == ((8, C), (8, members, C))
    np.testing.assert_allclose(logits, head.logits(embeddings), atol=1e-5)
    np.testing.assert_allclose(probabilities, head.probabilities(embeddings), atol=1e-6)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_head_agrees_with_model_bit_for_bit(members, count, images):
    head = head_graph(random_head(members))
    model = session(model_graph(mean_pixels(), head).SerializeToString(), 1)
    probabilities, logits, embedding = model.run(None, {"image": images[:count]})
    alone = session(head.SerializeToString(), 1).run(["probabilities", "logits"], {"embedding": embedding})
    np.testing.assert_array_equal(alone[0], probabilities)
    np.testing.assert_array_equal(alone[1], logits)


def shapes_of_heads() -> dict[str, Head]:
    rng = np.random.default_rng(3)
    hidden = Hidden(rng.normal(size=(9, D)).astype(np.float32), rng.normal(size=9).astype(np.float32))
    behind = rng.normal(size=(2, C, 9)).astype(np.float32)
    return {
        "unit": replace(random_head(2), unit=True),
        "hidden": replace(random_head(2), weights=behind, hidden=hidden),
        "both": replace(random_head(2), weights=behind, hidden=hidden, unit=True),
    }


@pytest.mark.parametrize("name", ["unit", "hidden", "both"])
def test_directions_and_hidden_layers_are_exported_as_they_are(name, images):
    head = shapes_of_heads()[name]
    graph = head_graph(head)
    onnx.checker.check_model(model_graph(mean_pixels(), graph), full_check=True)
    model = session(model_graph(mean_pixels(), graph).SerializeToString(), 1)
    probabilities, logits, embedding = model.run(None, {"image": images})
    np.testing.assert_allclose(logits, head.logits(embedding), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probabilities, head.probabilities(embedding), atol=1e-5)
    alone = session(graph.SerializeToString(), 1).run(["logits"], {"embedding": embedding})
    np.testing.assert_array_equal(alone[0], logits)


def test_an_embedding_at_the_mean_has_no_direction_and_no_nan():
    head = replace(random_head(1), unit=True)
    rows = np.stack([head.mean, head.mean + SHORTEST / 100 * head.scale]).astype(np.float32)
    logits = session(head_graph(head).SerializeToString()).run(["logits"], {"embedding": rows})[0]
    np.testing.assert_allclose(logits, head.logits(rows), atol=1e-5)
    np.testing.assert_allclose(logits[0, 0], head.biases[0] / head.temperature, atol=1e-5)


def test_names_types_and_shapes_are_the_contracts():
    model = model_graph(mean_pixels(), head_graph(random_head(3)))
    onnx.checker.check_model(model, full_check=True)
    found = session(model.SerializeToString())
    assert [(i.name, i.type, i.shape) for i in found.get_inputs()] == [("image", "tensor(uint8)", ["N", 5, 7, 3])]
    assert [(o.name, o.type, o.shape) for o in found.get_outputs()] == [
        ("probabilities", "tensor(float)", ["N", C]),
        ("logits", "tensor(float)", ["N", 3, C]),
        ("embedding", "tensor(float)", ["N", D]),
    ]


def test_a_zero_head_exports_to_equal_probabilities(images):
    model = session(model_graph(mean_pixels(), head_graph(zero_head(C, D))).SerializeToString())
    np.testing.assert_array_equal(model.run(["probabilities"], {"image": images})[0], np.full((9, C), 0.25))
