"""How long a fuzz run is, and the server that it runs against.

FUZZ_REQUESTS  requests in all (default 400; `make fuzz` sends 5,000)
FUZZ_SEED      a number: other requests than every run's
"""

import os
from collections.abc import Iterator

import pytest

from tests.fuzz.target import Target, fuzzed_server


@pytest.fixture(scope="session")
def fuzz_requests() -> int:
    return int(os.environ.get("FUZZ_REQUESTS", "400"))


@pytest.fixture(scope="session")
def fuzz_seed() -> int | None:
    """None: the same requests each time."""
    seed = os.environ.get("FUZZ_SEED", "")
    return int(seed) if seed else None


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with fuzzed_server(tmp_path_factory.mktemp("fuzzed")) as running:
        yield running
        print(f"\nfuzz: {running.tally.told()}")
