"""What the Open Inference Protocol refuses, over a real channel: the status, and a text with expected and given."""

import math
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.grpc.aio import InferenceServerClient

from tests.integration.inference.harness import Served, serving
from tests.integration.inference.open_inference import image_input, raw_request, refusal, send, typed_request
from tests.tiny_models import Folders, png


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (
            typed_request("FP32", (1, 8, 8, 3), fp32_contents=[math.nan] * 192),
            ["'FP32'", "UINT8 [-1, 8, 8, 3]", "BYTES"],
        ),
        (typed_request("UINT8", (1, 9, 8, 3), uint_contents=[0] * 216), ["[1, 9, 8, 3]", "[-1, 8, 8, 3]"]),
        (typed_request("UINT8", (8, 8, 3), uint_contents=[0] * 192), ["[8, 8, 3]", "[-1, 8, 8, 3]"]),
        (typed_request("UINT8", (), uint_contents=[0] * 192), ["shape []", "[-1, 8, 8, 3]"]),
        (typed_request("UINT8", (-1, 8, 8, 3), uint_contents=[0] * 192), ["[-1, 8, 8, 3]"]),
        (typed_request("UINT8", (0, 8, 8, 3)), ["no images"]),
        (typed_request("UINT8", (17, 8, 8, 3)), ["17 images", "16", "INFERENCE_MAX_IMAGES"]),
        (typed_request("UINT8", (2**62, 8, 8, 3)), ["images", "16", "INFERENCE_MAX_IMAGES"]),
        (typed_request("UINT8", (2, 8, 8, 3), uint_contents=[0] * 192), ["192 values", "384"]),
        (typed_request("UINT8", (1, 8, 8, 3)), ["0 values", "192"]),
        (typed_request("UINT8", (1, 8, 8, 3), int_contents=[0] * 192), ["int_contents", "uint_contents"]),
        (typed_request("UINT8", (1, 8, 8, 3), uint_contents=[0] * 191 + [256]), ["256 at 191", "255"]),
        (typed_request("BYTES", (2,), bytes_contents=[png()]), ["1 elements", "[2]", "needs 2"]),
        (typed_request("BYTES", (1, 2), bytes_contents=[png()] * 2), ["[1, 2]", "[-1]"]),
        (typed_request("BYTES", (17,), bytes_contents=[png()] * 17), ["17 images", "16"]),
        (typed_request("BYTES", (2,), bytes_contents=[png(), b"no image"]), ["image 1", "not an image"]),
        (typed_request("BYTES", (2,), bytes_contents=[png(), b""]), ["image 1", "0 bytes"]),
    ],
)
async def test_typed_input_that_does_not_fit_is_invalid_with_what_was_expected_and_given(
    client: InferenceServerClient, request_: Any, says: list[str]
) -> None:
    await invalid(client, request_, says)


def both_contents() -> Any:
    request = typed_request("UINT8", (1, 8, 8, 3), uint_contents=[0] * 192)
    request.raw_input_contents.append(bytes(192))
    return request


def with_parameters(**parameters: Any) -> Any:
    return raw_request(bytes(192), parameters=parameters)


def parameter(**value: object) -> Any:
    return service_pb2.InferParameter(**value)


def wanting(name: str, **parameters: Any) -> Any:
    output = service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters)
    return raw_request(bytes(192), outputs=[output])


