"""The trainer's composition root for commands: settings and state. The worker's own is worker_wiring."""

from dataclasses import dataclass
from functools import lru_cache

from services.common.bucket_registry import open_registry
from services.common.registry import Registry
from services.trainer.campaign_store import CampaignStore
from services.trainer.database import open_database
from services.trainer.label_imports import LabelImports
from services.trainer.leases import LeaseStore
from services.trainer.reporting import Folders
from services.trainer.settings import Settings


@dataclass(frozen=True)
class Stores:
    """The trainer's state: the database and the folders."""

    campaigns: CampaignStore
    leases: LeaseStore
    imports: LabelImports
    registry: Registry


@lru_cache(maxsize=1)
def settings() -> Settings:
    return Settings()


def report_folders(config: Settings) -> Folders:
    return Folders(config.reports_dir, config.sources_dir, config.data_dir)


def open_stores(config: Settings) -> Stores:
    """Raises BadConfig or Unavailable when the database cannot be opened."""
    engine = open_database(config.database_url)
    return Stores(
        CampaignStore(engine),
        LeaseStore(engine),
        LabelImports(engine),
        open_registry(config.registry_dir, config.registry_bucket),
    )
