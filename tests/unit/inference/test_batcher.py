"""The batching rule, on a model that runs when the test says so."""

import asyncio
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from services.common.errors import DeadlineExpired, Overloaded
from services.inference.batcher import HIGH, LOW, NORMAL, BatchRule, MicroBatcher
from services.inference.metrics import Metrics
from services.inference.model import Outputs
from services.inference.statistics import Statistics


class FakeModel:
    """Gives each image's first pixel back; `held` stops its runs until it is set."""

    name, version = "fake", 1

    def __init__(self, parallel_runs: int = 1) -> None:
        self.parallel_runs = parallel_runs
        self.batches: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.fails = False

    def predict(self, images: np.ndarray) -> Outputs:
        self.batches.append(len(images))
        assert self.free.wait(10)
        if self.fails:
            raise RuntimeError("the device is gone")
        column = images[:, 0, 0, :1].astype(np.float32)
        return Outputs({"probabilities": column, "logits": column[:, None], "embedding": column})


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def batcher(pool: ThreadPoolExecutor, max_batch: int = 8, max_delay_s: float = 60, queue_limit: int = 100) -> Any:
    return MicroBatcher(pool, BatchRule(max_batch, max_delay_s, queue_limit), Metrics(), Statistics())


def image(value: int, count: int = 1) -> np.ndarray:
    return np.full((count, 2, 2, 3), value, np.uint8)


async def begun(model: FakeModel, runs: int) -> None:
    async with asyncio.timeout(5):
        while len(model.batches) < runs:
            await asyncio.sleep(0.001)


async def test_an_idle_device_starts_at_once_whatever_the_delay(pool: ThreadPoolExecutor) -> None:
    model = FakeModel()
    async with asyncio.timeout(5):  # far below the delay of 60 s
        outputs = await batcher(pool).predict(model, image(7))
    assert outputs.probabilities.tolist() == [[7]]


async def test_what_waits_is_joined_and_each_caller_gets_its_own_rows(pool: ThreadPoolExecutor) -> None:
    model, joined = FakeModel(), batcher(pool)
    model.free.clear()
    first = asyncio.create_task(joined.predict(model, image(0)))
    await begun(model, 1)
    others = [asyncio.create_task(joined.predict(model, image(i, count=i))) for i in (1, 2, 3)]
    await asyncio.sleep(0.01)
    model.free.set()
    await first
    for i, other in zip((1, 2, 3), others, strict=True):
        assert (await other).probabilities.tolist() == [[i]] * i
    assert model.batches == [1, 6]


async def test_a_batch_is_never_larger_than_the_limit_and_large_requests_are_split(pool: ThreadPoolExecutor) -> None:
    model = FakeModel()
    outputs = await batcher(pool, max_batch=4).predict(model, np.concatenate([image(i) for i in range(10)]))
    assert outputs.probabilities[:, 0].tolist() == list(range(10))
    assert sum(model.batches) == 10
    assert max(model.batches) <= 4


async def test_while_something_runs_a_full_batch_starts_and_a_small_one_waits_for_its_delay(
    pool: ThreadPoolExecutor,
) -> None:
    model, joined = FakeModel(parallel_runs=2), batcher(pool, max_batch=2, max_delay_s=0.1)
    model.free.clear()
    calls = [asyncio.create_task(joined.predict(model, image(0)))]
    await begun(model, 1)
    calls += [asyncio.create_task(joined.predict(model, image(i))) for i in (1, 2)]
    await begun(model, 2)
    assert model.batches == [1, 2]
    model.free.set()
    await asyncio.gather(*calls)

    model.free.clear()
    calls = [asyncio.create_task(joined.predict(model, image(0)))]
    await begun(model, 3)
    calls.append(asyncio.create_task(joined.predict(model, image(1))))
    await asyncio.sleep(0.03)
    assert len(model.batches) == 3
    await begun(model, 4)
    model.free.set()
    await asyncio.gather(*calls)


async def test_a_caller_who_went_away_is_not_computed(pool: ThreadPoolExecutor) -> None:
    model, joined = FakeModel(), batcher(pool)
    model.free.clear()
    first = asyncio.create_task(joined.predict(model, image(0)))
    await begun(model, 1)
    gone = asyncio.create_task(joined.predict(model, image(1)))
    stays = asyncio.create_task(joined.predict(model, image(2)))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.sleep(0)
    model.free.set()
    assert (await stays).probabilities.tolist() == [[2]]
    await first
    assert model.batches == [1, 1]


