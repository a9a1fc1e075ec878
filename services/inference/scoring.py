"""ScorePool: which samples of a source would teach the most? The head runs over stored embeddings.

Scores come from what the store gives back (float16), also right after embedding, so that a cold call and a
warm one rank alike.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from services.common.embeddings import EmbeddingStore
from services.common.samples import SampleStore
from services.inference.acquisition import Acquisition, acquisition_named, member_probabilities
from services.inference.embedding import PROGRESS_SECONDS, Embedder, Progress, check_size
from services.inference.folders import Folders
from services.inference.metrics import Metrics
from services.inference.model import Model

ROWS = 8192
# About 400 kB a message: well within the 4 MiB that clients accept by default.
IDS_IN_A_MESSAGE = 10_000


@dataclass(frozen=True)
class PoolQuery:
    source_id: str
    sample_ids: Sequence[str] = ()
    # Used only without sample_ids.
    split: str = "pool"
    acquisition: str = "margin"
    # 0: all, in the order asked for.
    top: int = 0


@dataclass(frozen=True)
class Scores:
    sample_ids: Sequence[str]
    scores: np.ndarray  # (N,)


class Scorer:
    def __init__(self, folders: Folders, embedder: Embedder, metrics: Metrics) -> None:
        self._folders = folders
        self._embedder = embedder
        self._metrics = metrics

    async def embed(self, model: Model, source_id: str, ids: Sequence[str]) -> AsyncGenerator[Progress, None]:
        samples = await asyncio.to_thread(self._folders.samples, source_id)
        async with aclosing(self._embedder.ensure(model, samples, ids)) as steps:
            async for progress in steps:
                yield progress

    async def score(self, model: Model, query: PoolQuery) -> AsyncGenerator[Progress | Scores, None]:
        """Progress while it embeds and scores, then the scores in one or more parts."""
        acquisition = acquisition_named(query.acquisition)
        samples = await asyncio.to_thread(self._folders.samples, query.source_id)
        check_size(model, samples)
        ids = query.sample_ids or await asyncio.to_thread(samples.ids, query.split)
        async with aclosing(self._embedder.ensure(model, samples, ids)) as steps:
            async for progress in steps:
                yield progress
        store = await asyncio.to_thread(self._embeddings, model, samples)
        scores = np.empty(len(ids), np.float32)
        told = time.monotonic()
        for first in range(0, len(ids), ROWS):
            part = ids[first : first + ROWS]
            scores[first : first + len(part)] = await asyncio.to_thread(_score, model, store, part, acquisition)
            self._metrics.count_images(model.manifest, "score", len(part))
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                yield Progress("score", first + len(part), len(ids))
        yield Progress("score", len(ids), len(ids))
        for scored in _parts(ids, scores, query.top):
            yield scored

    def _embeddings(self, model: Model, samples: SampleStore) -> EmbeddingStore:
        return self._folders.embeddings(model.manifest.embedding_id, samples.source.source_id)


def _score(model: Model, store: EmbeddingStore, ids: Sequence[str], acquisition: Acquisition) -> np.ndarray:
    """float32 (N,)"""
    _, logits = model.classify(store.read(ids))
    return acquisition(member_probabilities(logits))


def _parts(ids: Sequence[str], scores: np.ndarray, top: int) -> list[Scores]:
    """What goes into each message; at least one, also when there is nothing to score."""
    # Stable: samples of equal score keep the order in which they were asked for.
    order = np.argsort(-scores, kind="stable")[:top] if top else np.arange(len(ids))
    starts = range(0, max(len(order), 1), IDS_IN_A_MESSAGE)
    cuts = [order[start : start + IDS_IN_A_MESSAGE] for start in starts]
    return [Scores([ids[i] for i in cut], scores[cut]) for cut in cuts]
