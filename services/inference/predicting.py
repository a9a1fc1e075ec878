"""Predict and ModelInfer: images of a caller, decoded in threads, batched with those of others, and answered."""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
from prometheus_client import Counter, Histogram

from services.common import images as codec
from services.common.acquisition import acquisition_named, member_probabilities
from services.common.errors import BadImage, BadRequest
from services.inference.batcher import NORMAL, PRIORITIES, BatchRule, MicroBatcher
from services.inference.metrics import Metrics
from services.inference.model import Model, Outputs, refuse_plain

_CHUNK = 8  # images that one thread decodes before another request's turn
_SATURATED = 0.9  # share of the queue's limit: requests of many images are refused before the last place is taken
_INLINE = 4  # small images that the event loop decodes itself: 11 µs each, a hand-over to a thread takes 60


@dataclass(frozen=True)
class Raw:
    """uint8 RGB pixels as they came, with the shape that the caller says they have."""

    data: bytes
    count: int
    height: int
    width: int


@dataclass(frozen=True)
class Query:
    images: Sequence[bytes] | Raw
    # "": none
    acquisition: str = ""
    # On the loop's clock.
    deadline: float = math.inf
    priority: int = NORMAL


@dataclass(frozen=True)
class Answer:
    outputs: Outputs
    uncertainty: np.ndarray | None  # (N,)


@dataclass(frozen=True)
class Limits:
    max_images: int
    max_pixels: int


@dataclass(frozen=True)
class _Desk:
    """Where one model's requests are answered: its batcher, and its metrics looked up once."""

    batcher: MicroBatcher
    images: Counter
    confidence: Histogram | None


class Predictor:
    """Answers queries with a model that the caller holds."""

    def __init__(
        self, decode_pool: Executor, run_pool: Executor, rule: BatchRule, limits: Limits, metrics: Metrics
    ) -> None:
        self._decode_pool = decode_pool
        self._run_pool = run_pool
        self._rule = rule
        self._limits = limits
        self._metrics = metrics
        # A batcher lives as long as its model; a batcher that referred to its model would keep both for ever.
        self._desks: WeakKeyDictionary[Model, _Desk] = WeakKeyDictionary()

    @property
    def saturated(self) -> bool:
        """Whether a model's queue is so full that requests are being refused, or soon will be."""
        return any(desk.batcher.admitted >= _SATURATED * self._rule.queue_limit for desk in self._desks.values())

    async def predict(self, model: Model, query: Query) -> Answer:
        refuse_plain(model)
        acquisition = acquisition_named(query.acquisition) if query.acquisition else None
        if isinstance(query.images, Raw):
            self.check_count(query.images.count)  # before its bytes: the caller may say any number
            images: np.ndarray | Sequence[bytes] = raw_pixels(query.images, model)
        else:
            self.check_count(len(query.images))
            images = list(query.images)
        outputs = await self.infer(model, images, query.deadline, query.priority)
        uncertainty = acquisition(member_probabilities(outputs.logits)) if acquisition else None
        return Answer(outputs, uncertainty)

    async def infer(
        self, model: Model, images: np.ndarray | Sequence[bytes], deadline: float = math.inf, priority: int = NORMAL
    ) -> Outputs:
        """Pixels as uint8 [N, H, W, 3], or N encoded images -> Outputs. `deadline` is on the loop's clock.

        Raises BadRequest, BadImage, Overloaded or DeadlineExpired.
        """
        self.check_count(len(images))
        if priority not in PRIORITIES:
            raise BadRequest(f"no priority {priority}; 1 goes first, 2 is normal, 3 goes last")
        desk = self._desks.get(model) or self._desk(model)
        with desk.batcher.admit(len(images)):
            pixels = images if isinstance(images, np.ndarray) else await self._decoded(images, model)
            outputs = await desk.batcher.predict(model, pixels, deadline, priority)
        desk.images.inc(len(images))
        if desk.confidence:
            for row in outputs.probabilities.tolist():
                desk.confidence.observe(max(row))
        return outputs

    def _desk(self, model: Model) -> "_Desk":
        batcher = MicroBatcher(self._run_pool, self._rule, self._metrics, model.statistics)
        images = self._metrics.images_of(model.manifest, "predict")
        confidence = None if model.manifest.plain else self._metrics.confidence.labels(model.name, model.version)
        desk = self._desks[model] = _Desk(batcher, images, confidence)
        return desk

    def check_count(self, count: int) -> None:
        """Raises BadRequest for a request of `count` images that is refused whatever they are."""
        if count < 1:
            raise BadRequest("the request has no images; send at least one")
        if count > self._limits.max_images:
            raise BadRequest(
                f"the request has {count} images; the limit is {self._limits.max_images} (INFERENCE_MAX_IMAGES)"
            )

    async def _decoded(self, encoded: Sequence[bytes], model: Model) -> np.ndarray:
        """uint8 [N, H, W, 3]. Raises BadImage with the index of the first image that cannot be used."""
        if len(encoded) <= _INLINE and all(map(codec.is_quick, encoded)):
            return self._decode(encoded, range(len(encoded)), model)
        loop = asyncio.get_running_loop()
        chunks = [
            loop.run_in_executor(self._decode_pool, self._decode, encoded, range(i, i + _CHUNK), model)
            for i in range(0, len(encoded), _CHUNK)
        ]
        # All of them end before the first error is raised, so that none is left without anybody to look at it.
        decoded = await asyncio.gather(*chunks, return_exceptions=True)
        failed = next((part for part in decoded if isinstance(part, BaseException)), None)
        if failed is None:
            return np.concatenate(cast(list[np.ndarray], decoded))
        try:
            raise failed
        finally:
            # The error's traceback holds this frame: with the error in it, all images would wait for the garbage
            # collector.
            del failed, decoded, chunks

    def _decode(self, encoded: Sequence[bytes], places: range, model: Model) -> np.ndarray:
        height, width = model.manifest.input_height, model.manifest.input_width
        part = encoded[places.start : places.stop]
        pixels = np.empty((len(part), height, width, 3), np.uint8)
        for i, content in enumerate(part):
            try:
                pixels[i] = codec.decode(content, height, width, self._limits.max_pixels)
            except BadImage as error:
                raise BadImage(f"image {places.start + i}: {error}") from error
        return pixels


def raw_pixels(raw: Raw, model: Model) -> np.ndarray:
    """uint8 [N, H, W, 3], a view of the bytes. Raises BadRequest with the size that was expected."""
    height, width = model.manifest.input_height, model.manifest.input_width
    if (raw.height, raw.width) != (height, width):
        raise BadRequest(
            f"raw images are {raw.height} x {raw.width} (height x width); {model.name!r} takes {height} x {width}; "
            "send encoded images to have them resized"
        )
    expected = raw.count * height * width * 3
    if len(raw.data) != expected:
        raise BadRequest(
            f"raw data has {len(raw.data)} bytes; {raw.count} x {height} x {width} x 3 uint8 are {expected}; "
            f"image {len(raw.data) // (height * width * 3)} is not whole"
            if len(raw.data) < expected
            else f"raw data has {len(raw.data)} bytes; {raw.count} x {height} x {width} x 3 uint8 are {expected}"
        )
    return np.frombuffer(raw.data, np.uint8).reshape(raw.count, height, width, 3)
