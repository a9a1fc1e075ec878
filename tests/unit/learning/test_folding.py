"""Standardisation inside the weights: the same logits, and the mean stays outside where float32 would lose them."""

from dataclasses import replace

import numpy as np
import pytest

from services.trainer.folding import MAX_FOLDING_ERROR, FoldedHead, folded, folding_error
from services.trainer.learning import Head, Hidden
from services.trainer.onnx_graph import head_graph
from services.trainer.parity import session

D, C = 640, 5


def head(members: int = 2, mean: float = 1.0, scale: float = 0.5) -> Head:
    """Of embeddings like those of a rectified layer: the mean is about as large as the spread."""
    rng = np.random.default_rng(members)
    return Head(
        kind="made-up",
        mean=(mean * rng.uniform(0.5, 1.5, D)).astype(np.float32),
        scale=(scale * rng.uniform(0.5, 1.5, D)).astype(np.float32),
        weights=(rng.normal(size=(members, C, D)) / np.sqrt(D)).astype(np.float32),
        biases=rng.normal(size=(members, C)).astype(np.float32),
        temperature=1.7,
    )


def with_hidden(units: int = 30) -> Head:
    rng = np.random.default_rng(7)
    hidden = Hidden((rng.normal(size=(units, D)) / np.sqrt(D)).astype(np.float32), rng.normal(size=units))
    return replace(head(), weights=rng.normal(size=(2, C, units)).astype(np.float32) / 5, hidden=hidden)


def with_a_dimension_that_hardly_changes() -> Head:
    ordinary = head()
    scale, mean = ordinary.scale.copy(), ordinary.mean.copy()
    scale[3], mean[3] = 1e-5, 3.0
    return replace(ordinary, scale=scale, mean=mean)


def embeddings_of(head: Head, count: int = 500) -> np.ndarray:
    return (head.mean + head.scale * np.random.default_rng(1).normal(size=(count, D))).astype(np.float32)


def exact(head: Head, embeddings: np.ndarray) -> np.ndarray:
    """Head.logits in float64 throughout."""
    wide = {name: getattr(head, name).astype(np.float64) for name in ("mean", "scale", "weights", "biases")}
    features = replace(head, **wide).features(embeddings.astype(np.float64))
    return (np.einsum("nd,kcd->nkc", features, wide["weights"]) + wide["biases"]) / head.temperature


def in_float32(plain: FoldedHead, embeddings: np.ndarray) -> np.ndarray:
    (layer,) = plain.layers
    return embeddings @ layer.weights.T.astype(np.float32) + layer.biases.astype(np.float32)


def operators(head: Head) -> list[str]:
    return [node.op_type for node in head_graph(head).graph.node]


def graph_logits(head: Head, embeddings: np.ndarray) -> np.ndarray:
    return session(head_graph(head).SerializeToString(), 1).run(["logits"], {"embedding": embeddings})[0]


def test_an_ordinary_head_is_one_product():
    assert operators(head()) == ["Gemm", "Reshape", "Softmax", "ReduceMean"]
    assert operators(with_hidden()) == ["Gemm", "Relu", "Gemm", "Reshape", "Softmax", "ReduceMean"]


@pytest.mark.parametrize("made", [head(), with_hidden(), with_a_dimension_that_hardly_changes()])
def test_the_graph_stays_within_the_folding_error_of_the_head(made):
    rows = embeddings_of(made)
    np.testing.assert_allclose(graph_logits(made, rows), exact(made, rows), atol=MAX_FOLDING_ERROR)
    np.testing.assert_allclose(graph_logits(made, rows), made.logits(rows), atol=2 * MAX_FOLDING_ERROR)


def test_the_mean_of_a_dimension_that_hardly_changes_is_subtracted_first():
    made = with_a_dimension_that_hardly_changes()
    plain = folded(made)
    np.testing.assert_array_equal(plain.mean, made.mean)
    assert plain.scale is None  # a factor folds without loss
    assert operators(made)[:2] == ["Sub", "Gemm"]
    # And it has to be: with the mean in the biases the logits are off by more than parity lets pass.
    layer = plain.layers[0]
    careless = replace(plain, layers=(replace(layer, biases=layer.biases - layer.weights @ plain.mean),))
    rows = embeddings_of(made)
    assert np.abs(in_float32(careless, rows) - exact(made, rows).reshape(len(rows), -1)).max() > 1e-3


def test_a_large_mean_behind_a_hidden_layer_is_subtracted_first():
    made = replace(with_hidden(), mean=np.full(D, 1000.0, np.float32))
    assert folded(with_hidden()).mean is None
    assert operators(made)[:2] == ["Sub", "Gemm"]


def test_directions_keep_mean_and_scale():
    made = replace(head(), unit=True)
    assert operators(made)[:2] == ["Sub", "Div"]
    rows = embeddings_of(made)
    np.testing.assert_allclose(graph_logits(made, rows), exact(made, rows), atol=1e-5)


@pytest.mark.parametrize("mean", [0.1, 1.0, 10.0, 100.0, 1000.0])
def test_the_error_of_folding_is_no_larger_than_foretold(mean):
    made = head(mean=mean)
    plain = folded(replace(made, mean=np.zeros(D, np.float32)))
    (first,) = plain.layers
    careless = replace(plain, layers=(replace(first, biases=first.biases - first.weights @ made.mean.astype(float)),))
    rows = embeddings_of(made)
    found = np.abs(in_float32(careless, rows) - exact(made, rows).reshape(len(rows), -1)).max()
    centred = np.abs(in_float32(plain, rows - made.mean) - exact(made, rows).reshape(len(rows), -1)).max()
    assert found <= folding_error(first, made.mean) + centred
