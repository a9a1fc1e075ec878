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
from services.inference.batcher import NORMAL
from services.inference.embedding import Progress
from services.inference.model import Model
from services.inference.predicting import Answer, Predictor, Query, Raw
from services.inference.scoring import PoolQuery, Scorer, Scores
from services.inference.store import Description, ModelStore

_Context = grpc.aio.ServicerContext[Any, Any]


class PredictionServicer(prediction_pb2_grpc.PredictionServiceServicer):
    def __init__(self, store: ModelStore, predictor: Predictor) -> None:
        self._store = store
        self._predictor = predictor

    async def Predict(
        self, request: prediction_pb2.PredictRequest, context: _Context
    ) -> prediction_pb2.PredictResponse:
        async with self._store.lease(request.model, request.version) as model:
            answer = await self._predictor.predict(model, _query(request, context))
            return _prediction(model, answer, request)


class PoolScoringServicer(pool_scoring_pb2_grpc.PoolScoringServiceServicer):
    def __init__(self, store: ModelStore, scorer: Scorer) -> None:
        self._store = store
        self._scorer = scorer

    async def ScorePool(
        self, request: pool_scoring_pb2.ScorePoolRequest, _context: _Context
    ) -> AsyncIterator[pool_scoring_pb2.ScorePoolResponse]:
        query = PoolQuery(
            source_id=request.source_id,
            sample_ids=list(request.sample_ids),
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
            aclosing(self._scorer.embed(model, request.source_id, list(request.sample_ids))) as steps,
        ):
            async for progress in steps:
                yield pool_scoring_pb2.EmbedResponse(
                    version=model.version,
                    progress=_progress(progress),
                    embedding_id=model.manifest.embedding_id,
                )


class ModelRegistryServicer(model_registry_pb2_grpc.ModelRegistryServiceServicer):
    def __init__(self, store: ModelStore) -> None:
        self._store = store

    async def GetModel(
        self, request: model_registry_pb2.GetModelRequest, _context: _Context
    ) -> model_registry_pb2.Model:
        return _model(await self._store.describe(request.model, request.version))

    async def ListModels(
        self, _request: model_registry_pb2.ListModelsRequest, _context: _Context
    ) -> model_registry_pb2.ListModelsResponse:
        described = await self._store.describe_all()
        return model_registry_pb2.ListModelsResponse(models=map(_model, described))


def _query(request: prediction_pb2.PredictRequest, context: _Context) -> Query:
    remaining = context.time_remaining()
    deadline = math.inf if remaining is None else asyncio.get_running_loop().time() + remaining
    kind = request.WhichOneof("input")
    if kind is None:
        raise BadRequest("the request has no input; set `encoded` or `raw`")
    raw = request.raw
    images = list(request.encoded.images) if kind == "encoded" else Raw(raw.data, raw.count, raw.height, raw.width)
    return Query(images, request.acquisition, deadline, request.priority or NORMAL)


def _prediction(model: Model, answer: Answer, request: prediction_pb2.PredictRequest) -> prediction_pb2.PredictResponse:
    probabilities = answer.outputs.probabilities
    # Stable, so that equal probabilities come in the order of the classes.
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : request.top_k or None]
    predictions = [
        prediction_pb2.Prediction(
            classes=[
                prediction_pb2.ClassProbability(
                    label=model.manifest.classes[c], index=c, probability=probabilities[i, c]
                )
                for c in order[i].tolist()
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
