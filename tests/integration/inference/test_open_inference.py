"""The Open Inference Protocol over a real channel, with Triton's own client."""

import asyncio
import io
import re
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from PIL import Image
from tritonclient.grpc import InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from services.common import images as codec
from services.inference import oip_tensors
from services.inference.service import InferenceServer
from tests.integration.inference.harness import Served, serving, settings
from tests.integration.inference.open_inference import (
    MODEL,
    PIXELS,
    encoded_input,
    image_input,
    refusal,
    send,
    typed_request,
)
from tests.tiny_models import Folders, TinyModel, embeddings, next_version, png, probabilities, publish


def jpeg(size: int = 20) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def first_output(response: Any) -> np.ndarray:
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)


# ---- the core -----------------------------------------------------------------------------------------


async def test_server_and_model_are_live_and_ready(client: InferenceServerClient) -> None:
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("tiny")
    assert await client.is_model_ready("tiny", "1")


@pytest.mark.parametrize(("name", "version"), [("nobody", ""), ("tiny", "7"), ("../tiny", "1"), ("readiness", "")])
async def test_an_unknown_model_is_not_ready_and_that_is_no_error(
    client: InferenceServerClient, name: str, version: str
) -> None:
    assert not await client.is_model_ready(name, version)


async def test_a_model_is_ready_once_a_version_of_it_can_answer(folders: Folders) -> None:
    publish(folders.registry, MODEL)
    damaged = publish(folders.registry, next_version(MODEL))
    (damaged / "model.onnx").write_bytes(b"\0" * 100)
    async with serving(folders) as served, InferenceServerClient(served.address) as client:
        assert not await client.is_model_ready("tiny")
        assert await client.is_model_ready("tiny", "1")
        assert not await client.is_model_ready("tiny", "2")
        folders.registry.promote("tiny", 1)
        assert await client.is_model_ready("tiny")


async def test_a_server_that_drains_is_live_and_not_ready_and_still_answers(folders: Folders) -> None:
    publish(folders.registry, MODEL, promote=True)
    server = InferenceServer(settings(folders))
    await server.start()
    async with InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client, asyncio.timeout(30):
        assert await client.is_server_ready()
        leave = asyncio.Event()
        stopping = asyncio.create_task(server.stop(lame_duck_seconds=60, hurry=leave))
        while await client.is_server_ready():
            await asyncio.sleep(0.001)
        assert await client.is_server_live()
        assert not await client.is_model_ready("tiny")
        assert (await client.infer("tiny", [image_input()])).get_response().model_version == "1"
        leave.set()
        await stopping


async def test_server_metadata_lists_the_extensions_that_are_there(client: InferenceServerClient) -> None:
    metadata = await client.get_server_metadata()
    assert metadata.name == "querent"
    assert metadata.version[0].isdigit()
    assert set(metadata.extensions) == {"classification", "model_repository", "model_configuration", "statistics"}


async def test_model_metadata_describes_the_tensors_and_names_the_published_versions(
    served: Served, client: InferenceServerClient, folders: Folders
) -> None:
    publish(folders.registry, next_version(MODEL))
    metadata = await client.get_model_metadata("tiny", as_json=True)
    assert metadata == {
        "name": "tiny",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": ["-1", "8", "8", "3"]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": ["-1", "3"]},
            {"name": "logits", "datatype": "FP32", "shape": ["-1", "2", "3"]},
            {"name": "embedding", "datatype": "FP32", "shape": ["-1", "6"]},
        ],
    }
    assert (await client.get_model_metadata("tiny", "2")).versions == ["2"]


async def test_raw_pixels_are_answered_with_every_output(client: InferenceServerClient) -> None:
    result = await client.infer("tiny", [image_input()], request_id="call 7")
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "call 7")
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities(MODEL, PIXELS), atol=1e-5)
    np.testing.assert_allclose(result.as_numpy("embedding"), embeddings(MODEL, PIXELS), atol=1e-5)
    logits = np.einsum("nd,kcd->nkc", embeddings(MODEL, PIXELS), MODEL.weights)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, atol=1e-4)


async def test_only_the_outputs_that_are_asked_for_come_in_the_order_asked_for(client: InferenceServerClient) -> None:
    wanted = [InferRequestedOutput("embedding"), InferRequestedOutput("probabilities")]
    result = await client.infer("tiny", [image_input()], outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["embedding", "probabilities"]
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities(MODEL, PIXELS), atol=1e-5)
    assert result.as_numpy("logits") is None


async def test_the_sync_client_is_answered_too(served: Served) -> None:
    def call() -> np.ndarray:
        with tritonclient.grpc.InferenceServerClient(served.address) as client:
            return client.infer("tiny", [image_input()]).as_numpy("probabilities")

    np.testing.assert_allclose(await asyncio.to_thread(call), probabilities(MODEL, PIXELS), atol=1e-5)


async def test_the_example_of_the_documentation_runs(served: Served, tmp_path: Path) -> None:
    document = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    [example] = re.findall(r"^    import numpy as np\n(?:    .*\n|\n(?=    ))+", document, re.MULTILINE)
    program = example.replace("127.0.0.1:8001", served.address).replace("cifar10-demo-1", "tiny")
    (tmp_path / "cat.jpg").write_bytes(jpeg())
    (tmp_path / "dog.png").write_bytes(png())
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(program), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    printed = (await process.communicate())[0].decode()
    assert printed.startswith("1 [[")
    named = re.findall(r"b'0\.\d{6}:(\d):(\w+)'", printed)
    assert [label for _, label in named] == [MODEL.classes[int(index)] for index, _ in named]
    assert len(named) == 4


