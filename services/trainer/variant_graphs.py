"""Embedding graphs at less precision, by onnxruntime's own converters. onnxruntime's tools stay in here.

Both leave alone what comes before the first convolution (pixels to the network's input: cheap, and every later layer
lives on it) and know nothing of the head, which stays float32 behind them.
"""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import onnx.utils
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

FLOAT16_MAX = 65_504.0
# The largest absolute value between two layers, beside the embedding.
LARGEST = "variants/largest"


def fp16_graph(embedding: onnx.ModelProto) -> onnx.ModelProto:
    """float16 inside; `image` uint8 and `embedding` float32 as they were."""
    boundary = _network_input(embedding)
    if boundary is None:
        return _converted(_copied(embedding))
    # Nodes that the converter is told to leave alone get a cast to float16 between any two of them: it sees half.
    extractor = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(_copied(embedding)))
    pixels = extractor.extract_model(["image"], [boundary])
    layers = _converted(extractor.extract_model([boundary], ["embedding"]))
    for part in (pixels, layers):
        del part.graph.value_info[:]
    # Constants that both halves use are of two types by now.
    pixels = onnx.compose.add_prefix(pixels, "pixels/", rename_edges=False, rename_inputs=False, rename_outputs=False)
    return onnx.compose.merge_models(pixels, layers, io_map=[(boundary, boundary)])


def _network_input(embedding: onnx.ModelProto) -> str | None:
    """The one value that goes from the pixels' nodes into the first convolution and all behind it, if it is one."""
    first = _first_convolution(embedding)
    before, behind = embedding.graph.node[:first], embedding.graph.node[first:]
    made = {"image", *(name for node in before for name in node.output)}
    crossing = {name for node in behind for name in node.input if name in made} - {""}
    return crossing.pop() if first and len(crossing) == 1 else None


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    converted = ONNXModel(convert_float_to_float16(model, keep_io_types=True))
    converted.topological_sort()  # its casts stand at the end
    return converted.model  # type: ignore[no-any-return]  # no stubs


def rounded_to_fp16(embedding: onnx.ModelProto) -> onnx.ModelProto:
    """What a GPU makes of `fp16_graph`: float32 sums in each layer, its weights and its result rounded to float16.

    onnxruntime has no float16 convolution for x86 and computes float32 from layer to layer without rounding, so that
    the float16 graph itself neither rounds nor overflows where it is checked.
    """
    model = onnx.shape_inference.infer_shapes(_copied(embedding))
    for weights in model.graph.initializer:
        if weights.data_type == TensorProto.FLOAT:
            with np.errstate(over="ignore"):  # an infinite weight shows in every value behind it
                rounded = numpy_helper.to_array(weights).astype(np.float16).astype(np.float32)
            weights.CopyFrom(numpy_helper.from_array(rounded, weights.name))
    floats = _float_values(model)
    first = _first_convolution(model)
    nodes = []
    for place, node in enumerate(model.graph.node):
        nodes.append(node)
        if place + 1 < first:
            continue
        for i, name in enumerate(node.output):
            if name in floats:
                exact, half = f"{name}/exact", f"{name}/half"
                node.output[i] = exact
                nodes.append(helper.make_node("Cast", [exact], [half], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    return _with_nodes(model, nodes)


def int8_graph(embedding: onnx.ModelProto, batches: Iterator[np.ndarray]) -> onnx.ModelProto:
    """QDQ: int8 weights by channel, uint8 activations between the extremes seen in `batches`, uint8 [N, H, W, 3].

    The extremes did as well as percentiles and entropy in a third of their time (measured in docs/serving.md).
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("whole", "prepared", "quantised"))
        onnx.save(embedding, whole)
        # Shapes, and convolutions joined with what follows them, so that nothing is quantised that will be fused.
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        quantize_static(
            prepared,
            quantised,
            _Batches(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[node.name for node in model.graph.node[: _first_convolution(model)]],
        )
        return onnx.load(quantised)


def with_largest(embedding: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with a second output: the largest absolute value from the network's input on, a scalar."""
    model = onnx.shape_inference.infer_shapes(_copied(embedding))
    floats = _float_values(model)
    first = _first_convolution(model)
    nodes, largest = [], []
    for place, node in enumerate(model.graph.node):
        nodes.append(node)
        if place + 1 < first:
            continue
        for name in node.output:
            if name in floats:
                absolute, most = f"{name}/absolute", f"{name}/most"
                nodes.append(helper.make_node("Abs", [name], [absolute]))
                nodes.append(helper.make_node("ReduceMax", [absolute], [most], keepdims=0))
                largest.append(most)
    nodes.append(helper.make_node("Max", largest, [LARGEST]))
    model.graph.output.append(helper.make_tensor_value_info(LARGEST, TensorProto.FLOAT, []))
    return _with_nodes(model, nodes)


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # no stubs
    def __init__(self, batches: Iterator[np.ndarray]) -> None:
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


def _first_convolution(model: onnx.ModelProto) -> int:
    """Place of the first one among the nodes; 0 for a graph without any."""
    return next((i for i, node in enumerate(model.graph.node) if node.op_type == "Conv"), 0)


def _float_values(model: onnx.ModelProto) -> frozenset[str]:
    """Names of float32 results of nodes, where shape inference found their type."""
    known = (*model.graph.value_info, *model.graph.output)
    return frozenset(value.name for value in known if value.type.tensor_type.elem_type == TensorProto.FLOAT)


def _with_nodes(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    # A copy first: the nodes may be views of what is deleted.
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    del model.graph.value_info[:]
    return model


def _copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """The tools change what they are given."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
