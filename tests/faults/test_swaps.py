"""Swapping versions under load, and memory over many swaps, in a real server with networks of a real size."""

import statistics
import time
from dataclasses import dataclass

import pytest

from tests.faults.callers import calling
from tests.faults.swapping import (
    Versions,
    jpeg,
    memory_over_swaps,
    promote_in_a_row,
    records,
    serving_since,
    untimely,
)
from tests.tiny_models import running_inference

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]

CALLERS = 32
REPEATS = 3
TRIES = 6
GAP_MS = 100
QUIET_SECONDS = 6.0
MANY_SWAPS = 200
WARM_UP_SWAPS = 20
# What 200 swaps may add. Without malloc_trim the demo's network adds 160 MB.
GROWTH_MB = 30


@dataclass(frozen=True)
class Figures:
    answers: int
    p99_before_ms: float
    p99_ms: float
    gap_before_ms: float
    gap_ms: float

    def __str__(self) -> str:
        return (
            f"{self.answers} answers; p99 {self.p99_before_ms:.0f} -> {self.p99_ms:.0f} ms; "
            f"longest gap {self.gap_before_ms:.0f} -> {self.gap_ms:.0f} ms"
        )


def test_twenty_swaps_under_32_callers(versions: Versions) -> None:
    """Timings are medians over the repeats in which the machine was quiet enough to tell; the rest holds each time."""
    figures: list[Figures] = []
    for _ in range(TRIES):
        each = swap_under_load(versions)
        print(each)
        if each.gap_before_ms < GAP_MS:
            figures.append(each)
        if len(figures) == REPEATS:
            break
    if len(figures) < REPEATS:
        pytest.skip(f"other work on this machine makes gaps of over {GAP_MS} ms without any swap")
    assert statistics.median(f.gap_ms for f in figures) < GAP_MS
    assert statistics.median(f.p99_ms / f.p99_before_ms for f in figures) < 2


def swap_under_load(versions: Versions) -> Figures:
    first, *others = versions.numbers
    versions.promote(first)
    # A second between looks, as by default.
    with running_inference(versions.folders, INFERENCE_POLL_SECONDS="1") as server:
        with calling(server.address, jpeg(), CALLERS) as load:
            time.sleep(1)
            began = time.time()
            time.sleep(QUIET_SECONDS)
            swapping = time.time()
            promoted = promote_in_a_row(server, versions, others)
            time.sleep(1)  # so that the last version answers calls that began under it
            ended = time.time()
        since, loads = serving_since(server), records(server, "model_loaded")
    assert load.answers.failed == 0
    assert untimely(load.answers, since, promoted) == []
    assert set(load.answers.version) == set(versions.numbers)
    assert [record["version"] for record in loads] == list(versions.numbers)
    before, during = load.answers.between(began, swapping), load.answers.between(swapping, ended)
    return Figures(
        len(load.answers.ended), before.p99_ms(), during.p99_ms(), before.longest_gap_ms(), during.longest_gap_ms()
    )


def test_memory_is_flat_over_two_hundred_swaps(versions: Versions) -> None:
    after = memory_over_swaps(versions, WARM_UP_SWAPS + MANY_SWAPS)
    first, last = statistics.median(after[WARM_UP_SWAPS - 5 : WARM_UP_SWAPS + 5]), statistics.median(after[-10:])
    print(f"RssAnon after {WARM_UP_SWAPS} swaps {first:.0f} MB, after {MANY_SWAPS} more {last:.0f} MB")
    assert last - first < GROWTH_MB
