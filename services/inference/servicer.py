"""The querent.v1 services: messages to values and back, and nothing else."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np

from services.common.errors import BadRequest
from services.common.pb import (
    model_registry_pb2,
    model_registry_pb2_grpc,
    pool_scoring_pb2,
    pool_scoring_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
)
from services.common.samples import sample_id
from services.inference.batcher import NORMAL
from services.inference.embedding import Progress
from services.inference.feedback import FeedbackRecorder, Told
from services.inference.model import Model
from services.inference.predicting import Answer, Predictor, Query, Raw
from services.inference.prediction_ids import prediction_ids
from services.inference.scoring import PoolQuery, Scorer, Scores
from services.inference.store import Description, ModelStore
from services.inference.watching import Seen, Watchers

_Context = grpc.aio.ServicerContext[Any, Any]
# Hashed on the event loop, at about 1 GB a second; more than this in a thread.
_INLINE_HASH_BYTES = 256 * 1024
_SORTED_IN_PYTHON = 64


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    def __init__(self, store: ModelStore, predictor: Predictor, feedback: FeedbackRecorder) -> None:
        self._store = store
        self._predictor = predictor
        self._feedback = feedback

    async def Predict(
        self, request: prediction_pb2.PredictRequest, context: _Context
    ) -> prediction_pb2.PredictResponse:
        async with self._store.lease(request.model, request.version) as model:
            answer = await self._predictor.predict(model, _query(request, context))
            response = _prediction(model, answer, request)
            if request.with_feedback_id:
                await _add_ids(response, model, answer, request)
            return response

    async def Feedback(
        self, request: prediction_pb2.FeedbackRequest, _context: _Context
    ) -> prediction_pb2.FeedbackResponse:
        self._feedback.check_count(len(request.items))
        done = await self._feedback.record([_told(i, item) for i, item in enumerate(request.items)])
        return prediction_pb2.FeedbackResponse(recorded=done.recorded, repeats=done.repeats)


class PoolScoringServicer(pool_scoring_pb2_grpc.PoolScoringServiceServicer):
    def __init__(self, store: ModelStore, scorer: Scorer) -> None:
        self._store = store
        self._scorer = scorer

    async def ScorePool(
        self, request: pool_scoring_pb2.ScorePoolRequest, _context: _Context
    ) -> AsyncIterator[pool_scoring_pb2.ScorePoolResponse]:
        query = PoolQuery(
            source_id=request.source_id,
            sample_ids=request.sample_ids,
            split=request.split or "pool",
            acquisition=request.acquisition,
            top=request.top,
        )
        async with (
            self._store.lease(request.model, request.version) as model,
            aclosing(self._scorer.score(model, query)) as events,
        ):
            async for event in events:
                yield _score_event(model, event)

    async def Embed(
        self, request: pool_scoring_pb2.EmbedRequest, _context: _Context
    ) -> AsyncIterator[pool_scoring_pb2.EmbedResponse]:
        async with (
            self._store.lease(request.model, request.version) as model,
            aclosing(self._scorer.embed(model, request.source_id, request.sample_ids)) as steps,
        ):
            async for progress in steps:
                yield pool_scoring_pb2.EmbedResponse(
                    version=model.version,
                    progress=_progress(progress),
                    embedding_id=model.manifest.embedding_id,
                )


class ModelRegistryServicer(model_registry_pb2_grpc.ModelRegistryServiceServicer):
    def __init__(self, store: ModelStore, watchers: Watchers) -> None:
        self._store = store
        self._watchers = watchers

    async def GetModel(
        self, request: model_registry_pb2.GetModelRequest, _context: _Context
    ) -> model_registry_pb2.Model:
        return _model(await self._store.describe(request.model, request.version))

    async def ListModels(
        self, _request: model_registry_pb2.ListModelsRequest, _context: _Context
    ) -> model_registry_pb2.ListModelsResponse:
        described = await self._store.describe_all()
        return model_registry_pb2.ListModelsResponse(models=map(_model, described))

    async def WatchModel(
        self, request: model_registry_pb2.WatchModelRequest, _context: _Context
    ) -> AsyncIterator[model_registry_pb2.Model]:
        async with aclosing(self._watchers.watch(request.model)) as changes:
            async for seen in changes:
                yield _seen(seen)


def _query(request: prediction_pb2.PredictRequest, context: _Context) -> Query:
    remaining = context.time_remaining()
    deadline = math.inf if remaining is None else asyncio.get_running_loop().time() + remaining
    kind = request.WhichOneof("input")
    if kind is None:
        raise BadRequest("the request has no input; set `encoded` or `raw`")
    raw = request.raw
    # Not copied yet: 64 MiB hold 33 million empty images, and they are counted first.
    images = request.encoded.images if kind == "encoded" else Raw(raw.data, raw.count, raw.height, raw.width)
    return Query(images, request.acquisition, deadline, request.priority or NORMAL)


def _prediction(model: Model, answer: Answer, request: prediction_pb2.PredictRequest) -> prediction_pb2.PredictResponse:
    labels = model.manifest.classes
    order = _most_probable(answer.outputs.probabilities, request.top_k or len(labels))
    # Python's numbers are several times as fast to put into messages as numpy's.
    probabilities = answer.outputs.probabilities.tolist()
    predictions = [
        prediction_pb2.Prediction(
            classes=[
                prediction_pb2.ClassProbability(label=labels[c], index=c, probability=probabilities[i][c])
                for c in order[i]
            ],
            uncertainty=None if answer.uncertainty is None else answer.uncertainty[i],
            embedding=answer.outputs.embedding[i] if request.with_embedding else None,
        )
        for i in range(len(probabilities))
    ]
    facts = model.manifest
    return prediction_pb2.PredictResponse(
        model=facts.campaign, version=facts.version, round=facts.round, predictions=predictions
    )


def _most_probable(probabilities: np.ndarray, count: int) -> list[list[int]]:
    """(N, C) -> for each row its `count` most probable classes; equal ones come in the order of the classes."""
    if probabilities.shape[1] > _SORTED_IN_PYTHON:
        order: list[list[int]] = (-probabilities).argsort(axis=1, kind="stable")[:, :count].tolist()
        return order
    # numpy lets go of the interpreter's lock to sort ten numbers, and waits 80 µs to get it back (measured).
    return [sorted(range(len(row)), key=row.__getitem__, reverse=True)[:count] for row in probabilities.tolist()]


async def _add_ids(
    response: prediction_pb2.PredictResponse, model: Model, answer: Answer, request: prediction_pb2.PredictRequest
) -> None:
    encoded = request.encoded.images
    if sum(map(len, encoded)) > _INLINE_HASH_BYTES:
        samples = await asyncio.to_thread(lambda: [sample_id(image) for image in encoded])
    else:
        samples = [sample_id(image) for image in encoded]
    ids = prediction_ids(model.manifest, answer.outputs.probabilities.argmax(axis=1), samples)
    for prediction, given in zip(response.predictions, ids, strict=True):
        prediction.prediction_id = given


def _told(index: int, item: prediction_pb2.FeedbackItem) -> Told:
    kind = item.WhichOneof("truth")
    if kind is None:
        raise BadRequest(f"item {index}: no true class; set `label` or `class_index`")
    return Told(item.prediction_id, item.label if kind == "label" else item.class_index, item.annotator)


def _seen(seen: Seen) -> model_registry_pb2.Model:
    return _model(seen.description) if seen.description else model_registry_pb2.Model(name=seen.campaign)


def _score_event(model: Model, event: Progress | Scores) -> pool_scoring_pb2.ScorePoolResponse:
    if isinstance(event, Progress):
        return pool_scoring_pb2.ScorePoolResponse(version=model.version, progress=_progress(event))
    scores = pool_scoring_pb2.Scores(sample_ids=event.sample_ids, scores=event.scores)
    return pool_scoring_pb2.ScorePoolResponse(version=model.version, scores=scores)


def _progress(progress: Progress) -> pool_scoring_pb2.Progress:
    return pool_scoring_pb2.Progress(phase=progress.phase, done=progress.done, total=progress.total)


def _model(described: Description) -> model_registry_pb2.Model:
    facts = described.manifest
    return model_registry_pb2.Model(
        name=facts.campaign,
        version=facts.version,
        round=facts.round,
        current_version=described.current or 0,
        published_versions=described.published,
        classes=facts.classes,
        input_height=facts.input_height,
        input_width=facts.input_width,
        backbone=facts.backbone.name,
        head=facts.head,
        members=facts.members,
        temperature=facts.temperature,
        embedding_size=facts.embedding_size,
        embedding_id=facts.embedding_id,
        labels_used=facts.labels_used,
        test_metrics=facts.metrics.get("test", {}),
        loaded=bool(described.provider),
        provider=described.provider,
    )
