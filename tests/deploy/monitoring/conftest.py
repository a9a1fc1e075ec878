import pytest

from tests.debian import program

PACKAGES = ("prometheus", "prometheus-alertmanager")


@pytest.fixture(scope="session")
def debian():
    """Gives a program of the packages by name."""
    return lambda name: program(name, *PACKAGES)
