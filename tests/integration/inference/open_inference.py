"""Requests of the Open Inference Protocol, made by Triton's own client and with its messages."""

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import InferInput, service_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.tiny_models import TinyModel

MODEL = TinyModel(members=2)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def image_input(pixels: np.ndarray = PIXELS) -> InferInput:
    given = InferInput("image", pixels.shape, "UINT8")
    given.set_data_from_numpy(pixels)
    return given


def encoded_input(*encoded: bytes, shape: tuple[int, ...] = ()) -> InferInput:
    array = np.array(encoded, dtype=object).reshape(shape or len(encoded))
    given = InferInput("image", array.shape, "BYTES")
    given.set_data_from_numpy(array)
    return given


def typed_request(datatype: str, shape: tuple[int, ...], **contents: object) -> Any:
    """tritonclient itself sends raw contents only; its messages can hold typed ones."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name="image", datatype=datatype, shape=shape, contents=service_pb2.InferTensorContents(**contents)
    )
    return service_pb2.ModelInferRequest(model_name="tiny", inputs=[tensor])


def raw_request(
    *raw: bytes,
    datatype: str = "UINT8",
    shape: tuple[int, ...] = (1, 8, 8, 3),
    names: tuple[str, ...] = ("image",),
    **fields: Any,
) -> Any:
    inputs = [
        service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape) for name in names
    ]
    return service_pb2.ModelInferRequest(model_name="tiny", inputs=inputs, raw_input_contents=raw, **fields)


async def send(client: InferenceServerClient, request: Any) -> Any:
    """A request as it is, past what tritonclient makes of one."""
    return await client._client_stub.ModelInfer(request)


async def refusal(call: Any) -> tuple[str, str]:
    """Status and text."""
    with pytest.raises(InferenceServerException) as caught:
        await call
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()
