"""The micro-batcher: joins images of many requests into one run of the network.

A waiting request starts at once while nothing is running. While something is running, what waits is joined
until a batch is full, or the oldest has waited max_delay, or the device is idle again. Requests of a higher
priority are taken first; those of one priority in the order they came.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from services.common.errors import DeadlineExpired, Overloaded
from services.inference.metrics import Metrics
from services.inference.model import Model, Outputs
from services.inference.statistics import Statistics

PRIORITIES = (1, 2, 3)
HIGH, NORMAL, LOW = PRIORITIES


@dataclass(frozen=True)
class BatchRule:
    max_batch: int
    max_delay_s: float
    # Images that may be admitted at once.
    queue_limit: int


@dataclass(frozen=True, eq=False)
class _Waiting:
    images: np.ndarray
    answer: "asyncio.Future[Outputs]"
    arrived: float
    # On the loop's clock; inf when the caller waits for ever.
    deadline: float


class MicroBatcher:
    """One for each loaded model. It holds no reference to the model while it is idle, see Predictor."""

    def __init__(self, pool: Executor, rule: BatchRule, metrics: Metrics, statistics: Statistics) -> None:
        self._pool = pool
        self._rule = rule
        self._metrics = metrics
        self._statistics = statistics
        self._admitted = 0
        self._running = 0
        # Requests and images that wait, by priority.
        self._waiting: dict[int, deque[_Waiting]] = {priority: deque() for priority in PRIORITIES}
        self._images = 0
        self._changed = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._runs: set[asyncio.Task[None]] = set()

    @contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Room for `count` images of a request from before their decoding until its answer. Raises Overloaded."""
        with self._statistics.request():
            if self._admitted + count > self._rule.queue_limit:
                raise Overloaded(
                    f"{self._admitted} images are waiting and {count} more do not fit; "
                    f"the limit is {self._rule.queue_limit}; try again later"
                )
            self._admitted += count
            try:
                yield
            finally:
                self._admitted -= count

    async def predict(
        self, model: Model, images: np.ndarray, deadline: float = math.inf, priority: int = NORMAL
    ) -> Outputs:
        """uint8 [N, H, W, 3] -> Outputs. Raises DeadlineExpired when its turn comes too late."""
        step = self._rule.max_batch
        parts = [self._enqueue(images[i : i + step], deadline, priority) for i in range(0, len(images), step)]
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._serve(model))
        self._changed.set()
        return Outputs.concatenate(await asyncio.gather(*parts))

    def _enqueue(self, images: np.ndarray, deadline: float, priority: int) -> "asyncio.Future[Outputs]":
        loop = asyncio.get_running_loop()
        waiting = _Waiting(images, loop.create_future(), loop.time(), deadline)
        self._waiting[priority].append(waiting)
        self._images += len(images)
        self._statistics.pending += 1
        self._metrics.queue_depth.inc(len(images))
        return waiting.answer

    async def _serve(self, model: Model) -> None:
        """Start runs until nothing waits any more."""
        while self._images:
            patience = self._patience(model.parallel_runs)
            if patience > 0:
                self._changed.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(None if math.isinf(patience) else patience):
                        await self._changed.wait()
                continue
            batch = self._take()
            if batch:
                self._running += 1
                run = asyncio.create_task(self._run(model, batch))
                self._runs.add(run)  # the loop itself keeps only a weak reference to a task
                run.add_done_callback(self._runs.discard)

    def _patience(self, slots: int) -> float:
        """Seconds that the next run must still wait: 0 starts it, inf waits for a running one."""
        if self._running >= slots:
            return math.inf
        if self._running == 0 or self._images >= self._rule.max_batch:
            return 0.0
        oldest = min(queue[0].arrived for queue in self._waiting.values() if queue)
        return oldest + self._rule.max_delay_s - asyncio.get_running_loop().time()

    def _take(self) -> list[_Waiting]:
        """The next batch, without requests that nobody waits for any more."""
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting] = []
        size = 0
        for queue in self._waiting.values():
            while queue and size + len(queue[0].images) <= self._rule.max_batch:
                waiting = self._leave(queue)
                if self._dropped(waiting, now):
                    continue
                self._metrics.queue_seconds.observe(now - waiting.arrived)
                self._statistics.queue.add(int((now - waiting.arrived) * 1e9))
                batch.append(waiting)
                size += len(waiting.images)
            if queue:  # what does not fit must not be overtaken by something smaller of a lower priority
                break
        return batch

    def _leave(self, queue: deque[_Waiting]) -> _Waiting:
        waiting = queue.popleft()
        self._images -= len(waiting.images)
        self._statistics.pending -= 1
        self._metrics.queue_depth.dec(len(waiting.images))
        return waiting

    def _dropped(self, waiting: _Waiting, now: float) -> bool:
        """Whether nobody waits for the answer any more; then it is never computed, and counted."""
        if waiting.answer.done():
            self._metrics.dropped.labels("caller_gone").inc()
            return True
        if waiting.deadline <= now:
            waiting.answer.set_exception(DeadlineExpired("the deadline passed while the request waited"))
            self._metrics.dropped.labels("deadline").inc()
            return True
        return False

    async def _run(self, model: Model, batch: list[_Waiting]) -> None:
        started = time.perf_counter_ns()
        images = batch[0].images if len(batch) == 1 else np.concatenate([w.images for w in batch])
        joined = ran = time.perf_counter_ns()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(self._pool, model.predict, images)
        except Exception as error:
            ran = time.perf_counter_ns()
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
        else:
            ran = time.perf_counter_ns()
            _hand_out(batch, outputs)
            ended = time.perf_counter_ns()
            self._statistics.ran(len(images), len(batch), joined - started, ran - joined, ended - ran)
        finally:
            self._running -= 1
            self._changed.set()
            self._metrics.batch_size.observe(len(images))
            self._metrics.run_seconds.labels(model.name, model.version).observe((ran - joined) / 1e9)


def _hand_out(batch: list[_Waiting], outputs: Outputs) -> None:
    first = 0
    for waiting in batch:
        last = first + len(waiting.images)
        if not waiting.answer.done():
            waiting.answer.set_result(outputs[first:last])
        first = last