async def test_a_passed_deadline_is_told_and_not_computed(pool: ThreadPoolExecutor) -> None:
    model, joined = FakeModel(), batcher(pool)
    model.free.clear()
    first = asyncio.create_task(joined.predict(model, image(0)))
    await begun(model, 1)
    late = asyncio.create_task(joined.predict(model, image(1), asyncio.get_running_loop().time() + 0.01))
    await asyncio.sleep(0.05)
    model.free.set()
    await first
    with pytest.raises(DeadlineExpired):
        await late
    assert model.batches == [1]


async def test_a_full_queue_refuses_and_has_room_again_afterwards(pool: ThreadPoolExecutor) -> None:
    joined = batcher(pool, queue_limit=3)
    with joined.admit(2):
        with pytest.raises(Overloaded, match="limit is 3"), joined.admit(2):
            pass
        with joined.admit(1):
            pass
    with joined.admit(3):
        pass


async def test_a_failing_run_fails_its_callers_and_not_the_next(pool: ThreadPoolExecutor) -> None:
    model, joined = FakeModel(), batcher(pool)
    model.fails = True
    with pytest.raises(RuntimeError, match="device is gone"):
        await joined.predict(model, image(0))
    model.fails = False
    assert (await joined.predict(model, image(5))).probabilities.tolist() == [[5]]


async def test_a_higher_priority_is_taken_first_and_equals_in_the_order_they_came(pool: ThreadPoolExecutor) -> None:
    model, joined = FakeModel(), batcher(pool, max_batch=1)
    finished: list[int] = []

    async def call(value: int, priority: int) -> None:
        await joined.predict(model, image(value), priority=priority)
        finished.append(value)

    model.free.clear()
    calls = [asyncio.create_task(call(0, LOW))]
    await begun(model, 1)
    for value, priority in ((1, LOW), (2, NORMAL), (3, HIGH), (4, NORMAL), (5, HIGH)):
        calls.append(asyncio.create_task(call(value, priority)))
    await asyncio.sleep(0.01)
    model.free.set()
    await asyncio.gather(*calls)
    assert finished == [0, 3, 5, 2, 4, 1]


async def test_a_large_request_is_not_overtaken_by_a_small_one_of_lower_priority(pool: ThreadPoolExecutor) -> None:
    model, joined = FakeModel(), batcher(pool, max_batch=4)
    model.free.clear()
    calls = [asyncio.create_task(joined.predict(model, image(0)))]
    await begun(model, 1)
    for count, priority in ((2, HIGH), (3, HIGH), (2, NORMAL)):
        calls.append(asyncio.create_task(joined.predict(model, image(1, count), priority=priority)))
    await asyncio.sleep(0.01)
    model.free.set()
    await asyncio.gather(*calls)
    assert model.batches == [1, 2, 3, 2]


async def test_statistics_tell_images_runs_and_what_became_of_each_request(pool: ThreadPoolExecutor) -> None:
    model, statistics, metrics = FakeModel(), Statistics(), Metrics()
    joined = MicroBatcher(pool, BatchRule(8, 60, 7), metrics, statistics)

    async def call(count: int, deadline: float = math.inf) -> None:
        with joined.admit(count):
            await joined.predict(model, image(1, count), deadline)

    model.free.clear()
    first = asyncio.create_task(call(1))
    await begun(model, 1)
    late = asyncio.create_task(call(1, deadline=asyncio.get_running_loop().time()))
    gone = asyncio.create_task(call(1))
    others = [asyncio.create_task(call(2)), asyncio.create_task(call(2))]
    await asyncio.sleep(0.01)
    assert statistics.pending == 4
    gone.cancel()
    with pytest.raises(Overloaded):
        await call(3)
    model.free.set()
    await asyncio.gather(first, *others)
    with pytest.raises(DeadlineExpired):
        await late

    model.fails = True
    with pytest.raises(RuntimeError):
        await call(1)

    assert (statistics.inference_count, statistics.execution_count, statistics.pending) == (5, 2, 0)
    assert statistics.success.count == 3
    assert statistics.failures == {"CANCELED": 2, "REJECTED": 1, "BACKEND": 1}
    assert statistics.fail.count == 4
    assert statistics.compute_infer.count == 3  # the run of two requests counts for both, as Triton counts
    assert sorted(statistics.batches) == [1, 4]
    assert statistics.queue.ns > 0
    assert statistics.compute_infer.ns > 0
    dropped = {
        r: metrics.registry.get_sample_value("inference_dropped_requests_total", {"reason": r})
        for r in ("caller_gone", "deadline")
    }
    assert dropped == {"caller_gone": 1, "deadline": 1}
