"""Requests with something wrong, for every method of both APIs, as the bytes that go over the wire.

Each strategy begins with a message that is right and puts one to three faults into it. A fault says by which words
the refusal may name it.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from services.common.pb import model_registry_pb2 as registry_pb
from services.common.pb import open_inference_pb2 as oip
from services.common.pb import pool_scoring_pb2 as pool_pb
from services.common.pb import prediction_pb2 as prediction_pb
from services.inference.prediction_ids import prediction_ids
from tests.fuzz.hostile_images import bomb_images, images
from tests.tiny_models import png

_OIP = "/inference.GRPCInferenceService/"
PREDICT = "/querent.v1.PredictionService/Predict"
FEEDBACK = "/querent.v1.PredictionService/Feedback"
SCORE_POOL = "/querent.v1.PoolScoringService/ScorePool"
EMBED = "/querent.v1.PoolScoringService/Embed"
GET_MODEL = "/querent.v1.ModelRegistryService/GetModel"
LIST_MODELS = "/querent.v1.ModelRegistryService/ListModels"
WATCH_MODEL = "/querent.v1.ModelRegistryService/WatchModel"
MODEL_INFER = f"{_OIP}ModelInfer"
STREAMS = frozenset((SCORE_POOL, EMBED, WATCH_MODEL))
METHODS = (
    *(PREDICT, FEEDBACK, SCORE_POOL, EMBED, GET_MODEL, LIST_MODELS, WATCH_MODEL, MODEL_INFER),
    *(f"{_OIP}{name}" for name in ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata")),
    *(f"{_OIP}{name}" for name in ("ModelConfig", "ModelStatistics", "RepositoryIndex")),
    *(f"{_OIP}{name}" for name in ("RepositoryModelLoad", "RepositoryModelUnload")),
)
# Bytes of a message that the server under test takes.
MAX_MESSAGE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Request:
    method: str
    data: bytes = field(repr=False)
    # A regular expression; a refusal as INVALID_ARGUMENT or NOT_FOUND has it somewhere.
    says: str = ""
    timeout_s: float = 20.0
    # It may end so: by a deadline of its own, or because the message is too large.
    may_expire: bool = False
    too_large: bool = False

    @property
    def known_method(self) -> bool:
        return self.method in METHODS


@dataclass(frozen=True)
class Known:
    """What the server under test knows."""

    source_id: str
    sample_ids: tuple[str, ...]
    prediction_ids: tuple[str, ...]


_LONG = "n" * 1_000_000
names = st.one_of(
    st.sampled_from(
        (
            *("", "tiny", "tiny", "unpromoted", "tinny", "TINY", "tiny/1", "tiny\0", "\0", ".", "..", "current"),
            *("../../etc", "../../../etc/passwd", "/etc/passwd", "../registry/tiny", "..\\tiny", "file:///tiny"),
            *("a" * 64, _LONG, "é" * 300_000, "😀" * 5_000, "\u202etiny", "tiny\r\nx: y", "%s%n%x", "{0.__class__}"),
            *("entropy", "margin", "least_confidence", "random", "k_center"),
        )
    ),
    st.text(max_size=20),
)
INT64 = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 4, 7, 255, 256, 257, 2**31, 2**32, 2**53, 2**62, 2**63 - 1)
int64 = st.sampled_from(INT64)
uint32 = st.sampled_from((0, 1, 2, 3, 4, 8, 255, 256, 257, 65_535, 2**31, 2**32 - 1))
uint64 = st.sampled_from((0, 1, 2, 3, 4, 2**32, 2**63, 2**64 - 1))
floats = st.sampled_from((math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300))
versions = st.one_of(
    st.sampled_from(("", "0", "1", "2", "3", "-1", "1.0", "latest", " 1", "٣", "1" * 30, "1" * 18, "0x1", _LONG, "\0")),
    st.text(max_size=8),
)
deadlines = st.sampled_from((20.0,) * 12 + (0.0, -1.0, 0.001, 1e8))

_Fault = Callable[[Any, Any], str]


@st.composite
def _with_faults(draw: Any, method: str, good: Callable[[], Any], faults: tuple[_Fault, ...]) -> Request:
    message = good()
    chosen = draw(st.lists(st.sampled_from(faults), min_size=0, max_size=3))
    says = "|".join(fault(draw, message) for fault in chosen)
    timeout_s = draw(deadlines)
    return Request(
        method,
        message.SerializeToString(),
        says=says,
        timeout_s=timeout_s,
        # An OIP request has a deadline inside as well.
        may_expire=timeout_s < 1 or "timeout" in says,
    )


# ---- ModelInfer -------------------------------------------------------------------------------------------


def _tensor(message: Any) -> Any:
    return (
        message.inputs[0] if message.inputs else message.inputs.add(name="image", datatype="UINT8", shape=[1, 8, 8, 3])
    )


def _infer_model(draw: Any, message: Any) -> str:
    message.model_name = draw(names)
    return "model"


def _infer_version(draw: Any, message: Any) -> str:
    message.model_version = draw(versions)
    return "version|checksum"


def _infer_id(draw: Any, message: Any) -> str:
    message.id = draw(names)
    return "id has"


def _infer_shape(draw: Any, message: Any) -> str:
    shape = draw(
        st.lists(int64, max_size=5)
        | st.sampled_from(([1, 9, 8, 3], [8, 8, 3], [0, 8, 8, 3], [-1, 8, 8, 3], [2**62, 8, 8, 3], [1] * 200_000))
        | st.builds(lambda count: [count, 8, 8, 3], int64)
        | st.builds(lambda count: [count, 1], int64)
    )
    _tensor(message).shape[:] = shape
    return "shape|images|bytes|values|elements"


def _infer_datatype(draw: Any, message: Any) -> str:
    _tensor(message).datatype = draw(
        st.sampled_from(("UINT8", "BYTES", "FP32", "FP16", "BF16", "BOOL", "INT64", "STRING", "", "uint8", _LONG))
    )
    return "datatype|shape|images|bytes|values|elements|byte|contents"


def _infer_name(draw: Any, message: Any) -> str:
    _tensor(message).name = draw(names)
    return "input"


def _infer_more_inputs(draw: Any, message: Any) -> str:
    _tensor(message)
    for _ in range(draw(st.sampled_from((1, 2, 2_000)))):
        message.inputs.add(name="image")
    return "inputs"


def _infer_no_inputs(draw: Any, message: Any) -> str:
    del message.inputs[:]
    return "inputs|contents"


def _infer_raw(draw: Any, message: Any) -> str:
    del message.raw_input_contents[:]
    one = st.sampled_from((b"", bytes(191), bytes(192), bytes(193), bytes(384), bytes(2_000_000))) | st.binary(
        max_size=40
    )
    message.raw_input_contents.extend(draw(st.lists(one, max_size=3)))
    return "bytes|contents|entries|byte|values|elements|image"


def _infer_contents(draw: Any, message: Any) -> str:
    if draw(st.booleans()):
        del message.raw_input_contents[:]
    contents = _tensor(message).contents
    count = draw(st.sampled_from((0, 1, 191, 192, 193, 100_000)))
    fields: dict[str, list[Any]] = {
        "bool_contents": [True],
        "int_contents": [draw(st.sampled_from((-(2**31), -1, 0, 255, 2**31 - 1)))],
        "int64_contents": [draw(int64)],
        "uint_contents": [draw(uint32)],
        "uint64_contents": [draw(uint64)],
        "fp32_contents": [draw(st.sampled_from((math.nan, math.inf, -1.0)))],
        "fp64_contents": [draw(floats)],
        "bytes_contents": [draw(st.sampled_from((b"", png(), b"no image")))],
    }
    name = draw(st.sampled_from(tuple(fields)))
    getattr(contents, name).extend(fields[name] * count)
    return "contents|values|value|elements|images|image|bytes|inputs|UINT8"


def _fill_parameter(draw: Any, parameter: Any) -> None:
    kind = draw(st.sampled_from(("none", "bool_param", "int64_param", "string_param", "double_param", "uint64_param")))
    values = {"bool_param": st.booleans(), "int64_param": int64, "string_param": names, "double_param": floats}
    if kind != "none":
        setattr(parameter, kind, draw(values.get(kind, uint64)))


def _infer_parameter(draw: Any, message: Any) -> str:
    name = draw(st.sampled_from(("priority", "timeout", "sequence_id", "sequence_start", "classification", _LONG, "")))
    _fill_parameter(draw, message.parameters[name])
    return "priority|timeout"


def _infer_input_parameter(draw: Any, message: Any) -> str:
    name = draw(st.sampled_from(("shared_memory_region", "shared_memory_byte_size", "binary_data", _LONG)))
    _fill_parameter(draw, _tensor(message).parameters[name])
    return "shared memory|inputs"


def _infer_output(draw: Any, message: Any) -> str:
    for _ in range(draw(st.sampled_from((1, 2, 1_500)))):
        output = message.outputs.add(
            name=draw(st.sampled_from(("probabilities", "logits", "embedding", "prob", _LONG)))
        )
        if len(message.outputs) > 3:
            output.name = "logits"
    name = draw(st.sampled_from(("classification", "classification", "shared_memory_region", "binary_data")))
    _fill_parameter(draw, message.outputs[0].parameters[name])
    return "output|classification|shared memory"


def _infer_images(draw: Any, message: Any) -> str:
    given = draw(st.lists(images, min_size=1, max_size=3))
    del message.raw_input_contents[:]
    tensor = _tensor(message)
    tensor.datatype, tensor.shape[:] = "BYTES", [len(given)]
    tensor.ClearField("contents")
    if draw(st.booleans()):
        tensor.contents.bytes_contents.extend(given)
    else:
        message.raw_input_contents.append(b"".join(len(image).to_bytes(4, "little") + image for image in given))
    return "image"


_INFER_FAULTS = (
    *(_infer_model, _infer_version, _infer_id, _infer_shape, _infer_shape, _infer_datatype, _infer_name),
    *(_infer_more_inputs, _infer_no_inputs, _infer_raw, _infer_contents, _infer_contents, _infer_parameter),
    *(_infer_input_parameter, _infer_output, _infer_images),
)


def _good_infer() -> Any:
    tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=[1, 8, 8, 3])
    return oip.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[bytes(192)])


def infer_requests(_known: Known) -> st.SearchStrategy[Request]:
    # More than 1,000 fields are refused as such, whatever they are.
    return _with_faults(MODEL_INFER, _good_infer, _INFER_FAULTS).map(lambda r: _or_says(r, "more than 1000 inputs"))


def _or_says(request: Request, says: str) -> Request:
    return replace(request, says=f"{request.says}|{says}" if request.says else "")


# ---- Predict ----------------------------------------------------------------------------------------------


def _predict_model(draw: Any, message: Any) -> str:
    message.model = draw(names)
    return "model"


def _predict_version(draw: Any, message: Any) -> str:
    message.version = draw(int64)
    return "version|checksum"


def _predict_acquisition(draw: Any, message: Any) -> str:
    message.acquisition = draw(names)
    return "acquisition"


def _predict_numbers(draw: Any, message: Any) -> str:
    message.top_k, message.priority = draw(uint32), draw(uint32)
    message.with_embedding, message.with_feedback_id = draw(st.booleans()), draw(st.booleans())
    return "priority"


def _predict_raw(draw: Any, message: Any) -> str:
    side = st.sampled_from((0, 1, 7, 8, 8, 8, 9, 65_535, 2**31, 2**32 - 1))
    data = draw(st.sampled_from((b"", bytes(191), bytes(192), bytes(193), bytes(384), bytes(5_000_000))))
    raw = prediction_pb.RawImages(data=data, count=draw(uint32), height=draw(side), width=draw(side))
    message.raw.CopyFrom(raw)
    return "raw|images"


def _predict_nothing(draw: Any, message: Any) -> str:
    message.ClearField("encoded")
    message.ClearField("raw")
    return "input"


def _predict_images(draw: Any, message: Any) -> str:
    message.encoded.images[:] = draw(st.lists(images, max_size=12))
    return "image"


def _predict_many(draw: Any, message: Any) -> str:
    message.encoded.images[:] = [draw(st.sampled_from((b"", png())))] * draw(st.sampled_from((255, 256, 257, 20_000)))
    return "image"


_PREDICT_FAULTS = (
    *(_predict_model, _predict_version, _predict_acquisition, _predict_numbers, _predict_raw, _predict_raw),
    *(_predict_nothing, _predict_images, _predict_images, _predict_many),
)


def _good_predict(*given: bytes) -> Any:
    return prediction_pb.PredictRequest(
        model="tiny", encoded=prediction_pb.EncodedImages(images=given or (png(),)), with_feedback_id=True
    )


def predict_requests(_known: Known) -> st.SearchStrategy[Request]:
    return _with_faults(PREDICT, _good_predict, _PREDICT_FAULTS)


def image_requests(_known: Known) -> st.SearchStrategy[Request]:
    """One hostile image, by either API."""
    return st.builds(_with_image, images, st.booleans())


def bomb_requests(_known: Known) -> st.SearchStrategy[Request]:
    return st.builds(_with_image, bomb_images, st.booleans())


def _with_image(image: bytes, by_predict: bool) -> Request:
    if by_predict:
        return Request(PREDICT, _good_predict(image).SerializeToString(), says="image 0")
    message = _good_infer()
    tensor = message.inputs[0]
    tensor.datatype, tensor.shape[:] = "BYTES", [1]
    message.raw_input_contents[:] = [len(image).to_bytes(4, "little") + image]
    return Request(MODEL_INFER, message.SerializeToString(), says="image 0")


# ---- ScorePool, Embed, Feedback ---------------------------------------------------------------------------


def _sample_ids(known: Known) -> st.SearchStrategy[list[str]]:
    one = st.sampled_from((*known.sample_ids[:5], "", "beef", "\0", known.sample_ids[0].upper(), "é", _LONG)) | names
    return st.one_of(
        st.lists(one, max_size=4),
        st.sampled_from((list(known.sample_ids), [known.sample_ids[0]] * 50, ["a" * 32] * 5_000, [""] * 100_000)),
    )


def pool_requests(known: Known) -> st.SearchStrategy[Request]:
    says = "model|version|checksum|source|split|sample|acquisition"
    sources = st.sampled_from((known.source_id,) * 4) | names
    score = st.builds(
        pool_pb.ScorePoolRequest,
        model=st.just("tiny") | names,
        version=st.just(0) | int64,
        source_id=sources,
        sample_ids=st.just([]) | _sample_ids(known),
        split=st.sampled_from(("", "pool", "test")) | names,
        acquisition=st.sampled_from(("entropy", "margin")) | names,
        top=uint32,
    )
    embed = st.builds(
        pool_pb.EmbedRequest,
        model=st.just("tiny") | names,
        version=st.just(0) | int64,
        source_id=sources,
        sample_ids=_sample_ids(known),
    )
    return st.one_of(
        score.map(lambda message: Request(SCORE_POOL, message.SerializeToString(), says)),
        embed.map(lambda message: Request(EMBED, message.SerializeToString(), says)),
    )


def _forged(campaign: str, version: int, round_no: int, class_index: int) -> str:
    return prediction_ids(
        SimpleNamespace(campaign=campaign, version=version, round=round_no),  # type: ignore[arg-type]
        np.array([class_index]),
        [],
    )[0]


def _mangled(prediction_id: str, seed: int) -> str:
    rng = random.Random(seed)
    at = rng.randrange(len(prediction_id))
    return rng.choice(
        (prediction_id[:at], prediction_id[:at] + rng.choice("Aé=\0_ ") + prediction_id[at + 1 :], prediction_id * 2)
    )


def feedback_requests(known: Known) -> st.SearchStrategy[Request]:
    right = st.sampled_from(known.prediction_ids)
    big = st.sampled_from((0, 1, 2, 3, 2**31, 2**32 - 1))
    campaigns = st.sampled_from(("tiny", "unpromoted", "", "../x", "n" * 200))
    ids = st.one_of(
        right,
        st.builds(_mangled, right, st.integers(0, 2**32 - 1)),
        st.builds(_forged, campaigns, big, big, big),
        names,
    )
    item = st.one_of(
        st.builds(prediction_pb.FeedbackItem, prediction_id=ids, label=st.just("red") | names, annotator=names),
        st.builds(prediction_pb.FeedbackItem, prediction_id=ids, class_index=uint32),
        st.builds(prediction_pb.FeedbackItem, prediction_id=ids),
    )
    several = st.builds(lambda one, count: [one] * count, item, st.sampled_from((1_000, 1_001, 50_000)))
    # Items that are large are few: the message stays within what the method takes.
    requests = st.one_of(st.lists(item, max_size=3), several.filter(lambda items: items[0].ByteSize() < 60))
    return requests.map(
        lambda items: Request(
            FEEDBACK, prediction_pb.FeedbackRequest(items=items).SerializeToString(), r"item \d|items|limit"
        )
    )


# ---- everything else --------------------------------------------------------------------------------------


def small_requests(_known: Known) -> st.SearchStrategy[Request]:
    """The methods that take little more than a name."""
    parameters = st.dictionaries(
        names.filter(lambda name: len(name) < 100),
        st.builds(lambda text: oip.ModelRepositoryParameter(string_param=text), names),
        max_size=2,
    )
    named = [
        st.builds(_named, st.just(method), names, versions)
        for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
    ]
    return st.one_of(
        *named,
        st.builds(
            lambda name, version: _small(GET_MODEL, registry_pb.GetModelRequest(model=name, version=version)),
            names,
            int64,
        ),
        # A watch that is right never ends by itself.
        names.map(
            lambda name: Request(
                WATCH_MODEL,
                registry_pb.WatchModelRequest(model=name).SerializeToString(),
                "model",
                timeout_s=0.05,
                may_expire=True,
            )
        ),
        names.map(
            lambda name: _small(f"{_OIP}RepositoryIndex", oip.RepositoryIndexRequest(repository_name=name, ready=True))
        ),
        st.builds(
            lambda name, given: _small(
                f"{_OIP}RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name=name, parameters=given)
            ),
            names,
            parameters,
        ),
        names.map(
            lambda name: _small(f"{_OIP}RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name=name))
        ),
        st.builds(
            lambda method, data: Request(method, data, "parsed|not a"),
            st.sampled_from((LIST_MODELS, f"{_OIP}ServerLive", f"{_OIP}ServerReady", f"{_OIP}ServerMetadata")),
            st.binary(max_size=50),
        ),
    )


def _named(method: str, name: str, version: str) -> Request:
    return _small(f"{_OIP}{method}", getattr(oip, f"{method}Request")(name=name, version=version))


def _small(method: str, message: Any) -> Request:
    return Request(method, message.SerializeToString(), "model|version|repository|parameter|checksum")


def good_requests(known: Known) -> list[Request]:
    """One that is right for each method, WatchModel aside."""
    score = pool_pb.ScorePoolRequest(source_id=known.source_id, acquisition="margin")
    embed = pool_pb.EmbedRequest(source_id=known.source_id, sample_ids=known.sample_ids[:3])
    item = prediction_pb.FeedbackItem(prediction_id=known.prediction_ids[0], label="red", annotator="me")
    messages = {
        PREDICT: _good_predict(),
        FEEDBACK: prediction_pb.FeedbackRequest(items=[item]),
        SCORE_POOL: score,
        EMBED: embed,
        GET_MODEL: registry_pb.GetModelRequest(model="tiny"),
        LIST_MODELS: registry_pb.ListModelsRequest(),
        MODEL_INFER: _good_infer(),
    }
    for method in METHODS:
        if method.startswith(_OIP) and method != MODEL_INFER:
            message = getattr(oip, f"{method.removeprefix(_OIP)}Request")()
            for name in ("name", "model_name"):
                if name in message.DESCRIPTOR.fields_by_name:
                    setattr(message, name, "tiny")
            messages[method] = message
    return [Request(method, message.SerializeToString()) for method, message in messages.items()]


def mutated_requests(known: Known) -> st.SearchStrategy[Request]:
    """The bytes of messages that are right, changed without regard to what they mean; and sent to the wrong method."""
    good = good_requests(known)
    return st.builds(
        lambda request, other, wrong_method, seed: Request(
            other.method if wrong_method else request.method,
            _mutated(request.data, other.data, random.Random(seed)),
        ),
        st.sampled_from(good),
        st.sampled_from(good),
        st.sampled_from((False, False, False, True)),
        st.integers(0, 2**32 - 1),
    )


def _mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.randint(1, 5)):
        first, last = sorted(rng.choices(range(len(data) + 1), k=2))
        match rng.randrange(7):
            case 0:
                data = data[:first]
            case 1:
                data = data[:first] + data[last:]
            case 2:
                data = data[:last] + data[first:]
            case 3:
                data = data[:first] + rng.randbytes(rng.choice((1, 2, 10))) + data[first:]
            case 4:
                data = data[:first] + other[rng.randrange(len(other) + 1) :]
            case 5:
                data = data[:first] + rng.choice((b"\xff" * 10, b"\x2a\x00" * 3_000, b"\x9b\x06" * 200)) + data[first:]
            case _ if data:
                damaged = bytearray(data)
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
                data = bytes(damaged)
    return data


def outside_requests(_known: Known) -> st.SearchStrategy[Request]:
    """What never reaches a method: messages over the limit, and methods that there are not."""
    over = st.builds(
        lambda method, more: Request(method, bytes(MAX_MESSAGE_BYTES + more), too_large=True),
        st.sampled_from(METHODS),
        st.sampled_from((1, 1_000, 4_000_000)),
    )
    nearly = st.builds(
        lambda method, filling: Request(method, filling * (MAX_MESSAGE_BYTES // len(filling) - 1), "message|limit|.*"),
        st.sampled_from(METHODS),
        st.sampled_from((b"\0", b"\x0a\x00", b"\x1a\x00", b"\x2a\x00", b"\x3a\x00", b"\xff\xff")),
    )
    unknown = st.sampled_from(
        (
            *("/querent.v1.PredictionService/Delete", "/querent.v2.PredictionService/Predict", "/", "//", "/x"),
            *(f"{_OIP}ModelStreamInfer", f"{_OIP}SystemSharedMemoryRegister", f"{_OIP}", "/../../etc/passwd"),
            f"/{'n' * 5_000}/Predict",
        )
    ).map(lambda method: Request(method, b"\x0a\x04tiny"))
    return st.one_of(over, nearly, unknown)
