"""Starting a campaign: everything that can be wrong is found before anything is created."""

from collections.abc import Collection
from pathlib import Path

from services.common.errors import BadConfig
from services.common.samples import Source
from services.trainer.campaign import Campaign
from services.trainer.campaign_store import CampaignStore
from services.trainer.config import CampaignConfig
from services.trainer.oracle import mistakes, read_truth
from services.trainer.sources import ProgressBar, make_source
from services.trainer.strategies import strategies, strategy


def start_campaign(
    config: CampaignConfig,
    store: CampaignStore,
    data_dir: Path,
    sources_dir: Path,
    progress: ProgressBar,
    taken: Collection[str] = (),
) -> Campaign:
    """Make or find the source, check the budget against it, and create the campaign.

    `taken`: names that the registry holds already. Raises BadConfig; nothing is created then, apart from a source
    that the next try finds ready.
    """
    check_strategies(config)
    source = make_source(config.source, data_dir, sources_dir, progress)
    _check(config, source, sources_dir)
    return store.create(config, source.source_id, source.classes, taken)


def check_strategies(config: CampaignConfig) -> None:
    """Raises BadConfig when a strategy is unknown, or asks for more than the campaign will have."""
    if strategy(config.initial.strategy).needs_model:
        usable = ", ".join(name for name, it in strategies().items() if not it.needs_model)
        raise BadConfig(f"initial.strategy {config.initial.strategy!r} needs a trained model; use one of: {usable}")
    if strategy(config.strategy).needs_committee and config.committee_size < 2:
        raise BadConfig(
            f"strategy {config.strategy!r} compares the members of a committee, and this learner fits a single model; "
            "use margin"
        )


def _check(config: CampaignConfig, source: Source, sources_dir: Path) -> None:
    pool = source.splits["pool"]
    if pool < config.budget:
        raise BadConfig(
            f"the pool has {pool} samples and the budget is {config.budget} labels "
            f"({config.initial.labels} + {config.rounds.count} x {config.rounds.batch}); "
            "lower rounds.count or rounds.batch, or add images"
        )
    if source.splits["test"] == 0:
        raise BadConfig("the source has no test samples; raise source.test_share or add a test split")
    if len(source.classes) < 2:
        raise BadConfig(f"the source has {len(source.classes)} class; a classifier needs two")
    read_truth(sources_dir, source)
    mistakes(config.oracle, config.seed, source.classes)
