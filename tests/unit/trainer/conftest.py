import pytest

from services.common.registry import Registry
from services.trainer.campaign_store import CampaignStore
from services.trainer.config import parse_config
from services.trainer.database import open_database
from services.trainer.label_imports import LabelImports
from services.trainer.leases import LeaseStore
from tests.fakes import FakePool


def make_config(**changes):
    raw = {
        "name": "demo",
        "source": {"kind": "cifar10", "size": 8},
        "backbone": {"name": "base_cnn", "weights": "none"},
        "initial": {"labels": 10},
        "rounds": {"count": 2, "batch": 10},
        "strategy": "margin",
    }
    return parse_config({**raw, **changes}, "test")


@pytest.fixture
def engine(database_url):
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine):
    return CampaignStore(engine)


@pytest.fixture
def leases(engine):
    return LeaseStore(engine)


@pytest.fixture
def imports(engine):
    return LabelImports(engine)


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry")


@pytest.fixture
def pool():
    return FakePool()
