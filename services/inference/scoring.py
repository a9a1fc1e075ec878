"""ScorePool: which samples of a source would teach the most? The head runs over stored embeddings.

Scores come from what the store gives back (float16), also right after embedding, so that a cold call and a
warm one rank alike.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from services.common.acquisition import acquisition_named
from services.common.errors import BadRequest
from services.common.ids import pack, unpack
from services.common.samples import SampleStore
from services.inference.embedding import Embedder, Progress, check_size, told
from services.inference.folders import Folders
from services.inference.metrics import Metrics
from services.inference.model import Model
from services.inference.streaming import StreamedScores, highest

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
    def __init__(self, folders: Folders, embedder: Embedder, pool: Executor, workers: int, metrics: Metrics) -> None:
        self._folders = folders
        self._embedder = embedder
        self._pool = pool
        self._workers = workers
        self._metrics = metrics

    async def embed(self, model: Model, source_id: str, ids: Sequence[str]) -> AsyncGenerator[Progress, None]:
        samples = await asyncio.to_thread(self._folders.samples, source_id)
        _check_count(samples, ids)
        packed = await asyncio.to_thread(pack, ids)
        async with aclosing(self._embedder.ensure(model, samples, packed)) as steps:
            async for progress in steps:
                yield progress

    async def score(self, model: Model, query: PoolQuery) -> AsyncGenerator[Progress | Scores, None]:
        """Progress while it embeds and scores, then the scores in one or more parts."""
        acquisition = acquisition_named(query.acquisition)
        samples = await asyncio.to_thread(self._folders.samples, query.source_id)
        check_size(model, samples)
        _check_count(samples, query.sample_ids)
        ids = await asyncio.to_thread(_ids, samples, query)
        async with aclosing(self._embedder.ensure(model, samples, ids)) as steps:
            async for progress in steps:
                yield progress
        key = (model.manifest.embedding_id, samples.source.source_id)
        store = await asyncio.to_thread(self._folders.embeddings, *key)
        blocks = await asyncio.to_thread(store.blocks, ids)
        scoring = Progress("score", 0, len(ids))
        streamed = StreamedScores(model, blocks, acquisition, scoring, self._metrics)
        async with aclosing(told(asyncio.ensure_future(streamed.run(self._pool, self._workers)), scoring)) as steps:
            async for progress in steps:
                yield progress
        for scored in _parts(ids, streamed.scores, query.top):
            yield scored


def _check_count(samples: SampleStore, ids: Sequence[str]) -> None:
    """Raises BadRequest for more ids than there are samples: 64 MiB hold 33 million ids, and each takes 40 bytes."""
    known = sum(samples.source.splits.values())
    if len(ids) > known:
        raise BadRequest(
            f"the request names {len(ids)} samples; source {samples.source.source_id!r} has {known}, name each once"
        )


def _ids(samples: SampleStore, query: PoolQuery) -> np.ndarray:
    """S40 (N,)"""
    return pack(query.sample_ids) if query.sample_ids else samples.packed_ids(query.split)


def _parts(ids: np.ndarray, scores: np.ndarray, top: int) -> Iterator[Scores]:
    """What goes into each message; at least one, also when there is nothing to score."""
    order = highest(scores, top) if top else np.arange(len(ids))
    for start in range(0, max(len(order), 1), IDS_IN_A_MESSAGE):
        cut = order[start : start + IDS_IN_A_MESSAGE]
        yield Scores(unpack(ids[cut]), scores[cut])
