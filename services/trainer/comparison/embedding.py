"""Embeddings for a comparison: computed by inference, once for each backbone and source, and shared with campaigns.

Inference embeds by a published version, so the bare backbone is published for as long as that takes, and never
promoted.
"""

import shutil
from collections.abc import Mapping

import numpy as np

from services.common.embeddings import EmbeddingStore
from services.common.errors import BadConfig, NotFound
from services.common.registry import Registry
from services.common.samples import SampleStore
from services.trainer.comparison.plans import Plan
from services.trainer.export import OnnxExporter
from services.trainer.learners import make_learner
from services.trainer.learning import FittedModel, VersionFacts, Watch
from services.trainer.pool_scorer import PoolScorer, Version
from services.trainer.settings import Settings

_PARITY_IMAGES = 256


def embed_all(
    config: Plan,
    samples: SampleStore,
    settings: Settings,
    registry: Registry,
    scorer: PoolScorer,
    watch: Watch,
) -> dict[str, str]:
    """Backbone's name -> embedding id; afterwards every sample that the cells look at has its row in the store.

    Learners that train their network embed for themselves. Raises MissingWeights.
    """
    ids = [*config.pool_rows(samples.ids("pool")), *samples.ids("test")]
    cells = config.cells()
    frozen = {cell.backbone for cell in cells if config.heads[cell.head].mode == "head"}
    models = _bare_models(config, samples, settings, watch)
    found = {}
    for name, model in models.items():
        store = EmbeddingStore(settings.embeddings_dir, model.embedding_id, samples.source.source_id)
        if name in frozen and store.missing(ids):
            _embed(model, ids, samples, settings, registry, scorer, watch)
        found[name] = model.embedding_id
    return found


class MissingWeights(NotFound):
    """Weights of some backbones cannot be had; the message says what was tried and how to get them."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        """`reasons`: by the backbone's own name."""
        super().__init__("\n".join(reasons.values()))
        self.reasons = reasons


def _bare_models(config: Plan, samples: SampleStore, settings: Settings, watch: Watch) -> dict[str, FittedModel]:
    """By the backbone's name in the plan. All are made before anything is embedded: what lacks is known early."""
    models, reasons = {}, {}
    for name, backbone in config.backbones.items():
        if backbone.name in reasons:
            continue
        try:
            models[name] = _bare(config, name, samples, settings, watch)
        except NotFound as error:
            reasons[backbone.name] = str(error)
    if reasons:
        raise MissingWeights(reasons)
    return models


def _bare(config: Plan, backbone: str, samples: SampleStore, settings: Settings, watch: Watch) -> FittedModel:
    """The backbone with a zero head."""
    cell = next(cell for cell in config.cells() if cell.backbone == backbone)

    def no_rows(_ids: object) -> np.ndarray:
        raise AssertionError("a zero head is fitted on nothing")

    learner = make_learner(
        config.campaign(cell),
        source_height=samples.source.height,
        source_width=samples.source.width,
        weights_dir=settings.weights_dir,
        cache_dir=settings.cache_dir,
        embeddings=no_rows,
        images=samples.images,
        threads=settings.thread_count,
    )
    return learner.initial_model(len(samples.source.classes), watch)


def _embed(
    model: FittedModel,
    ids: list[str],
    samples: SampleStore,
    settings: Settings,
    registry: Registry,
    scorer: PoolScorer,
    watch: Watch,
) -> None:
    source = samples.source
    name, classes = f"compare-{model.embedding_id}-{source.source_id}", source.classes
    if registry.versions(name) != [1]:
        registry.create_campaign(name, classes)
        shown = sorted(ids)[:_PARITY_IMAGES]
        exporter = OnnxExporter(lambda: samples.images(shown), samples.images, settings.thread_count)
        staged = registry.staging_dir()
        try:
            exporter.stage(model, VersionFacts(name, 1, 0, classes, 0, {}), {}, staged, watch)
            registry.publish(staged, name, 1)
        finally:
            shutil.rmtree(staged, ignore_errors=True)  # gone already when all went well
    at = Version.of(registry.manifest(name, 1), source.source_id)
    scorer.embeddings(at, ids, watch)
    registry.delete(name)


def check_source(config: Plan, samples: SampleStore) -> None:
    """Raises BadConfig when the source cannot carry the comparison."""
    splits = samples.source.splits
    if splits["pool"] < config.labels_needed:
        raise BadConfig(f"the pool has {splits['pool']} samples and the budget is {config.labels_needed} labels")
    if not splits["test"]:
        raise BadConfig("the source has no test samples; raise source.test_share or add a test split")
    if len(samples.source.classes) < 2:
        raise BadConfig(f"the source has {len(samples.source.classes)} class; a classifier needs two")