async def test_the_answer_names_the_version_that_was_asked_for_and_the_current_one_else(
    client: InferenceServerClient, folders: Folders
) -> None:
    second = next_version(MODEL)
    publish(folders.registry, second)
    for version, expected in (("", "1"), ("1", "1"), ("2", "2")):
        result = await client.infer("tiny", [image_input()], model_version=version)
        assert result.get_response().model_version == expected
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities(second, PIXELS), atol=1e-5)


async def test_more_images_than_a_batch_holds_are_answered_in_their_order(client: InferenceServerClient) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (16, 8, 8, 3), dtype=np.uint8)
    result = await client.infer("tiny", [image_input(pixels)])
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities(MODEL, pixels), atol=1e-5)


# ---- contents -----------------------------------------------------------------------------------------


async def test_typed_pixels_are_answered_as_raw_ones(client: InferenceServerClient) -> None:
    response = await send(client, typed_request("UINT8", PIXELS.shape, uint_contents=PIXELS.ravel().tolist()))
    np.testing.assert_allclose(first_output(response), probabilities(MODEL, PIXELS), atol=1e-5)


async def test_typed_contents_are_unpacked_beside_the_event_loop(
    client: InferenceServerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_loop: list[bool] = []

    def watched(*arguments: Any) -> Any:
        on_the_loop.append(threading.current_thread() is threading.main_thread())
        return oip_tensors.input_tensor(*arguments)

    monkeypatch.setattr("services.inference.oip_servicer.input_tensor", watched)
    await send(client, typed_request("UINT8", PIXELS.shape, uint_contents=PIXELS.ravel().tolist()))
    await client.infer("tiny", [image_input()])
    assert on_the_loop == [False, True]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
async def test_encoded_images_are_decoded_and_resized_as_predict_does_it(
    client: InferenceServerClient, shape: tuple[int, ...]
) -> None:
    encoded = [jpeg(), png((9, 200, 30), size=8)]
    pixels = np.stack([codec.decode(image, 8, 8) for image in encoded])
    result = await client.infer("tiny", [encoded_input(*encoded, shape=shape)])
    np.testing.assert_allclose(result.as_numpy("probabilities"), probabilities(MODEL, pixels), atol=1e-5)


async def test_typed_encoded_images_are_answered_as_raw_ones(client: InferenceServerClient) -> None:
    response = await send(client, typed_request("BYTES", (1,), bytes_contents=[jpeg()]))
    expected = probabilities(MODEL, codec.decode(jpeg(), 8, 8)[np.newaxis])
    np.testing.assert_allclose(first_output(response), expected, atol=1e-5)


async def test_classification_names_the_most_probable_classes(client: InferenceServerClient) -> None:
    wanted = [InferRequestedOutput("probabilities", class_count=2)]
    result = await client.infer("tiny", [image_input()], outputs=wanted)
    expected = probabilities(MODEL, PIXELS)
    named = result.as_numpy("probabilities")
    assert named.shape == (3, 2)
    for row, scores in zip(named, expected, strict=True):
        for text, place in zip(row, np.argsort(-scores)[:2], strict=True):
            score, index, label = text.decode().split(":")
            assert (int(index), label) == (place, MODEL.classes[place])
            assert float(score) == pytest.approx(scores[place], abs=1e-5)
            assert len(score.split(".")[1]) == 6


async def test_more_classes_than_there_are_give_all_of_them(client: InferenceServerClient) -> None:
    wanted = [InferRequestedOutput("probabilities", class_count=1000)]
    result = await client.infer("tiny", [image_input()], outputs=wanted)
    assert result.as_numpy("probabilities").shape == (3, 3)


# ---- priority and timeout -----------------------------------------------------------------------------


async def test_a_call_of_high_priority_overtakes_those_that_wait(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=300), promote=True)  # some 300 ms a call
    async with (
        serving(folders, threads=1, max_batch=1) as served,
        InferenceServerClient(served.address) as client,
        asyncio.timeout(60),
    ):
        order: list[str] = []

        async def call(name: str, priority: int) -> None:
            await client.infer("tiny", [image_input(PIXELS[:1])], priority=priority)
            order.append(name)

        calls = [asyncio.create_task(call("low", 3)) for _ in range(4)]
        while served.metric("inference_queue_depth") < 3:
            await asyncio.sleep(0.001)
        calls.append(asyncio.create_task(call("high", 1)))
        await asyncio.gather(*calls)
        assert order.index("high") < 3


async def test_a_timeout_bounds_the_time_in_the_queue(served: Served, client: InferenceServerClient) -> None:
    status, text = await refusal(client.infer("tiny", [image_input()], timeout=1))  # a microsecond
    assert status == "DEADLINE_EXCEEDED"
    assert "while the request waited" in text
    assert served.metric("inference_dropped_requests_total", reason="deadline") == 1
    result = await client.infer("tiny", [image_input()], timeout=60_000_000)
    assert result.get_response().model_version == "1"
