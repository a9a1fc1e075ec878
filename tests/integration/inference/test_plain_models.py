"""Networks that Querent did not train: ModelInfer with any tensors, and nothing else."""

from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import InferInput, InferRequestedOutput, service_pb2
from tritonclient.grpc.aio import InferenceServerClient

from services.common.errors import BadConfig, Conflict
from services.common.pb import pool_scoring_pb2, prediction_pb2
from services.trainer.plain_models import import_plain
from tests.integration.inference.harness import Served, serving
from tests.integration.inference.open_inference import MODEL, refusal, send
from tests.tiny_models import Folders, png, publish

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def doubling(
    folder: Path, kind: int = TensorProto.FLOAT, batch: str | int = "N", inputs: tuple[str, ...] = ("rows",)
) -> Path:
    """rows [N, 3] -> doubled [N, 3]"""
    graph = helper.make_graph(
        [helper.make_node("Add", [inputs[0], inputs[-1]], ["doubled"])],
        "doubling",
        [helper.make_tensor_value_info(name, kind, [batch, 3]) for name in inputs],
        [helper.make_tensor_value_info("doubled", kind, [batch, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    path = folder / "doubling.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture
async def plain(folders: Folders, tmp_path: Path) -> Served:
    """A plain model and, beside it, one of a campaign; both answer."""
    folders.registry.promote("doubling", import_plain(folders.registry, "doubling", doubling(tmp_path)))
    publish(folders.registry, MODEL, promote=True)
    async with serving(folders, max_batch=2) as served:
        yield served


def rows(values: np.ndarray = ROWS, datatype: str = "FP32") -> InferInput:
    given = InferInput("rows", values.shape, datatype)
    given.set_data_from_numpy(values)
    return given


async def test_a_plain_model_answers_with_its_own_tensors(plain: Served) -> None:
    async with InferenceServerClient(plain.address) as client:
        answer = await client.infer("doubling", [rows()], outputs=[InferRequestedOutput("doubled")], request_id="a")
    assert np.array_equal(answer.as_numpy("doubled"), 2 * ROWS)  # more rows than a batch has
    assert (answer.get_response().model_version, answer.get_response().id) == ("1", "a")


async def test_typed_contents_are_taken_too(plain: Served) -> None:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="rows", datatype="FP32", shape=(4, 3), contents=service_pb2.InferTensorContents(fp32_contents=ROWS.ravel())
    )
    async with InferenceServerClient(plain.address) as client:
        answer = await send(client, service_pb2.ModelInferRequest(model_name="doubling", inputs=[tensor]))
    assert np.array_equal(np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(4, 3), 2 * ROWS)


async def test_metadata_and_configuration_say_what_the_graph_says(plain: Served) -> None:
    async with InferenceServerClient(plain.address) as client:
        metadata = await client.get_model_metadata("doubling")
        config = (await client.get_model_config("doubling")).config
    assert [(i.name, i.datatype, list(i.shape)) for i in metadata.inputs] == [("rows", "FP32", [-1, 3])]
    assert [(o.name, o.datatype, list(o.shape)) for o in metadata.outputs] == [("doubled", "FP32", [-1, 3])]
    assert [(i.name, list(i.dims)) for i in config.input] == [("rows", [3])]
    assert [(o.name, o.label_filename) for o in config.output] == [("doubled", "")]


async def test_what_does_not_fit_is_refused_with_what_was_expected(plain: Served) -> None:
    async with InferenceServerClient(plain.address) as client:
        wide = await refusal(client.infer("doubling", [rows(ROWS.reshape(3, 4))]))
        whole = await refusal(client.infer("doubling", [rows(ROWS.astype(np.int32), "INT32")]))
        classes = await refusal(
            client.infer("doubling", [rows()], outputs=[InferRequestedOutput("doubled", class_count=2)])
        )
    assert wide == ("INVALID_ARGUMENT", "input 'rows' has shape [3, 4]; expected [-1, 3]")
    assert whole == ("INVALID_ARGUMENT", "input 'rows' has datatype 'INT32'; expected FP32 [-1, 3]")
    assert classes == ("INVALID_ARGUMENT", "classification is asked for 'doubled'; a plain model has no classes")


async def test_what_needs_images_is_refused(plain: Served) -> None:
    encoded = prediction_pb2.EncodedImages(images=[png()])
    with pytest.raises(grpc.aio.AioRpcError, match="'doubling' is a plain model"):
        await plain.prediction.Predict(prediction_pb2.PredictRequest(model="doubling", encoded=encoded))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await plain.pool.ScorePool(pool_scoring_pb2.ScorePoolRequest(model="doubling", source_id="any")).read()
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)


async def test_the_campaigns_model_beside_it_goes_on(plain: Served) -> None:
    assert (await plain.client.predict([png()], model="tiny")).model == "tiny"
    listed = await plain.client.list_models()
    assert {m.name for m in listed} == {"tiny", "doubling"}


def test_a_second_import_is_the_next_version(folders: Folders, tmp_path: Path) -> None:
    graph = doubling(tmp_path)
    assert [import_plain(folders.registry, "doubling", graph) for _ in range(2)] == [1, 2]


def test_integers_keep_their_type(folders: Folders, tmp_path: Path) -> None:
    import_plain(folders.registry, "doubling", doubling(tmp_path, TensorProto.INT64))
    assert folders.registry.manifest("doubling", 1).signature.input.datatype == "INT64"


def test_a_graph_that_cannot_be_batched_is_refused(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="first dimension must be free"):
        import_plain(folders.registry, "doubling", doubling(tmp_path, batch=4))
    with pytest.raises(BadConfig, match="has 2 inputs"):
        import_plain(folders.registry, "doubling", doubling(tmp_path, inputs=("rows", "more")))
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(BadConfig, match="onnxruntime refuses it"):
        import_plain(folders.registry, "doubling", tmp_path / "noise.onnx")
    assert folders.registry.campaigns() == []


def test_a_campaigns_name_is_not_taken(folders: Folders, tmp_path: Path) -> None:
    publish(folders.registry, MODEL)
    with pytest.raises(Conflict, match="choose another name"):
        import_plain(folders.registry, "tiny", doubling(tmp_path))
