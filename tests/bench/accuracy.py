"""make bench-accuracy: accuracy by labels on CIFAR-10 with frozen VGG16, random against margin, five paired seeds.

The images are embedded by a real inference process, once, into the shared embedding store. The rounds are the
product's own (RoundRunner over a database of their own); only the export to ONNX is left out, because 150 versions of
60 MB would say nothing about accuracy. Scores come from the stored embeddings in this process, by the acquisition
functions that inference uses.
"""

import argparse
import csv
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services.common.acquisition import acquisition_named, member_probabilities
from services.common.observability import configure_logging
from services.common.registry import Registry
from services.common.samples import SampleStore, Source
from services.demo.ports import choose
from services.demo.processes import Supervisor
from services.demo.services import Ports, start_inference
from services.trainer.campaign import Campaign
from services.trainer.campaign_store import CampaignStore
from services.trainer.config import CampaignConfig, load_config
from services.trainer.database import open_database
from services.trainer.learning import FittedModel, SilentWatch, VersionFacts, Watch
from services.trainer.leases import LeaseStore
from services.trainer.oracle import SimulatedOracle, read_truth
from services.trainer.pool_scorer import GrpcPoolScorer, Version
from services.trainer.rounds import RoundRunner, Tools
from services.trainer.settings import Settings
from services.trainer.sources import make_source
from tests.bench.backbone import CAMPAIGN, learner, publish_backbone
from tests.fakes import FakeExporter, FakePool

CONFIG = Path("examples/cifar10-vgg16.yaml")
STRATEGIES = ("random", "margin")
# Accuracy at the whole budget that an independent measurement reached with the same weights and a logistic head.
MEASURED_ELSEWHERE = {"random": 0.66, "margin": 0.67}


class RememberingExporter(FakeExporter):
    """Writes no graph, and remembers each version's head for the scorer."""

    def __init__(self) -> None:
        super().__init__(FakePool(1, 1))
        self.heads: dict[int, FittedModel] = {}

    def stage(self, model: FittedModel, facts: VersionFacts, extra: dict[str, bytes], folder: Path, watch: Watch):
        self.heads[facts.version] = model
        return super().stage(model, facts, extra, folder, watch)


class InProcessScorer:
    """PoolScorer on embeddings in memory."""

    def __init__(self, embeddings: dict[str, np.ndarray], exporter: RememberingExporter) -> None:
        self._embeddings = embeddings
        self._exporter = exporter

    def score(self, at: Version, ids: Sequence[str], acquisition: str, watch: Watch) -> np.ndarray:
        logits = self._exporter.heads[at.version].head.logits(self.of(ids))
        return acquisition_named(acquisition)(member_probabilities(logits))

    def embeddings(self, at: Version, ids: Sequence[str], watch: Watch) -> np.ndarray:
        return self.of(ids)

    def of(self, ids: Sequence[str]) -> np.ndarray:
        return np.stack([self._embeddings[i] for i in ids])


def embed(config: CampaignConfig, source: Source, samples: SampleStore, settings: Settings) -> dict[str, np.ndarray]:
    """Every pool and test sample through a real inference process; the store keeps them for the next time."""
    ids = [*samples.ids("pool"), *samples.ids("test")]
    with (
        tempfile.TemporaryDirectory(dir=settings.cache_dir.parent) as folder,
        Supervisor(Path(folder) / "logs") as children,
    ):
        registry = Registry(Path(folder) / "registry")
        publish_backbone(registry, config, source, samples, settings)
        ports = Ports(*choose((8001, 8002, 8003)))
        environment = {
            **os.environ,
            **ports.environment(),
            "INFERENCE_REGISTRY_DIR": str(registry.root),
            "INFERENCE_SOURCES_DIR": str(settings.sources_dir),
            "INFERENCE_EMBEDDINGS_DIR": str(settings.embeddings_dir),
            "QUERENT_DATA_DIR": str(settings.data_dir),
        }
        start_inference(children, environment, ports)
        scorer = GrpcPoolScorer(ports.address, settings.embeddings_dir, 1)
        with Progress() as bars:
            bar = bars.add_task("embedding", total=len(ids))

            class Watching(SilentWatch):
                def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
                    bars.update(bar, completed=done)

            rows = scorer.embeddings(Version(CAMPAIGN, 1, source.source_id), ids, Watching())
        scorer.close()
    return dict(zip(ids, rows, strict=True))


