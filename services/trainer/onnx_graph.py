"""The graphs of a model version, made from their parts; torch's exporter is not asked again for a new head."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from services.trainer.folding import folded
from services.trainer.learning import SHORTEST, Head

OPSET = 18
# Read by every onnxruntime since 1.14 and by Triton's; the exporter's own choice is kept where it is higher.
IR_VERSION = 10
_OUTPUTS = ("probabilities", "logits", "embedding")
# Keeps the head's names apart from whatever torch called the backbone's.
_PREFIX = "head/"


def head_graph(head: Head, ir_version: int = IR_VERSION) -> onnx.ModelProto:
    """`embedding` (N, D) -> `probabilities` (N, C), `logits` (N, K, C): Head.logits and Head.probabilities.

    Pool scoring spends most of its time in here: what is linear is one product (see folding.py).
    """
    members, classes, _ = head.weights.shape
    of_layers, constants, sums = _layers(head)
    constants |= {
        "by_member": np.array([-1, members, classes], np.int64),
        "member_axis": np.array([1], np.int64),
    }
    nodes = [
        *of_layers,
        _node("Reshape", [sums, "by_member"], "logits"),
        _node("Softmax", ["logits"], "by_softmax", axis=-1),
        _node("ReduceMean", ["by_softmax", "member_axis"], "probabilities", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "head",
        [_tensor("embedding", ["N", len(head.mean)])],
        [_tensor("probabilities", ["N", classes]), _tensor("logits", ["N", members, classes])],
        [numpy_helper.from_array(np.ascontiguousarray(v), _inner(k)) for k, v in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="querent", ir_version=ir_version
    )
    onnx.checker.check_model(model)
    return model


def _layers(head: Head) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]:
    """From `embedding` to the logits of all members side by side: nodes, their constants, the name of the result."""
    plain = folded(head)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    last = "embedding"

    def add(operator: str, output: str, **parameters: np.ndarray) -> None:
        nonlocal last
        nodes.append(_node(operator, [last, *parameters], output))
        constants.update({name: values.astype(np.float32) for name, values in parameters.items()})
        last = output

    if plain.mean is not None:
        add("Sub", "centred", mean=plain.mean)
    if plain.scale is not None:
        add("Div", "standard", scale=plain.scale)
    if head.unit:
        constants |= {"feature_axis": np.array([1], np.int64), "shortest": np.array(SHORTEST, np.float32)}
        nodes += [
            _node("ReduceL2", [last, "feature_axis"], "norm", keepdims=1),
            _node("Max", ["norm", "shortest"], "length"),
            _node("Div", [last, "length"], "direction"),
        ]
        last = "direction"
    for layer in plain.layers[:-1]:
        add("Gemm", "hidden_sums", hidden_weights=layer.weights.T, hidden_biases=layer.biases)
        add("Relu", "activated")
    add("Gemm", "sums", weights=plain.layers[-1].weights.T, biases=plain.layers[-1].biases)
    return nodes, constants, last


def model_graph(embedding: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    """`image` -> `probabilities`, `logits`, `embedding`: the head's own nodes behind the embedding graph."""
    merged = compose.merge_models(
        embedding, head, io_map=[("embedding", "embedding")], outputs=list(_OUTPUTS), producer_name="querent"
    )
    outputs = {output.name: output for output in merged.graph.output}
    del merged.graph.output[:]
    merged.graph.output.extend(outputs[name] for name in _OUTPUTS)
    return merged


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The exporter's graph without its notes (paths and stack traces of this machine), with N as the batch."""
    for field in (model.metadata_props, model.graph.metadata_props, model.graph.value_info):
        del field[:]
    model.doc_string = model.graph.doc_string = ""
    noted: list[Any] = [*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output]
    for part in noted:
        del part.metadata_props[:]
        part.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    return model


def _node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(
        operator, [_inner(name) for name in inputs], [_inner(output)], name=_PREFIX + output, **attributes
    )


def _inner(name: str) -> str:
    return name if name in _OUTPUTS else _PREFIX + name


def _tensor(name: str, shape: Sequence[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
