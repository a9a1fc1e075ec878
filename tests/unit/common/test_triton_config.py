"""config.pbtxt, read with Triton's own description of it and held against the graph as Triton's backend does.

The backend completes neither inputs nor outputs once any of them is named, and takes no dimension that is not the
graph's, -1 for those that the graph leaves open.
"""

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from services.common.datatypes import DATATYPES
from services.common.registry import Registry
from services.trainer.plain_models import import_plain
from tests.tiny_models import CLASSES, TinyModel, publish


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


def config_of(registry: Registry, name: str) -> model_config_pb2.ModelConfig:
    """Raises for a field that Triton does not know."""
    return text_format.Parse((registry.root / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def tensors(named) -> list[tuple[str, str, list[int]]]:
    """Name, type and dimensions; what a reshape takes away is not in the graph."""
    return [
        (t.name, model_config_pb2.DataType.Name(t.data_type), [] if t.HasField("reshape") else [*t.dims]) for t in named
    ]


def of_graph(arguments) -> list[tuple[str, str, list[int]]]:
    free_batch = [[size if isinstance(size, int) else -1 for size in a.shape] for a in arguments]
    assert all(shape[0] == -1 for shape in free_batch)
    return [(a.name, f"TYPE_{DATATYPES[a.type]}", s[1:]) for a, s in zip(arguments, free_batch, strict=True)]


@pytest.mark.parametrize("members", [1, 3])
def test_a_promoted_version_is_described_to_the_last_dimension(registry, members):
    publish(registry, TinyModel(campaign="pets", version=4, members=members), promote=True)
    config = config_of(registry, "pets")
    graph = ort.InferenceSession(registry.root / "pets" / "4" / "model.onnx")
    assert tensors(config.input) == of_graph(graph.get_inputs())
    assert tensors(config.output) == of_graph(graph.get_outputs())
    assert (config.name, config.platform) == ("pets", "onnxruntime_onnx")
    assert config.max_batch_size == 64
    assert config.HasField("dynamic_batching")
    assert [*config.version_policy.specific.versions] == [4]
    assert {output.name: output.label_filename for output in config.output if output.label_filename} == {
        "probabilities": "labels.txt"
    }
    assert (registry.root / "pets" / "labels.txt").read_text().split() == [*CLASSES]


def test_nothing_is_served_before_a_version_is_promoted(registry):
    publish(registry, TinyModel(campaign="pets", version=1))
    policy = config_of(registry, "pets").version_policy
    assert policy.HasField("specific")
    assert [*policy.specific.versions] == []


def test_the_configuration_follows_what_is_promoted(registry):
    publish(registry, TinyModel(campaign="pets", version=2, members=1), promote=True)
    publish(registry, TinyModel(campaign="pets", version=3, members=5), promote=True)
    assert tensors(config_of(registry, "pets").output)[1] == ("logits", "TYPE_FP32", [5, 3])
    registry.rollback("pets")
    assert tensors(config_of(registry, "pets").output)[1] == ("logits", "TYPE_FP32", [1, 3])


def test_a_plain_model_is_described_by_its_own_tensors(registry, tmp_path):
    nodes = [
        helper.make_node("ReduceMax", ["rows", "axis"], ["largest"], keepdims=0),
        helper.make_node("Identity", ["rows"], ['a "quoted" name']),
    ]
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["N", 3])],
        [
            helper.make_tensor_value_info("largest", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info('a "quoted" name', TensorProto.FLOAT, ["N", 3]),
        ],
        [helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "plain.onnx")
    registry.promote("plain", import_plain(registry, "plain", tmp_path / "plain.onnx"))
    config = config_of(registry, "plain")
    session = ort.InferenceSession(registry.root / "plain" / "1" / "model.onnx")
    assert tensors(config.input) == of_graph(session.get_inputs())
    assert tensors(config.output) == of_graph(session.get_outputs())
    # Triton has no tensor of no dimensions: one of one, which the backend takes away.
    assert [*config.output[0].dims] == [1]
    assert not any(output.label_filename for output in config.output)
