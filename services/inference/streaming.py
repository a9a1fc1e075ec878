"""Scoring stored embeddings by streaming: blocks of the memory map, several threads, one float a sample kept."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor

import numpy as np

from services.common.acquisition import Acquisition, member_probabilities
from services.inference.embedding import Progress
from services.inference.metrics import Metrics
from services.inference.model import Model

# A thread takes blocks for this long before it goes to the end of the queue: a short call never waits for a long one.
SLICE_SECONDS = 0.1


class StreamedScores:
    """`scores` float32 (N,) of N stored embeddings. The (N, K, C) of a whole pool never exists."""

    def __init__(
        self,
        model: Model,
        blocks: Iterator[tuple[np.ndarray, np.ndarray]],
        acquisition: Acquisition,
        progress: Progress,
        metrics: Metrics,
    ) -> None:
        """`blocks`: (places among the N, float16 (n, D))."""
        self.scores = np.empty(progress.total, np.float32)
        self._model = model
        self._blocks = blocks
        self._acquisition = acquisition
        self._progress = progress
        self._metrics = metrics
        self._lock = threading.Lock()

    async def run(self, pool: Executor, workers: int) -> None:
        await asyncio.gather(*(self._work(pool) for _ in range(workers)))

    async def _work(self, pool: Executor) -> None:
        loop = asyncio.get_running_loop()
        while await loop.run_in_executor(pool, self._slice):
            pass

    def _slice(self) -> bool:
        """False when nothing is left."""
        until = time.monotonic() + SLICE_SECONDS
        try:
            while time.monotonic() < until:
                with self._lock:
                    block = next(self._blocks, None)
                if block is None:
                    return False
                self._score(*block)
        except BaseException:
            # The other threads end as well: nobody will see what they compute.
            with self._lock:
                self._blocks = iter(())
            raise
        return True

    def _score(self, places: np.ndarray, embeddings: np.ndarray) -> None:
        probabilities, logits = self._model.classify(embeddings)
        # Of a plain head the graph has computed them already, in a fifth of numpy's time.
        members = probabilities[:, None] if logits.shape[1] == 1 else member_probabilities(logits)
        self.scores[places] = self._acquisition(members)
        self._metrics.count_images(self._model.manifest, "score", len(places))
        with self._lock:
            self._progress.done += len(places)


def highest(scores: np.ndarray, top: int) -> np.ndarray:
    """Places of the `top` highest, highest first; equal ones keep their order."""
    negated = -scores
    places = np.arange(len(scores))
    if top < len(scores):
        places = np.flatnonzero(~(negated > np.partition(negated, top - 1)[top - 1]))
    return places[np.argsort(negated[places], kind="stable")][:top]
