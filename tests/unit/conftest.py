import uuid

import pytest

from tests.postgres import Postgres


@pytest.fixture(scope="session")
def postgres():
    # Nothing of it has to outlive a crash of the machine.
    server = Postgres("-c", "fsync=off")
    server.start()
    yield server
    server.remove()


def pytest_generate_tests(metafunc):
    """In a module with ON_BOTH_DATABASES, tests that use a database run on PostgreSQL too."""
    if "database_kind" in metafunc.fixturenames:
        both = getattr(metafunc.module, "ON_BOTH_DATABASES", False)
        postgresql = [pytest.param("postgresql", marks=pytest.mark.slow)] if both else []
        metafunc.parametrize("database_kind", ["sqlite", *postgresql])


@pytest.fixture
def database_url(database_kind, request, tmp_path):
    """Of an empty database."""
    if database_kind == "sqlite":
        yield f"sqlite:///{tmp_path}/trainer.db"
        return
    with request.getfixturevalue("postgres").database(f"test_{uuid.uuid4().hex}") as url:
        yield url
