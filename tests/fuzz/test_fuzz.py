"""Whatever is sent to either API: the answer is a documented status that says what is wrong, and the server lives.

`FUZZ_REQUESTS=5000 pytest tests/fuzz -s` is the whole run. A failure prints the request and how to send it again.
"""

import math
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import requests
from tests.fuzz.requests import Known, Request
from tests.fuzz.target import Target

# Kind -> its strategy and its share of the requests.
KINDS: dict[str, tuple[Callable[[Known], st.SearchStrategy[Request]], float]] = {
    "infer": (requests.infer_requests, 0.25),
    "predict": (requests.predict_requests, 0.16),
    "images": (requests.image_requests, 0.19),
    "bombs": (requests.bomb_requests, 0.01),
    "pool": (requests.pool_requests, 0.07),
    "feedback": (requests.feedback_requests, 0.07),
    "small": (requests.small_requests, 0.12),
    "mutated": (requests.mutated_requests, 0.12),
    "outside": (requests.outside_requests, 0.01),
}


@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:Generating overly large repr")  # of a name of a megabyte
@pytest.mark.parametrize("kind", KINDS)
def test_bad_requests_are_refused_with_a_reason(
    target: Target, kind: str, fuzz_requests: int, fuzz_seed: int | None
) -> None:
    strategy, share = KINDS[kind]
    count = math.ceil(fuzz_requests * share)
    target.tally.wanted += count

    @settings(
        max_examples=count,
        derandomize=fuzz_seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy(target.known))
    def check(request: Request) -> None:
        target.check(request)

    (check if fuzz_seed is None else seed(fuzz_seed)(check))()


def test_after_all_of_it_good_requests_are_answered_rightly_and_nothing_unforeseen_was_logged(target: Target) -> None:
    assert target.wrong_good_answers() == []
    assert target.logged_failures() == []
    assert target.tally.sent >= target.tally.wanted
