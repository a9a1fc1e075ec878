"""What both clients share: values, requests, and errors from statuses."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from services.common import errors
from services.common.pb import pool_scoring_pb2, prediction_pb2

DEFAULT_ADDRESS = "127.0.0.1:8001"

# A path to an image file, its bytes, or all images as one uint8 array [N, H, W, 3].
Image = bytes | str | Path

_ERRORS: dict[grpc.StatusCode, type[errors.QuerentError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.BadRequest,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExpired,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.Forbidden,
    grpc.StatusCode.FAILED_PRECONDITION: errors.DamagedArtefact,
    # The replica stopped under the call, which may have run: the channel does not repeat it. Callers may, since none of
    # our calls does harm when it runs twice.
    grpc.StatusCode.CANCELLED: errors.Unavailable,
}


@dataclass(frozen=True)
class ClassProbability:
    label: str
    index: int
    probability: float


@dataclass(frozen=True)
class Prediction:
    """One image's answer; classes come most probable first."""

    classes: tuple[ClassProbability, ...]
    uncertainty: float | None = None
    embedding: np.ndarray | None = None  # (D,)
    # For `feedback`; empty unless asked for.
    prediction_id: str = ""

    @property
    def label(self) -> str:
        return self.classes[0].label

    @property
    def probability(self) -> float:
        return self.classes[0].probability


@dataclass(frozen=True)
class Predictions:
    """Aligned with the images that were sent; `model`, `version` and `round` are what answered."""

    model: str
    version: int
    round: int
    predictions: tuple[Prediction, ...]


@dataclass(frozen=True)
class Progress:
    """How far a long call is: `phase` is "embed" or "score"."""

    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class Feedback:
    """The true class of an earlier prediction, by name or by index; `annotator` says who says so."""

    prediction_id: str
    truth: str | int
    annotator: str = ""


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class PoolScores:
    """Scores aligned with ids; higher means more worth labelling."""

    version: int
    sample_ids: tuple[str, ...]
    scores: np.ndarray  # (N,)


def error_of(error: grpc.RpcError, address: str) -> errors.QuerentError:
    """The status as one of our errors, so that callers never need to know gRPC."""
    # Both stacks raise subclasses that have code() and details(); the base class has neither.
    status: Any = error
    code, details = status.code(), status.details() or ""
    kind = _ERRORS.get(code, errors.QuerentError)
    if code is grpc.StatusCode.CANCELLED:
        return kind(f"the call to {address} was cancelled before its answer, as by a service that stops: {details}")
    if kind is errors.Unavailable:
        return kind(f"the inference service at {address} is not available or not ready: {details}")
    if kind is errors.DeadlineExpired:
        return kind(f"{address} did not answer in time: {details}")
    return kind(details if kind is not errors.QuerentError else f"{code.name}: {details}")


def predict_request(
    images: Sequence[Image] | np.ndarray,
    model: str,
    version: int,
    top: int,
    acquisition: str,
    with_embedding: bool,
    priority: int,
    with_feedback_id: bool,
) -> prediction_pb2.PredictRequest:
    """Raises BadRequest for an array of another shape or type; OSError for a file that cannot be read."""
    request = prediction_pb2.PredictRequest(
        model=model,
        version=version,
        top_k=top,
        acquisition=acquisition,
        with_embedding=with_embedding,
        priority=priority,
        with_feedback_id=with_feedback_id,
    )
    if isinstance(images, np.ndarray):
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise errors.BadRequest(f"images must be uint8 [N, H, W, 3], not {images.dtype} {list(images.shape)}")
        count, height, width, _ = images.shape
        raw = prediction_pb2.RawImages(data=images.tobytes(), count=count, height=height, width=width)
        request.raw.CopyFrom(raw)
    else:
        request.encoded.SetInParent()  # so that no images is told apart from no input
        request.encoded.images.extend(i if isinstance(i, bytes) else Path(i).read_bytes() for i in images)
    return request


def predictions_of(response: prediction_pb2.PredictResponse) -> Predictions:
    return Predictions(
        response.model, response.version, response.round, tuple(_prediction(p) for p in response.predictions)
    )


def feedback_request(items: Iterable[Feedback]) -> prediction_pb2.FeedbackRequest:
    request = prediction_pb2.FeedbackRequest()
    for item in items:
        added = request.items.add(prediction_id=item.prediction_id, annotator=item.annotator)
        if isinstance(item.truth, str):
            added.label = item.truth
        else:
            added.class_index = item.truth
    return request


def score_pool_request(
    source_id: str, acquisition: str, model: str, version: int, sample_ids: Sequence[str], split: str, top: int
) -> pool_scoring_pb2.ScorePoolRequest:
    return pool_scoring_pb2.ScorePoolRequest(
        model=model,
        version=version,
        source_id=source_id,
        sample_ids=sample_ids,
        split=split,
        acquisition=acquisition,
        top=top,
    )


def pool_scores(version: int, ids: Iterable[str], scores: Iterable[float]) -> PoolScores:
    return PoolScores(version, tuple(ids), np.fromiter(scores, np.float32))


def tell(on_progress: OnProgress | None, progress: pool_scoring_pb2.Progress) -> None:
    if on_progress:
        on_progress(Progress(progress.phase, progress.done, progress.total))


def _prediction(message: prediction_pb2.Prediction) -> Prediction:
    return Prediction(
        tuple(ClassProbability(c.label, c.index, c.probability) for c in message.classes),
        message.uncertainty if message.HasField("uncertainty") else None,
        np.array(message.embedding, np.float32) if message.embedding else None,
        message.prediction_id,
    )
