"""Query strategies by name: the one table that configurations, reports and tests read."""

from services.common.errors import BadConfig, did_you_mean
from services.trainer.strategies.core import ScoredPool, Strategy
from services.trainer.strategies.entropy import ENTROPY
from services.trainer.strategies.k_center import K_CENTER
from services.trainer.strategies.least_confidence import LEAST_CONFIDENCE
from services.trainer.strategies.margin import MARGIN
from services.trainer.strategies.random import RANDOM

STRATEGIES: dict[str, Strategy] = {s.name: s for s in (RANDOM, LEAST_CONFIDENCE, MARGIN, ENTROPY, K_CENTER)}


def strategy(name: str) -> Strategy:
    """Raises BadConfig naming the nearest strategy."""
    if name not in STRATEGIES:
        raise BadConfig(f"unknown strategy {name!r}; {did_you_mean(name, STRATEGIES)}")
    return STRATEGIES[name]


__all__ = ["STRATEGIES", "ScoredPool", "Strategy", "strategy"]
