import pytest

from services.trainer.comparison.config import ComparisonConfig
from services.trainer.comparison.curve import Study
from services.trainer.comparison.scoring import Embedded
from services.trainer.config import parse_section
from tests.fakes import FakePool

RAW = {
    "name": "study",
    "source": {"kind": "cifar10", "size": 8},
    "strategies": ["margin"],
    "backbones": {"small": {"name": "base_cnn", "weights": "none"}},
    "seeds": 2,
    "initial": {"labels": 10},
    "batch": 10,
    "budget": 30,
}


def make_comparison(**changes) -> ComparisonConfig:
    return parse_section(ComparisonConfig, {**RAW, **changes}, "test")


def make_study(pool: FakePool) -> Study:
    ids = (*pool.pool_ids, *pool.test_ids)
    embedded = Embedded(ids, pool.embeddings(ids))
    return Study(pool.pool_ids, pool.test_ids, pool.truth, 2, embedded, "fake/fake")


@pytest.fixture
def pool() -> FakePool:
    return FakePool()


@pytest.fixture
def study(pool) -> Study:
    return make_study(pool)
