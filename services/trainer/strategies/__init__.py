"""Query strategies by name: the one table that configurations, reports and tests read."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from services.common.errors import BadConfig, did_you_mean
from services.trainer.strategies.auto import AUTO
from services.trainer.strategies.badge import BADGE
from services.trainer.strategies.centroids import CENTROIDS
from services.trainer.strategies.class_balanced import CLASS_BALANCED
from services.trainer.strategies.cluster_margin import CLUSTER_MARGIN
from services.trainer.strategies.consensus_entropy import CONSENSUS_ENTROPY
from services.trainer.strategies.core import ScoredPool, Strategy
from services.trainer.strategies.drop_query import DROP_QUERY
from services.trainer.strategies.entropy import ENTROPY
from services.trainer.strategies.herding import UNCERTAINTY_HERDING
from services.trainer.strategies.k_center import K_CENTER
from services.trainer.strategies.kept import Kept
from services.trainer.strategies.least_confidence import LEAST_CONFIDENCE
from services.trainer.strategies.margin import MARGIN
from services.trainer.strategies.mean_kl import BALD, MEAN_KL
from services.trainer.strategies.mean_std import MEAN_STD
from services.trainer.strategies.plugins import installed, with_plugins
from services.trainer.strategies.power_margin import POWER_MARGIN
from services.trainer.strategies.prob_cover import PROB_COVER
from services.trainer.strategies.random import RANDOM
from services.trainer.strategies.typiclust import TYPICLUST
from services.trainer.strategies.variation_ratios import VARIATION_RATIOS
from services.trainer.strategies.vote_entropy import VOTE_ENTROPY

# What comes with Querent; `strategies()` adds what installed packages bring.
STRATEGIES: dict[str, Strategy] = {
    s.name: s
    for s in (
        RANDOM,
        LEAST_CONFIDENCE,
        MARGIN,
        ENTROPY,
        POWER_MARGIN,
        CLASS_BALANCED,
        MEAN_STD,
        VARIATION_RATIOS,
        VOTE_ENTROPY,
        CONSENSUS_ENTROPY,
        MEAN_KL,
        BALD,
        K_CENTER,
        BADGE,
        CLUSTER_MARGIN,
        DROP_QUERY,
        CENTROIDS,
        TYPICLUST,
        PROB_COVER,
        UNCERTAINTY_HERDING,
        AUTO,
    )
}


@cache
def strategies() -> Mapping[str, Strategy]:
    """The built-in strategies and those of installed packages. Raises BadConfig when one of these is broken."""
    return MappingProxyType(with_plugins(STRATEGIES, installed()))


def strategy(name: str) -> Strategy:
    """Raises BadConfig naming the nearest strategy."""
    if name in STRATEGIES:  # a broken package must not stop a campaign that does not ask for it
        return STRATEGIES[name]
    table = strategies()
    if name not in table:
        raise BadConfig(f"unknown strategy {name!r}; {did_you_mean(name, table)}")
    return table[name]


__all__ = ["STRATEGIES", "Kept", "ScoredPool", "Strategy", "strategies", "strategy"]
