"""Swaps of a real server, in short; tests/faults has them long and looks at the clock."""

import statistics
import time

import numpy as np
import pytest

from tests.faults.callers import Answers, calling
from tests.faults.swapping import (
    jpeg,
    memory_over_swaps,
    promote_in_a_row,
    records,
    serving_since,
    tiny_versions,
    untimely,
)
from tests.tiny_models import Folders, TinyModel, running_inference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("max_loaded", [1, 4])
def test_swaps_under_32_callers_fail_no_call_and_every_answer_is_of_a_current_version(
    folders: Folders, max_loaded: int
) -> None:
    versions = tiny_versions(folders, 7, TinyModel(work=2))
    with running_inference(folders, INFERENCE_MAX_LOADED=str(max_loaded)) as server:
        with calling(server.address, jpeg(), callers=32) as load:
            promoted = promote_in_a_row(server, versions, versions.numbers[1:])
            time.sleep(1)  # so that the last version answers calls that began under it
        since, loads = serving_since(server), records(server, "model_loaded")
    print(f"p99 {load.answers.p99_ms():.0f} ms, longest gap {load.answers.longest_gap_ms():.0f} ms")
    assert load.answers.failed == 0
    assert untimely(load.answers, since, promoted) == []
    assert set(load.answers.version) == set(versions.numbers)
    assert [record["version"] for record in loads] == list(versions.numbers)


@pytest.mark.parametrize(
    ("version", "call", "timely"),
    [
        (1, (5, 9), True),
        (1, (5, 11), True),
        (1, (11, 12), False),
        (2, (8, 9), False),
        (2, (9, 11), True),
        (3, (1, 9), False),
    ],
)
def test_an_answer_of_a_version_that_was_not_current_is_noticed(
    version: int, call: tuple[float, float], timely: bool
) -> None:
    answers = Answers(*(np.array([value]) for value in (*call, version, 0)))
    found = untimely(answers, since={1: 0.0, 2: 10.0, 3: 20.0}, promoted={2: 8.0, 3: 18.0})
    assert (found == []) == timely


def test_memory_stays_where_it_is_over_swaps(folders: Folders) -> None:
    """Without malloc_trim after each swap it grows by 40 MB and more."""
    after = memory_over_swaps(tiny_versions(folders, 2, TinyModel(ballast=14)), 25)
    assert statistics.median(after[-5:]) - after[0] < 20
