"""Strategies of other packages, found by the entry point group `querent.strategies`.

Each entry point names a `Strategy`; its name in the table is the entry point's. Packages are imported when the table is
first asked for, so that importing this package starts nothing.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from services.common.errors import BadConfig
from services.trainer.strategies.core import Strategy

GROUP = "querent.strategies"


def installed() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)


def with_plugins(built_in: Mapping[str, Strategy], found: Iterable[EntryPoint]) -> dict[str, Strategy]:
    """Raises BadConfig, naming the package, for a plugin that cannot be loaded or takes a name that is taken."""
    table = dict(built_in)
    origin = dict.fromkeys(built_in, "Querent itself")
    for entry in sorted(found, key=lambda e: (e.name, _package(e))):
        if entry.name in table:
            raise BadConfig(
                f"{_package(entry)} brings a strategy {entry.name!r}, and so does {origin[entry.name]}; "
                "uninstall one of them or rename its entry point"
            )
        table[entry.name] = _loaded(entry)
        origin[entry.name] = _package(entry)
    return table


def _loaded(entry: EntryPoint) -> Strategy:
    told = f"strategy {entry.name!r} of {_package(entry)} ({entry.value})"
    try:
        strategy = entry.load()
    # Anything may go wrong while somebody else's package is imported.
    except Exception as error:
        raise BadConfig(f"{told} cannot be loaded: {type(error).__name__}: {error}") from error
    if not isinstance(strategy, Strategy):
        raise BadConfig(f"{told} is a {type(strategy).__name__}; expected services.trainer.strategies.Strategy")
    if strategy.name != entry.name:
        raise BadConfig(f"{told} calls itself {strategy.name!r}; both names must be the same")
    return strategy


def _package(entry: EntryPoint) -> str:
    return f"package {entry.dist.name!r}" if entry.dist else "an unknown package"