def in_shared_memory() -> Any:
    request = raw_request()
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (raw_request(bytes(191)), ["191 bytes", "[1, 8, 8, 3]", "192"]),
        (raw_request(bytes(193)), ["193 bytes", "192"]),
        (raw_request(b""), ["0 bytes", "192"]),
        (raw_request(bytes(192), bytes(192)), ["2 entries", "expected 1"]),
        (raw_request(bytes(192), names=("img",)), ["'img'", "'image'"]),
        (raw_request(bytes(192), names=("image", "image")), ["2 inputs", "expected 1"]),
        (raw_request(bytes(192), shape=(1, 8, 8, 3, *[1] * 100_000)), ["[1, 8, 8, 3, 1, 1, 1, 1]", "[-1, 8, 8, 3]"]),
        (raw_request(bytes(192), id="i" * 1025), ["id has 1025 characters", "1024"]),
        (raw_request(names=()), ["0 inputs", "'image'"]),
        (both_contents(), ["raw_input_contents", "contents", "both"]),
        (raw_request(b"\3\0\0\0ab", datatype="BYTES", shape=(1,)), ["element 0 of 1", "byte 7", "have 6"]),
        (raw_request(b"\0\0\0", datatype="BYTES", shape=(1,)), ["element 0 of 1", "have 3"]),
        (raw_request(b"\0\0\0\0" * 2, datatype="BYTES", shape=(1,)), ["1 elements", "byte 4", "have 8"]),
        (raw_request(b"\xff\xff\xff\xff", datatype="BYTES", shape=(1,)), ["element 0 of 1", "have 4"]),
        (in_shared_memory(), ["shared memory"]),
        (with_parameters(priority=parameter(uint64_param=4)), ["no priority 4", "1", "3"]),
        (with_parameters(priority=parameter(string_param="1")), ["'priority'", "string_param", "uint64_param"]),
        (with_parameters(timeout=parameter(int64_param=-1)), ["'timeout'", "-1"]),
        (wanting("probability"), ["'probability'", "probabilities, logits, embedding"]),
        (wanting("logits", classification=parameter(int64_param=1)), ["classification", "'logits'", "'probabilities'"]),
        (wanting("probabilities", classification=parameter(int64_param=-1)), ["'classification'", "-1"]),
        (wanting("logits", shared_memory_region=parameter(string_param="x")), ["'logits'", "shared memory"]),
    ],
)
async def test_a_request_that_does_not_fit_is_invalid_with_what_was_expected_and_given(
    client: InferenceServerClient, request_: Any, says: list[str]
) -> None:
    await invalid(client, request_, says)


async def invalid(client: InferenceServerClient, request: Any, says: list[str]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(client, request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    text = caught.value.details() or ""
    assert all(part in text for part in says), text
    result = await client.infer("tiny", [image_input()])
    assert result.get_response().model_version == "1"


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "RepositoryIndex"])
async def test_bytes_that_are_no_message_are_invalid(served: Served, method: str) -> None:
    call = served.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    for data in (b"\xff" * 20, b"\x0a\x05abc", b"\x3a\x7f", b"\x0a\x01\xff"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(data)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "the message is not a" in (caught.value.details() or "")


async def test_unknown_models_and_versions_are_not_found(client: InferenceServerClient) -> None:
    for name, version, says in (
        ("tinny", "", "did you mean 'tiny'"),
        ("tiny", "7", "published: 1"),
        ("tiny", "999999999999999999", "published: 1"),
        ("../registry/tiny", "1", "no model"),
    ):
        for call in (
            client.infer(name, [image_input()], model_version=version),
            client.get_model_metadata(name, version),
            client.get_model_config(name, version),
            client.get_inference_statistics(name, version),
        ):
            status, text = await refusal(call)
            assert status == "NOT_FOUND"
            assert says in text


@pytest.mark.parametrize("version", ["0", "-1", "1.0", "latest", " 1", "٣", "1" * 30])
async def test_a_version_that_is_no_positive_integer_is_invalid(client: InferenceServerClient, version: str) -> None:
    for call in (client.infer("tiny", [image_input()], model_version=version), client.is_model_ready("tiny", version)):
        status, text = await refusal(call)
        assert status == "INVALID_ARGUMENT"
        assert "positive integer" in text


async def test_nothing_promoted_is_unavailable(folders: Folders) -> None:
    async with serving(folders) as served, InferenceServerClient(served.address) as client:
        status, text = await refusal(client.infer("", [image_input()]))
        assert (status, text) == ("UNAVAILABLE", "no model promoted yet")


async def test_extensions_that_are_not_there_are_unimplemented(client: InferenceServerClient) -> None:
    for call in (
        client.register_system_shared_memory("region", "/key", 1),
        client.get_cuda_shared_memory_status(),
        client.get_trace_settings(),
        client.get_log_settings(),
    ):
        status, _ = await refusal(call)
        assert status == "UNIMPLEMENTED"
