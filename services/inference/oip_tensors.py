"""ModelInfer's tensors: what a request carries and asks for, and the answer."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from services.common.datatypes import NUMPY_TYPES
from services.common.errors import BadRequest, did_you_mean, shown
from services.common.manifest import TensorSpec
from services.common.pb.open_inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)
from services.inference.model import Model, Outputs
from services.inference.oip_wire import InferRequest

_CLASSIFIED = "probabilities"
# The field of InferTensorContents that a datatype belongs in, and what its numbers are there. FP16 has none: it comes
# as raw bytes only.
_TYPED_FIELD: dict[str, tuple[str, type[np.generic]]] = {
    "BOOL": ("bool_contents", np.bool_),
    **dict.fromkeys(("INT8", "INT16", "INT32"), ("int_contents", np.int32)),
    "INT64": ("int64_contents", np.int64),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), ("uint_contents", np.uint32)),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
}
_LENGTH_BYTES = 4
_LONGEST_ID = 1024
_DIMENSIONS = 8

_Tensor = ModelInferRequest.InferInputTensor
_Parameters = Mapping[str, InferParameter]
# Output -> how many classes to name for each image; 0: the numbers themselves.
Wanted = Mapping[str, int]


def version_number(text: str) -> int:
    """0 for "": whichever answers now. Raises BadRequest."""
    if text and not re.fullmatch(r"[1-9][0-9]{0,17}", text):
        raise BadRequest(
            f"version {shown(text)} is not a positive integer; leave it empty for the version that answers"
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


def request_id(message: ModelInferRequest) -> str:
    """Raises BadRequest for one so long that its answer might not fit into a message."""
    if len(message.id) > _LONGEST_ID:
        raise BadRequest(f"the request's id has {len(message.id)} characters; the limit is {_LONGEST_ID}")
    return message.id


def wanted_outputs(message: ModelInferRequest, model: Model) -> Wanted:
    """Raises BadRequest for an output that there is not, naming those that there are."""
    known = model.datatypes
    if not message.outputs:
        return dict.fromkeys(known, 0)
    plain = model.manifest.plain is not None
    wanted = {}
    for output in message.outputs:
        if output.name not in known:
            raise BadRequest(f"no output {shown(output.name)}; known: {', '.join(known)}")
        _refuse_shared_memory(f"output {output.name!r}", output.parameters)
        classes = whole_number(output.parameters, "classification")
        if classes and (plain or output.name != _CLASSIFIED):
            here = "a plain model has no classes" if plain else f"only {_CLASSIFIED!r} has it"
            raise BadRequest(f"classification is asked for {output.name!r}; {here}")
        wanted[output.name] = classes
    return wanted


def input_tensor(request: InferRequest, model: Model, check_count: Callable[[int], None]) -> np.ndarray | list[bytes]:
    """N inputs as the signature says, a view of the request's bytes where they are raw; or N encoded images.

    `check_count` is asked about N before anything is made of the contents. Raises BadRequest with what was
    expected and what was given, and what `check_count` raises.
    """
    wanted, plain = model.signature.input, model.manifest.plain is not None
    tensor = _only_input(request.message.inputs, wanted.name)
    _refuse_shared_memory(f"input {wanted.name!r}", tensor.parameters)
    if len(request.raw) > 1:
        raise BadRequest(f"raw_input_contents has {len(request.raw)} entries; expected 1, one an input")
    if request.raw and tensor.HasField("contents"):
        raise BadRequest(
            f"raw_input_contents and contents of input {wanted.name!r} are both given; expected one of them"
        )
    raw = request.raw[0] if request.raw else None
    if tensor.datatype == wanted.datatype:
        shape = _whole_shape(tensor, wanted)
        check_count(shape[0])
        return _raw_values(tensor, raw, shape) if raw is not None else _typed_values(tensor, shape)
    if tensor.datatype == "BYTES" and not plain:
        count = _encoded_count(tensor)
        check_count(count)
        return _encoded(tensor, raw, count)
    raise BadRequest(
        f"input {wanted.name!r} has datatype {shown(tensor.datatype)}; expected {wanted.datatype} "
        f"{[-1, *wanted.shape]}{'' if plain else ', or BYTES [-1] of encoded images'}"
    )


def _only_input(inputs: Sequence[_Tensor], name: str) -> _Tensor:
    for tensor in inputs:
        if tensor.name != name:
            raise BadRequest(f"no input {shown(tensor.name)}; {did_you_mean(tensor.name, [name])}")
    if len(inputs) != 1:
        raise BadRequest(f"{len(inputs)} inputs are given; expected 1, {name!r}")
    return inputs[0]


def _refuse_shared_memory(what: str, parameters: _Parameters) -> None:
    if "shared_memory_region" in parameters:
        raise BadRequest(f"{what} is in shared memory, which this server does not have; send it in the message")


def _whole_shape(tensor: _Tensor, wanted: TensorSpec) -> list[int]:
    shape = _shape(tensor, max(_DIMENSIONS, len(wanted.shape) + 2))
    if shape[1:] != list(wanted.shape) or not shape or shape[0] < 0:
        raise BadRequest(f"input {tensor.name!r} has shape {shape}; expected {[-1, *wanted.shape]}")
    return shape


def _raw_values(tensor: _Tensor, raw: memoryview, shape: list[int]) -> np.ndarray:
    kind = NUMPY_TYPES[tensor.datatype]
    expected = math.prod(shape) * kind.itemsize
    if len(raw) != expected:
        raise BadRequest(
            f"input {tensor.name!r} has {len(raw)} bytes; shape {shape} of {tensor.datatype} needs {expected}"
        )
    return np.frombuffer(raw, kind).reshape(shape)


def _typed_values(tensor: _Tensor, shape: list[int]) -> np.ndarray:
    if tensor.datatype not in _TYPED_FIELD:
        raise BadRequest(f"{tensor.datatype} of input {tensor.name!r} can only come in raw_input_contents")
    field, number = _TYPED_FIELD[tensor.datatype]
    given = getattr(_contents(tensor, field), field)
    expected = math.prod(shape)
    if len(given) != expected:
        raise BadRequest(
            f"input {tensor.name!r} has {len(given)} values; shape {shape} of {tensor.datatype} needs {expected}"
        )
    values = np.fromiter(given, number, expected)
    kind = NUMPY_TYPES[tensor.datatype]
    if kind.kind in "iu":
        _check_range(tensor, values, np.iinfo(kind))
    return values.astype(kind, copy=False).reshape(shape)


def _check_range(tensor: _Tensor, values: np.ndarray, limits: np.iinfo) -> None:
    """Small integers come in fields for larger ones."""
    if values.max() > limits.max:
        place, end = values.argmax(), f"ends at {limits.max}"
    elif values.min() < limits.min:
        place, end = values.argmin(), f"begins at {limits.min}"
    else:
        return
    raise BadRequest(f"input {tensor.name!r} has the value {values[place]} at {place}; {tensor.datatype} {end}")


def _shape(tensor: _Tensor, dimensions: int = _DIMENSIONS) -> list[int]:
    """As much of it as is looked at and told: there may be millions of dimensions."""
    return list(tensor.shape[:dimensions])


def _encoded_count(tensor: _Tensor) -> int:
    shape = _shape(tensor)
    # Clients that always send a batch dimension say [N, 1] for N strings.
    if shape[1:] not in ([], [1]) or not shape or shape[0] < 0:
        raise BadRequest(f"input {tensor.name!r} has shape {shape}; expected [-1], one element an encoded image")
    return shape[0]


def _encoded(tensor: _Tensor, raw: memoryview | None, count: int) -> list[bytes]:
    if raw is not None:
        return _elements(tensor.name, raw, count)
    images = _contents(tensor, "bytes_contents").bytes_contents
    if len(images) != count:
        raise BadRequest(f"input {tensor.name!r} has {len(images)} elements; its shape {_shape(tensor)} needs {count}")
    return list(images)


def _elements(name: str, raw: memoryview, count: int) -> list[bytes]:
    """`count` elements, each a little-endian length of four bytes and then so many bytes."""
    elements = []
    at = 0
    for place in range(count):
        first = at + _LENGTH_BYTES
        at = first + int.from_bytes(raw[at:first], "little")
        if at > len(raw):
            raise BadRequest(
                f"input {name!r}: element {place} of {count} ends at byte {at} of its raw contents, which have "
                f"{len(raw)}; an element of BYTES is a little-endian length of 4 bytes and then so many bytes"
            )
        elements.append(bytes(raw[first:at]))
    if at != len(raw):
        raise BadRequest(f"input {name!r}: its {count} elements end at byte {at}; its raw contents have {len(raw)}")
    return elements


def _contents(tensor: _Tensor, expected: str) -> InferTensorContents:
    for field, _ in tensor.contents.ListFields():
        if field.name != expected:
            raise BadRequest(f"{tensor.datatype} of input {tensor.name!r} is in {field.name}; expected {expected}")
    return tensor.contents


# ---- the answer -------------------------------------------------------------------------------------------


def infer_response(model: Model, outputs: Outputs, wanted: Wanted, request_id: str) -> ModelInferResponse:
    response = ModelInferResponse(model_name=model.name, model_version=str(model.version), id=request_id)
    for name, classes in wanted.items():
        values = outputs.tensors[name]
        if classes:
            named = _classified(values, model.manifest.classes, classes)
            response.outputs.add(name=name, datatype="BYTES", shape=(len(named), len(named[0])))
            response.raw_output_contents.append(b"".join(_element(text) for row in named for text in row))
        else:
            response.outputs.add(name=name, datatype=model.datatypes[name], shape=values.shape)
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
