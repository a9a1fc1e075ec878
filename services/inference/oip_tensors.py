"""ModelInfer's tensors: what a request carries and asks for, and the answer."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from services.common.errors import BadRequest, did_you_mean
from services.common.manifest import Manifest
from services.common.pb.open_inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)
from services.inference.model import Model, Outputs
from services.inference.oip_wire import InferRequest

INPUT = "image"
OUTPUTS = ("probabilities", "logits", "embedding")
_CLASSIFIED = "probabilities"
# The field of InferTensorContents that a datatype belongs in.
_TYPED_FIELD = {"UINT8": "uint_contents", "BYTES": "bytes_contents"}
_LENGTH_BYTES = 4

_Tensor = ModelInferRequest.InferInputTensor
_Parameters = Mapping[str, InferParameter]
# Output -> how many classes to name for each image; 0: the numbers themselves.
Wanted = Mapping[str, int]


def version_number(text: str) -> int:
    """0 for "": whichever answers now. Raises BadRequest."""
    if text and not re.fullmatch(r"[1-9][0-9]{0,17}", text):
        raise BadRequest(
            f"version {text[:40]!r} is not a positive integer; leave it empty for the version that answers"
        )
    return int(text or 0)


def whole_number(parameters: _Parameters, name: str) -> int:
    """The value of a parameter; 0 when it is not there. Raises BadRequest."""
    if name not in parameters:
        return 0
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise BadRequest(f"parameter {name!r} is given as {kind}; expected int64_param or uint64_param")
    value: int = getattr(parameter, kind)
    if value < 0:
        raise BadRequest(f"parameter {name!r} is {value}; expected 0 or more")
    return value


# ---- the request ------------------------------------------------------------------------------------------


def wanted_outputs(message: ModelInferRequest) -> Wanted:
    """Raises BadRequest for an output that there is not, naming those that there are."""
    wanted = {}
    for output in message.outputs:
        if output.name not in OUTPUTS:
            raise BadRequest(f"no output {output.name[:60]!r}; known: {', '.join(OUTPUTS)}")
        _refuse_shared_memory(f"output {output.name!r}", output.parameters)
        classes = whole_number(output.parameters, "classification")
        if classes and output.name != _CLASSIFIED:
            raise BadRequest(f"classification is asked for {output.name!r}; only {_CLASSIFIED!r} has it")
        wanted[output.name] = classes
    return wanted or dict.fromkeys(OUTPUTS, 0)


def input_images(
    request: InferRequest, manifest: Manifest, check_count: Callable[[int], None]
) -> np.ndarray | list[bytes]:
    """Pixels as uint8 [N, H, W, 3], a view of the request's bytes where they are raw; or N encoded images.

    `check_count` is asked about N before anything is made of the contents. Raises BadRequest with what was
    expected and what was given, and what `check_count` raises.
    """
    tensor = _only_input(request.message.inputs)
    _refuse_shared_memory(f"input {INPUT!r}", tensor.parameters)
    if len(request.raw) > 1:
        raise BadRequest(f"raw_input_contents has {len(request.raw)} entries; expected 1, one an input")
    if request.raw and tensor.HasField("contents"):
        raise BadRequest(f"raw_input_contents and contents of input {INPUT!r} are both given; expected one of them")
    raw = request.raw[0] if request.raw else None
    if tensor.datatype == "UINT8":
        shape = _pixels_shape(tensor, manifest)
        check_count(shape[0])
        return _pixels(tensor, raw, shape)
    if tensor.datatype == "BYTES":
        count = _encoded_count(tensor)
        check_count(count)
        return _encoded(tensor, raw, count)
    raise BadRequest(
        f"input {INPUT!r} has datatype {tensor.datatype[:20]!r}; expected UINT8 "
        f"[-1, {manifest.input_height}, {manifest.input_width}, 3], or BYTES [-1] of encoded images"
    )


def _only_input(inputs: Sequence[_Tensor]) -> _Tensor:
    for tensor in inputs:
        if tensor.name != INPUT:
            raise BadRequest(f"no input {tensor.name[:60]!r}; {did_you_mean(tensor.name[:60], [INPUT])}")
    if len(inputs) != 1:
        raise BadRequest(f"{len(inputs)} inputs are given; expected 1, {INPUT!r}")
    return inputs[0]


def _refuse_shared_memory(what: str, parameters: _Parameters) -> None:
    if "shared_memory_region" in parameters:
        raise BadRequest(f"{what} is in shared memory, which this server does not have; send it in the message")


def _pixels_shape(tensor: _Tensor, manifest: Manifest) -> list[int]:
    shape = list(tensor.shape)
    expected = [-1, manifest.input_height, manifest.input_width, 3]
    if shape[1:] != expected[1:] or shape[0] < 0:
        raise BadRequest(f"input {INPUT!r} has shape {shape[:8]}; expected {expected}")
    return shape


def _pixels(tensor: _Tensor, raw: memoryview | None, shape: list[int]) -> np.ndarray:
    expected = math.prod(shape)
    unit = "values" if raw is None else "bytes"
    given = len(_typed(tensor).uint_contents) if raw is None else len(raw)
    if given != expected:
        raise BadRequest(f"input {INPUT!r} has {given} {unit}; shape {shape} of UINT8 needs {expected}")
    if raw is not None:
        return np.frombuffer(raw, np.uint8).reshape(shape)
    values = np.fromiter(tensor.contents.uint_contents, np.uint32, given)
    if values.max() > 255:
        raise BadRequest(f"input {INPUT!r} has the value {values.max()} at {values.argmax()}; UINT8 ends at 255")
    return values.astype(np.uint8).reshape(shape)


def _encoded_count(tensor: _Tensor) -> int:
    shape = list(tensor.shape)
    # Clients that always send a batch dimension say [N, 1] for N strings.
    if shape[1:] not in ([], [1]) or not shape or shape[0] < 0:
        raise BadRequest(f"input {INPUT!r} has shape {shape[:8]}; expected [-1], one element an encoded image")
    return shape[0]


def _encoded(tensor: _Tensor, raw: memoryview | None, count: int) -> list[bytes]:
    if raw is not None:
        return _elements(raw, count)
    images = list(_typed(tensor).bytes_contents)
    if len(images) != count:
        raise BadRequest(f"input {INPUT!r} has {len(images)} elements; its shape {list(tensor.shape)} needs {count}")
    return images


def _elements(raw: memoryview, count: int) -> list[bytes]:
    """`count` elements, each a little-endian length of four bytes and then so many bytes."""
    elements = []
    at = 0
    for place in range(count):
        first = at + _LENGTH_BYTES
        at = first + int.from_bytes(raw[at:first], "little")
        if at > len(raw):
            raise BadRequest(
                f"input {INPUT!r}: element {place} of {count} ends at byte {at} of its raw contents, which have "
                f"{len(raw)}; an element of BYTES is a little-endian length of 4 bytes and then so many bytes"
            )
        elements.append(bytes(raw[first:at]))
    if at != len(raw):
        raise BadRequest(f"input {INPUT!r}: its {count} elements end at byte {at}; its raw contents have {len(raw)}")
    return elements


def _typed(tensor: _Tensor) -> InferTensorContents:
    expected = _TYPED_FIELD[tensor.datatype]
    for field, _ in tensor.contents.ListFields():
        if field.name != expected:
            raise BadRequest(f"{tensor.datatype} of input {INPUT!r} is in {field.name}; expected {expected}")
    return tensor.contents


# ---- the answer -------------------------------------------------------------------------------------------


def infer_response(model: Model, outputs: Outputs, wanted: Wanted, request_id: str) -> ModelInferResponse:
    response = ModelInferResponse(model_name=model.name, model_version=str(model.version), id=request_id)
    for name, classes in wanted.items():
        values: np.ndarray = getattr(outputs, name)
        if classes:
            named = _classified(values, model.manifest.classes, classes)
            response.outputs.add(name=name, datatype="BYTES", shape=(len(named), len(named[0])))
            response.raw_output_contents.append(b"".join(_element(text) for row in named for text in row))
        else:
            response.outputs.add(name=name, datatype="FP32", shape=values.shape)
            response.raw_output_contents.append(values.tobytes())
    return response


def _classified(probabilities: np.ndarray, labels: Sequence[str], count: int) -> list[list[bytes]]:
    """(N, C) -> for each image the `count` most probable as "score:index:label", the first class first when equal."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count].tolist()
    return [
        [b"%f:%d:%s" % (scores[place], place, labels[place].encode()) for place in row]
        for scores, row in zip(probabilities.tolist(), order, strict=True)
    ]


def _element(text: bytes) -> bytes:
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
