"""Embedding a source: every sample once, in storage order, in whole shards.

What is cold is cut into blocks of 1,024, claimed among replicas, and computed in batches of exactly one size, so that
a call that was cancelled leaves whole shards behind and a repeat on such a device computes the same bits.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar

import numpy as np

from services.common.embeddings import EmbeddingStore
from services.common.errors import BadRequest
from services.common.ids import Ids, pack, unpack
from services.common.samples import SampleStore
from services.inference.claims import Backlog, Work
from services.inference.folders import Folders
from services.inference.metrics import Metrics
from services.inference.model import Model, refuse_plain

SHARD = 1024
# Samples that one thread reads, decodes and runs at a time: a hand-over costs as much as a twentieth of a run.
STEP = 32
PROGRESS_SECONDS = 0.5
# How often to look whether another replica has finished, or has left, what is all that is still missing.
HELD_POLL_SECONDS = 0.2

_T = TypeVar("_T")


@dataclass
class Progress:
    phase: Literal["embed", "score"]
    done: int
    total: int


class Embedder:
    """Fills embedding stores; one job at a time for each (embedding, source)."""

    def __init__(self, folders: Folders, pool: Executor, workers: int, metrics: Metrics, batch: int) -> None:
        """`batch`: samples in a run of the network, a divisor of 1,024."""
        self._folders = folders
        self._pool = pool
        self._workers = workers
        self._batch = batch
        self._metrics = metrics
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def ensure(self, model: Model, samples: SampleStore, ids: Ids) -> AsyncGenerator[Progress, None]:
        """Embed those of `ids` that have no stored embedding, telling how far it is every half second."""
        progress = Progress("embed", 0, len(ids))
        # No name for the job: its error's traceback holds this frame, and so the ids until the garbage is collected.
        async with aclosing(told(asyncio.ensure_future(self._fill(model, samples, ids, progress)), progress)) as steps:
            async for step in steps:
                yield step

    async def _fill(self, model: Model, samples: SampleStore, ids: Ids, progress: Progress) -> None:
        check_size(model, samples)
        key = (model.manifest.embedding_id, samples.source.source_id)
        store = await asyncio.to_thread(self._folders.embeddings, *key)
        if len(await asyncio.to_thread(_cold, store, samples, ids)):
            # A second caller waits for the first, and then computes only what is still missing.
            async with self._locks.setdefault(key, asyncio.Lock()):
                cold = await asyncio.to_thread(_cold, store, samples, ids)
                progress.done = len(ids) - len(cold)
                await self._fill_cold(model, samples, Backlog(store, samples, cold, SHARD), store, progress)
            if not model.manifest.embedding_shared:
                await asyncio.to_thread(self._folders.drop_outdated_embeddings, model.manifest)
        progress.done = len(ids)

    async def _fill_cold(
        self, model: Model, samples: SampleStore, backlog: Backlog, store: EmbeddingStore, progress: Progress
    ) -> None:
        try:
            async with aclosing(self._batches(model, samples, backlog)) as batches:
                async for work, embeddings in batches:
                    work.embeddings.append(embeddings)
                    backlog.left -= len(embeddings)
                    progress.done = progress.total - backlog.left
                    if work.whole:
                        await _to_its_end(partial(_finish, store, backlog, work))
        finally:
            backlog.close()

    async def _batches(
        self, model: Model, samples: SampleStore, backlog: Backlog
    ) -> AsyncGenerator[tuple[Work, np.ndarray], None]:
        """float32 (n, D) of one step at a time, in order, while the next ones are being computed."""
        loop = asyncio.get_running_loop()
        ahead: deque[tuple[Work, asyncio.Future[np.ndarray]]] = deque()
        try:
            while not backlog.all_given:
                work = await _to_its_end(backlog.claim)
                if work is None:
                    # What is claimed here must never wait for what others hold: they may wait for this.
                    while ahead:
                        yield ahead[0][0], await ahead.popleft()[1]
                    await asyncio.sleep(HELD_POLL_SECONDS)
                    continue
                for first in range(0, len(work.ids), STEP):
                    part = work.ids[first : first + STEP]
                    ahead.append((work, loop.run_in_executor(self._pool, self._embed, model, samples, part)))
                    if len(ahead) > self._workers:
                        yield ahead[0][0], await ahead.popleft()[1]
            while ahead:
                yield ahead[0][0], await ahead.popleft()[1]
        finally:
            # Those that have not begun never will: a cancelled call ends with the batches that are running.
            for _, future in ahead:
                if future.done() and not future.cancelled():
                    future.exception()  # looked at; the error that counts is the first one
                future.cancel()

    def _embed(self, model: Model, samples: SampleStore, ids: np.ndarray) -> np.ndarray:
        images = samples.images(unpack(ids))
        batches = [self._run(model, images[i : i + self._batch]) for i in range(0, len(images), self._batch)]
        self._metrics.count_images(model.manifest, "embed", len(ids))
        return np.concatenate(batches)

    def _run(self, model: Model, images: np.ndarray) -> np.ndarray:
        count = len(images)
        started = time.perf_counter()
        # The last batch is filled up: some kernels round differently for other batch sizes.
        padding = ((0, self._batch - count), (0, 0), (0, 0), (0, 0))
        embeddings = model.embed(np.pad(images, padding) if count < self._batch else images)
        self._metrics.run_seconds.labels(model.name, model.version).observe(time.perf_counter() - started)
        self._metrics.batch_size.observe(count)
        return embeddings[:count]


def check_size(model: Model, samples: SampleStore) -> None:
    refuse_plain(model)
    source, facts = samples.source, model.manifest
    if (source.height, source.width) != (facts.input_height, facts.input_width):
        raise BadRequest(
            f"source {source.source_id!r} has images of {source.height} x {source.width}; "
            f"{model.name!r} takes {facts.input_height} x {facts.input_width}"
        )


async def told(job: asyncio.Future[None], progress: Progress) -> AsyncGenerator[Progress, None]:
    """The job's progress every half second until it is done. Raises what it raises; left, it cancels the job."""
    last: Progress | None = None
    try:
        while not job.done():
            await asyncio.wait({job}, timeout=PROGRESS_SECONDS)
            last = replace(progress)
            yield last
        await job
        if progress != last:
            yield progress
    finally:
        job.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await job
        del job  # holds the error, whose traceback holds this frame


def _cold(store: EmbeddingStore, samples: SampleStore, ids: Ids) -> np.ndarray:
    """Positions of those without a stored embedding, each once, ascending. Raises NotFound for an unknown sample."""
    store.refresh()
    packed = pack(ids)
    # Of all of them: a source that was made anew may lack samples whose embeddings are still stored.
    positions = samples.positions(packed)
    return np.unique(positions[~store.has(packed)])


def _finish(store: EmbeddingStore, backlog: Backlog, work: Work) -> None:
    store.append(work.ids, np.concatenate(work.embeddings), work.prefix)
    backlog.done(work)


async def _to_its_end(function: Callable[[], _T]) -> _T:
    """Run in a thread; a cancelled caller waits for its end, so that nothing is written or claimed behind its back."""
    running = asyncio.create_task(asyncio.to_thread(function))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        with suppress(Exception):
            await running
        raise
