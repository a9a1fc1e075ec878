"""A campaign's backbone as a registry version, for benchmarks that need a served network and no labels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from services.common.registry import Registry
from services.common.samples import SampleStore, Source
from services.trainer.config import CampaignConfig
from services.trainer.export import OnnxExporter
from services.trainer.learners import make_learner
from services.trainer.learning import Learner, SilentWatch, VersionFacts
from services.trainer.settings import Settings

CAMPAIGN = "bench-1"


def learner(
    config: CampaignConfig,
    source: Source,
    samples: SampleStore,
    settings: Settings,
    embeddings: Mapping[str, np.ndarray],
) -> Learner:
    return make_learner(
        config,
        source_height=source.height,
        source_width=source.width,
        weights_dir=settings.weights_dir,
        cache_dir=settings.cache_dir,
        embeddings=lambda ids: np.stack([embeddings[i] for i in ids]),
        images=samples.images,
        threads=settings.thread_count,
        pool_ids=samples.ids("pool"),
    )


def publish_backbone(
    registry: Registry, config: CampaignConfig, source: Source, samples: SampleStore, settings: Settings
) -> Path:
    """Version 1 of CAMPAIGN, with a zero head: published and never promoted. Gives its folder."""
    model = learner(config, source, samples, settings, {}).initial_model(len(source.classes), SilentWatch())
    registry.create_campaign(CAMPAIGN, source.classes)
    staged = registry.staging_dir()
    shown = sorted([*samples.ids("pool"), *samples.ids("test")])[:256]
    exporter = OnnxExporter(lambda: samples.images(shown), samples.images, settings.thread_count)
    exporter.stage(model, VersionFacts(CAMPAIGN, 1, 0, source.classes, 0, {}), {}, staged, SilentWatch())
    registry.publish(staged, CAMPAIGN, 1)
    return registry.version_dir(CAMPAIGN, 1)
