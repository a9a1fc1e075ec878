"""Strategies of other packages: what is found, and what is refused with the name of its package."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from services.common.errors import BadConfig
from services.trainer.strategies import STRATEGIES, Strategy
from services.trainer.strategies.plugins import GROUP, with_plugins


def pick(pool, budget, rng):
    return list(pool.ids[:budget])


@pytest.fixture
def entry(monkeypatch):
    """An entry point for some object of a module."""

    def make(name: str, thing: object = None, value: str = "my_package:THING") -> EntryPoint:
        module = ModuleType("my_package")
        module.THING = thing
        monkeypatch.setitem(sys.modules, "my_package", module)
        return EntryPoint(name, value, GROUP)

    return make


def test_an_installed_strategy_stands_beside_the_built_in_ones(entry):
    mine = Strategy("mine", pick)
    table = with_plugins(STRATEGIES, [entry("mine", mine)])
    assert table["mine"] is mine
    assert set(table) == {*STRATEGIES, "mine"}


def test_a_module_that_cannot_be_imported_is_named(entry):
    with pytest.raises(BadConfig, match=r"'mine'.*no_such_module:THING.*ModuleNotFoundError"):
        with_plugins(STRATEGIES, [entry("mine", value="no_such_module:THING")])


@pytest.mark.parametrize("thing", [pick, "margin", None])
def test_what_is_no_strategy_is_refused(entry, thing):
    with pytest.raises(BadConfig, match=r"expected services\.trainer\.strategies\.Strategy"):
        with_plugins(STRATEGIES, [entry("mine", thing)])


def test_a_name_that_is_taken_is_refused(entry):
    with pytest.raises(BadConfig, match="'margin', and so does Querent itself"):
        with_plugins(STRATEGIES, [entry("margin", Strategy("margin", pick))])
    with pytest.raises(BadConfig, match="'mine', and so does"):
        with_plugins(STRATEGIES, [entry("mine", Strategy("mine", pick))] * 2)


def test_a_strategy_that_calls_itself_otherwise_is_refused(entry):
    with pytest.raises(BadConfig, match="calls itself 'yours'"):
        with_plugins(STRATEGIES, [entry("mine", Strategy("yours", pick))])


PLUGIN = """
from services.trainer.strategies import Strategy
MINE = Strategy("mine", lambda pool, budget, rng: list(pool.ids[:budget]))
"""


def python(folder, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def installed(tmp_path):
    """A folder that holds a package as pip leaves it."""
    info = tmp_path / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = my_package:MINE\n")
    (tmp_path / "my_package.py").write_text(PLUGIN)
    return tmp_path


def test_a_package_on_the_path_is_found_by_its_metadata(installed):
    found = python(installed, "from services.trainer.strategies import strategy; print(strategy('mine').name)")
    assert found.strip() == "mine"


def test_a_broken_package_leaves_the_built_in_strategies_alone(installed):
    (installed / "my_package.py").write_text("raise RuntimeError('half installed')")
    code = """
from services.common.errors import BadConfig
from services.trainer.strategies import strategy
print(strategy("margin").name)
try:
    strategy("mine")
except BadConfig as error:
    print(error)
"""
    first, second = python(installed, code).splitlines()
    assert first == "margin"
    assert "'my-package'" in second
    assert "half installed" in second