def run_campaign(
    campaign: Campaign, store: CampaignStore, leases: LeaseStore, registry: Registry, tools: Tools
) -> None:
    lease = leases.take_lease(campaign.name, "bench", 3600)
    assert lease is not None
    runner = RoundRunner(store, registry, campaign, tools, lease, SilentWatch())
    for round_no in range(campaign.config.last_round + 1):
        if round_no:
            store.begin_round(lease, round_no, campaign.config.strategy_of(round_no))
            runner.select_batch(round_no)
        runner.train_round(round_no)


def curve(store: CampaignStore, name: str) -> dict[int, float]:
    """labels -> test accuracy"""
    rounds = [r.report for r in store.rounds(name) if r.round_no > 0]
    return {report["labels"]: report["metrics"]["test"]["accuracy"] for report in rounds}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--config", type=Path, default=CONFIG)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--csv", type=Path, help="write every accuracy to this file")
    given = arguments.parse_args()
    configure_logging("WARNING", "console")
    settings, config = Settings(), load_config(given.config)
    source = make_source(config.source, settings.data_dir, settings.sources_dir, lambda *_: None)
    samples = SampleStore.open(settings.sources_dir, settings.data_dir, source.source_id)
    embeddings = embed(config, source, samples, settings)
    truth = read_truth(settings.sources_dir, source)
    curves: dict[str, list[dict[int, float]]] = {name: [] for name in STRATEGIES}
    with tempfile.TemporaryDirectory() as folder, Progress() as bars:
        engine = open_database(f"sqlite:///{folder}/bench.db")
        store, leases, registry = CampaignStore(engine), LeaseStore(engine), Registry(Path(folder) / "registry")
        bar = bars.add_task("campaigns", total=given.seeds * len(STRATEGIES))
        for seed in range(given.seeds):
            for strategy in STRATEGIES:
                changed = config.model_copy(update={"seed": seed, "strategy": strategy, "promotion": "always"})
                campaign = store.create(changed, source.source_id, source.classes)
                exporter = RememberingExporter()
                scorer = InProcessScorer(embeddings, exporter)
                tests = tuple(samples.ids("test"))
                tools = Tools(
                    tuple(samples.ids("pool")),
                    tests,
                    np.array([truth[i] for i in tests]),
                    SimulatedOracle(truth),
                    scorer,
                    learner(changed, source, samples, settings, embeddings),
                    exporter,
                )
                run_campaign(campaign, store, leases, registry, tools)
                curves[strategy].append(curve(store, campaign.name))
                bars.advance(bar)
    show(curves, config)
    if given.csv:
        write_csv(given.csv, curves)


def show(curves: dict[str, list[dict[int, float]]], config: CampaignConfig) -> None:
    budget = config.budget
    labels = [n for n in (200, 500, 1000, budget) if n in curves["random"][0]]
    seeds = len(curves["random"])
    table = Table("strategy", *(f"{n} labels" for n in labels), "reference", title=f"test accuracy, {seeds} seeds")
    for name, runs in curves.items():
        cells = []
        for n in labels:
            values = 100 * np.array([run[n] for run in runs])
            spread = f" ± {values.std(ddof=1):.1f}" if seeds > 1 else ""
            cells.append(f"{values.mean():.1f}%{spread}")
        table.add_row(name, *cells, f"{100 * MEASURED_ELSEWHERE[name]:.0f}%")
    Console().print(table)
    difference = 100 * np.array(
        [m[budget] - r[budget] for m, r in zip(curves["margin"], curves["random"], strict=True)]
    )
    told = ", ".join(f"{d:+.1f}" for d in difference)
    Console().print(
        f"margin minus random at {budget} labels, by seed, in points: {told} (mean {difference.mean():+.2f})"
    )


def write_csv(path: Path, curves: dict[str, list[dict[int, float]]]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["strategy", "seed", "labels", "accuracy"])
        for name, runs in curves.items():
            for seed, run in enumerate(runs):
                rows.writerows([name, seed, n, accuracy] for n, accuracy in run.items())


if __name__ == "__main__":
    main()
