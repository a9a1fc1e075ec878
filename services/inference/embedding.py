"""Embedding a source: every sample once, in storage order, in whole shards.

What is cold is cut into shards of 1,024 and computed in batches of exactly 32, so that a call that was
cancelled leaves whole shards behind and a repeat computes the same bits.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from services.common.embeddings import EmbeddingStore
from services.common.errors import BadRequest
from services.common.samples import SampleStore
from services.inference.folders import Folders
from services.inference.metrics import Metrics
from services.inference.model import Model

SHARD = 1024
BATCH = 32
PROGRESS_SECONDS = 0.5


@dataclass
class Progress:
    phase: Literal["embed", "score"]
    done: int
    total: int


class Embedder:
    """Fills embedding stores; one job at a time for each (embedding, source)."""

    def __init__(self, folders: Folders, pool: Executor, workers: int, metrics: Metrics) -> None:
        self._folders = folders
        self._pool = pool
        self._workers = workers
        self._metrics = metrics
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def ensure(self, model: Model, samples: SampleStore, ids: Sequence[str]) -> AsyncGenerator[Progress, None]:
        """Embed those of `ids` that have no stored embedding, telling how far it is every half second."""
        progress = Progress("embed", 0, len(ids))
        job = asyncio.create_task(self._fill(model, samples, ids, progress))
        try:
            while not job.done():
                await asyncio.wait({job}, timeout=PROGRESS_SECONDS)
                yield Progress(progress.phase, progress.done, progress.total)
            await job
        finally:
            job.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await job

    async def _fill(self, model: Model, samples: SampleStore, ids: Sequence[str], progress: Progress) -> None:
        check_size(model, samples)
        places = await asyncio.to_thread(samples.positions, ids)
        key = (model.manifest.embedding_id, samples.source.source_id)
        # A second caller waits for the first and then computes only what is still missing.
        async with self._locks.setdefault(key, asyncio.Lock()):
            store = await asyncio.to_thread(self._folders.embeddings, *key)
            cold = await asyncio.to_thread(_cold, store, ids, places)
            progress.done = len(ids) - len(cold)
            if cold:
                await self._fill_cold(model, samples, cold, store, progress)
                if not model.manifest.embedding_shared:
                    await asyncio.to_thread(self._folders.drop_outdated_embeddings, model.manifest)
            progress.done = len(ids)

    async def _fill_cold(
        self, model: Model, samples: SampleStore, cold: Sequence[str], store: EmbeddingStore, progress: Progress
    ) -> None:
        shard: list[np.ndarray] = []
        stored = 0
        async with aclosing(self._batches(model, samples, cold)) as batches:
            async for embeddings in batches:
                shard.append(embeddings)
                progress.done += len(embeddings)
                size = sum(map(len, shard))
                if size == SHARD or stored + size == len(cold):
                    await _append(store, cold[stored : stored + size], np.concatenate(shard))
                    stored += size
                    shard.clear()

    async def _batches(
        self, model: Model, samples: SampleStore, cold: Sequence[str]
    ) -> AsyncGenerator[np.ndarray, None]:
        """float32 (n, D) of 32 samples at a time, in order, while the next ones are being computed."""
        loop = asyncio.get_running_loop()
        ahead: deque[asyncio.Future[np.ndarray]] = deque()
        try:
            for first in range(0, len(cold), BATCH):
                part = cold[first : first + BATCH]
                ahead.append(loop.run_in_executor(self._pool, self._embed, model, samples, part))
                if len(ahead) > self._workers:
                    yield await ahead.popleft()
            while ahead:
                yield await ahead.popleft()
        finally:
            # Those that have not begun never will: a cancelled call ends with the batches that are running.
            for future in ahead:
                if future.done() and not future.cancelled():
                    future.exception()  # looked at; the error that counts is the first one
                future.cancel()

    def _embed(self, model: Model, samples: SampleStore, ids: Sequence[str]) -> np.ndarray:
        images = samples.images(ids)
        started = time.perf_counter()
        # The last batch is filled up: some kernels round differently for other batch sizes.
        padding = ((0, BATCH - len(ids)), (0, 0), (0, 0), (0, 0))
        embeddings = model.embed(np.pad(images, padding) if len(ids) < BATCH else images)
        self._metrics.run_seconds.labels(model.name, model.version).observe(time.perf_counter() - started)
        self._metrics.batch_size.observe(len(ids))
        self._metrics.count_images(model.manifest, "embed", len(ids))
        return embeddings[: len(ids)]


def check_size(model: Model, samples: SampleStore) -> None:
    source, facts = samples.source, model.manifest
    if (source.height, source.width) != (facts.input_height, facts.input_width):
        raise BadRequest(
            f"source {source.source_id!r} has images of {source.height} x {source.width}; "
            f"{model.name!r} takes {facts.input_height} x {facts.input_width}"
        )


def _cold(store: EmbeddingStore, ids: Sequence[str], places: np.ndarray) -> list[str]:
    """Those without a stored embedding, each once, in storage order."""
    store.refresh()
    _, first = np.unique(places, return_index=True)
    return store.missing([ids[i] for i in first])


async def _append(store: EmbeddingStore, ids: Sequence[str], embeddings: np.ndarray) -> None:
    """Write one shard; also when the call is cancelled meanwhile, so that the next caller finds it."""
    writing = asyncio.create_task(asyncio.to_thread(store.append, ids, embeddings))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await writing
        raise
