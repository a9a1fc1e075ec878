"""The worker's composition root: what a campaign's rounds work with, built from Settings.

Apart from wiring, so that commands such as `al-trainer list` do not wait for onnx and scikit-learn.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from prometheus_client import REGISTRY

from services.common.registry import Registry
from services.common.samples import SampleStore, read_source
from services.trainer.campaign import Campaign
from services.trainer.comparison.report import write_report
from services.trainer.comparison.running import CellRunner, StoredStudies
from services.trainer.comparison.store import ComparisonStore
from services.trainer.database import open_database
from services.trainer.export import OnnxExporter
from services.trainer.learners import make_learner
from services.trainer.learning import Watch
from services.trainer.metrics import TrainerMetrics
from services.trainer.oracle import SimulatedOracle, mistakes, read_truth
from services.trainer.pool_scorer import GrpcPoolScorer, Version
from services.trainer.reporting import write_campaign_report
from services.trainer.rounds import OnStep, Tools, ignore_step
from services.trainer.settings import Settings
from services.trainer.strategies import Kept
from services.trainer.task_runner import TaskRunner
from services.trainer.variants import Variants
from services.trainer.wiring import open_stores, report_folders, settings
from services.trainer.worker import worker_name

PARITY_IMAGES = 256


def build_task_runner(config: Settings, on_step: OnStep = ignore_step) -> TaskRunner:
    stores = open_stores(config)
    stores.registry.repair()
    toolbox = _Toolbox(config, stores.registry)

    def report(campaign: Campaign, reason: str) -> None:
        write_campaign_report(stores.campaigns, stores.registry, report_folders(config), campaign.name, reason)

    return TaskRunner(
        store=stores.campaigns,
        leases=stores.leases,
        registry=stores.registry,
        make_tools=toolbox.tools,
        metrics=TrainerMetrics(REGISTRY),
        owner=worker_name(),
        lease_seconds=config.lease_seconds,
        on_finished=report,
        on_step=on_step,
    )


_installed: list[TaskRunner] = []


def install(runner: TaskRunner) -> None:
    """Use this runner for the process's tasks; once, before the worker starts."""
    _installed[:] = [runner]


def task_runner() -> TaskRunner:
    if not _installed:
        install(build_task_runner(settings()))
    return _installed[0]


@lru_cache(maxsize=1)
def cell_runner() -> CellRunner:
    """For the cells of comparisons; it ends with the process's tasks."""
    config = settings()
    store = ComparisonStore(open_database(config.database_url))
    studies = StoredStudies(config, config.thread_count)
    return CellRunner(store, studies, worker_name(), config.lease_seconds, config.thread_count, task_runner().stop)


def report_when_over(store: ComparisonStore, name: str) -> None:
    """The worker that saves the last cell of a comparison or a grid search writes its report."""
    comparison = store.comparison(name)
    if store.tally(comparison).over:
        plan = comparison.config
        write_report(settings().reports_dir / plan.kind / name, plan, store.results(comparison))


class _Toolbox:
    """Makes a campaign's tools; what campaigns share is made once."""

    def __init__(self, config: Settings, registry: Registry) -> None:
        self._config = config
        self._registry = registry
        self._kept = Kept()
        self._scorer = GrpcPoolScorer(
            config.inference_address, config.embeddings_dir, config.scoring_parallelism, config.inference_access
        )

    def tools(self, campaign: Campaign, watch: Watch) -> Tools:
        config = self._config
        samples = _sample_store(config.sources_dir, config.data_dir, campaign.source_id)
        truth = _truth(config.sources_dir, campaign.source_id)
        pool_ids, test_ids = tuple(samples.ids("pool")), tuple(samples.ids("test"))

        def embeddings(ids: Sequence[str]) -> np.ndarray:
            newest = self._registry.manifest(campaign.name, self._registry.versions(campaign.name)[-1])
            return self._scorer.embeddings(Version.of(newest, campaign.source_id), ids, watch)

        def parity_images() -> np.ndarray:
            return samples.images(sorted([*pool_ids, *test_ids])[:PARITY_IMAGES])

        return Tools(
            pool_ids=pool_ids,
            test_ids=test_ids,
            test_truth=np.array([truth[i] for i in test_ids], np.int64),
            oracle=SimulatedOracle(truth, mistakes(campaign.config.oracle, campaign.config.seed, campaign.classes)),
            scorer=self._scorer,
            learner=make_learner(
                campaign.config,
                source_height=samples.source.height,
                source_width=samples.source.width,
                weights_dir=config.weights_dir,
                cache_dir=config.cache_dir,
                embeddings=embeddings,
                images=samples.images,
                threads=config.thread_count,
                pool_ids=pool_ids,
            ),
            exporter=OnnxExporter(
                parity_images,
                samples.images,
                config.thread_count,
                Variants(campaign.config.export.variants, pool_ids, samples.images, config.thread_count),
            ),
            kept=self._kept,
        )


@lru_cache(maxsize=4)
def _sample_store(sources_dir: Path, data_dir: Path, source_id: str) -> SampleStore:
    return SampleStore.open(sources_dir, data_dir, source_id)


@lru_cache(maxsize=4)
def _truth(sources_dir: Path, source_id: str) -> dict[str, int]:
    return read_truth(sources_dir, read_source(sources_dir, source_id))
