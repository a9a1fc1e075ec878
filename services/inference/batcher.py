"""The micro-batcher: joins images of many requests into one run of the network.

While nothing is running, what waits starts at once, or with what arrives in the same turn of the event loop. While
something is running, what waits is joined until a batch is full, or the oldest has waited max_delay, or the device
is idle again. Requests of a higher priority are taken first; those of one priority in the order they came.
"""

import asyncio
import math
import time
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass
from types import TracebackType

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


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting:
    model: Model
    images: np.ndarray
    answer: "asyncio.Future[Outputs]"
    arrived: float
    # On the loop's clock; inf when the caller waits for ever.
    deadline: float


class MicroBatcher:
    """One for each loaded model. It holds no reference to the model while it is idle, see Predictor.

    Everything happens on the event loop but the runs themselves, which are in `pool`.
    """

    def __init__(self, pool: Executor, rule: BatchRule, metrics: Metrics, statistics: Statistics) -> None:
        self._pool = pool
        self._rule = rule
        self._metrics = metrics
        self._statistics = statistics
        self.admitted = 0
        self._running = 0
        # Requests and images that wait, by priority.
        self._waiting: dict[int, deque[_Waiting]] = {priority: deque() for priority in PRIORITIES}
        self._images = 0
        # A look at what waits is due in the next turn of the loop, and what waited when that was decided.
        self._looking = False
        self._seen = 0
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, count: int) -> "Admission":
        """Room for `count` images of a request from before their decoding until its answer; raises Overloaded."""
        return Admission(self, self._statistics, count, self._rule.queue_limit)

    async def predict(
        self, model: Model, images: np.ndarray, deadline: float = math.inf, priority: int = NORMAL
    ) -> Outputs:
        """uint8 [N, H, W, 3] -> Outputs. Raises DeadlineExpired when its turn comes too late."""
        step = self._rule.max_batch
        if len(images) <= step:
            return await self._enqueue(model, images, deadline, priority)
        parts = [self._enqueue(model, images[i : i + step], deadline, priority) for i in range(0, len(images), step)]
        return Outputs.concatenate(await asyncio.gather(*parts))

    def _enqueue(self, model: Model, images: np.ndarray, deadline: float, priority: int) -> "asyncio.Future[Outputs]":
        loop = asyncio.get_running_loop()
        waiting = _Waiting(model, images, loop.create_future(), loop.time(), deadline)
        self._waiting[priority].append(waiting)
        self._images += len(images)
        self._statistics.pending += 1
        self._metrics.queue_depth.inc(len(images))
        if not self._looking and self._running < model.parallel_runs:
            self._look_soon(loop)
        return waiting.answer

    # ---- when to start -------------------------------------------------------------------------------

    def _look_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = True
        self._seen = self._images
        loop.call_soon(self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._looking = False
        arriving = self._images > self._seen
        if arriving and self._images < self._rule.max_batch and self._until_oldest_is_due(loop) > 0:
            # As long as each turn brings more: a run for the first of a burst would make all others wait for its end.
            self._look_soon(loop)
        else:
            self._start_runs(loop)

    def _start_runs(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._images:
            patience = self._patience(loop)
            if patience > 0:
                if not math.isinf(patience):
                    self._timer = loop.call_later(patience, self._start_runs, loop)
                return
            batch = self._take(loop)
            if batch:
                self._running += 1
                self._pool.submit(self._run, loop, batch)

    def _patience(self, loop: asyncio.AbstractEventLoop) -> float:
        """Seconds that the next run must still wait: 0 starts it, inf waits for a running one."""
        if self._running >= self._oldest().model.parallel_runs:
            return math.inf
        if self._running == 0 or self._images >= self._rule.max_batch:
            return 0.0
        return self._until_oldest_is_due(loop)

    def _until_oldest_is_due(self, loop: asyncio.AbstractEventLoop) -> float:
        return self._oldest().arrived + self._rule.max_delay_s - loop.time()

    def _oldest(self) -> _Waiting:
        return min((queue[0] for queue in self._waiting.values() if queue), key=lambda waiting: waiting.arrived)

    # ---- what to start -------------------------------------------------------------------------------

    def _take(self, loop: asyncio.AbstractEventLoop) -> list[_Waiting]:
        """The next batch, without requests that nobody waits for any more."""
        now = loop.time()
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

    # ---- a run ---------------------------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting]) -> None:
        """In a thread of the pool. The loop is woken once, whatever the batch's size."""
        started = joined = time.perf_counter_ns()
        result: Outputs | BaseException
        try:
            images = batch[0].images if len(batch) == 1 else np.concatenate([w.images for w in batch])
            joined = time.perf_counter_ns()
            result = batch[0].model.predict(images)
        except BaseException as error:
            result = error
        loop.call_soon_threadsafe(self._ran, loop, batch, result, joined - started, time.perf_counter_ns() - joined)

    def _ran(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[_Waiting],
        result: Outputs | BaseException,
        join_ns: int,
        run_ns: int,
    ) -> None:
        self._running -= 1
        if self._images and not self._looking:
            self._start_runs(loop)  # the device first: handing out takes a while
        images = sum(len(waiting.images) for waiting in batch)
        if isinstance(result, BaseException):
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(result)
        else:
            began = time.perf_counter_ns()
            _hand_out(batch, result)
            self._statistics.ran(images, len(batch), join_ns, run_ns, time.perf_counter_ns() - began)
        model = batch[0].model
        self._metrics.batch_size.observe(images)
        self._metrics.run_seconds.labels(model.name, model.version).observe(run_ns / 1e9)


class Admission:
    """The block in which a request is answered. Counts it by how the block ends."""

    __slots__ = ("_batcher", "_count", "_limit", "_started", "_statistics")

    def __init__(self, batcher: MicroBatcher, statistics: Statistics, count: int, limit: int) -> None:
        self._batcher = batcher
        self._statistics = statistics
        self._count = count
        self._limit = limit
        self._started = time.perf_counter_ns()

    def __enter__(self) -> None:
        admitted = self._batcher.admitted
        if admitted + self._count > self._limit:
            error = Overloaded(
                f"{admitted} images are waiting and {self._count} more do not fit; "
                f"the limit is {self._limit}; try again later"
            )
            self._statistics.ended(time.perf_counter_ns() - self._started, error)
            raise error
        self._batcher.admitted += self._count

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._batcher.admitted -= self._count
        self._statistics.ended(time.perf_counter_ns() - self._started, error)


def _hand_out(batch: list[_Waiting], outputs: Outputs) -> None:
    first = 0
    for waiting in batch:
        last = first + len(waiting.images)
        if not waiting.answer.done():
            waiting.answer.set_result(outputs[first:last])
        first = last
