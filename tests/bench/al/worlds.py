"""The two worlds of the benchmark: CIFAR-10 through a frozen backbone, embedded once by a real inference process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from services.common.embeddings import EmbeddingStore
from services.common.samples import SampleStore, Source
from services.trainer.comparison.cells import Cell
from services.trainer.comparison.curve import Study
from services.trainer.comparison.running import read_study
from services.trainer.comparison.scoring import Embedded
from services.trainer.config import (
    BackboneConfig,
    CampaignConfig,
    InitialConfig,
    LearnerConfig,
    RoundsConfig,
    load_config,
)
from services.trainer.learners import make_learner
from services.trainer.learning import Learner, SilentWatch
from services.trainer.settings import Settings
from services.trainer.sources import make_source
from tests.bench.accuracy import embed

INITIAL, BATCH, BUDGET = 100, 100, 1500
TESTS = 10_000
# The same head for every strategy. 0.01 is the best C from 500 labels on; searching would cost five times as much.
PLAIN = LearnerConfig(c_grid=(0.01,))


@dataclass(frozen=True)
class World:
    name: str
    # A campaign whose source and backbone these are; more test images than it has cost a minute, once.
    campaign: Path
    # As in a campaign: how many last stages give the embedding; None: what the campaign says.
    taps: int | None = None
    # px that the graph scales images up to; None: what the campaign says.
    input_size: int | None = None
    # False for features that only the label-saving pipeline uses.
    compared: bool = True

    def config(self) -> CampaignConfig:
        config = load_config(self.campaign)
        assert config.source.test is not None
        source = config.source.model_copy(update={"test": config.source.test.model_copy(update={"limit": TESTS})})
        own = {"taps": self.taps, "input_size": self.input_size}
        given = {name: value for name, value in own.items() if value is not None}
        backbone = BackboneConfig.model_validate({**config.backbone.model_dump(), **given})
        return config.model_copy(update={"source": source, "backbone": backbone})


VGG16 = World("vgg16", Path("examples/cifar10-vgg16.yaml"))
LITE0 = World("efficientnet-lite0", Path("examples/cifar10-demo.yaml"))
# What only the label-saving pipelines look at: the last three stages of the same weights on larger images.
VGG16_LARGE = World("vgg16-three-stages-96px", VGG16.campaign, taps=3, input_size=96, compared=False)
WORLDS = {world.name: world for world in (VGG16, LITE0, VGG16_LARGE)}


@dataclass(frozen=True)
class Part:
    """Runs that differ in strategy and seed alone."""

    world: str
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    # Names the learner in results.
    head: str = "logistic"
    learner: LearnerConfig = PLAIN
    initial: str = "random"
    # Of each batch after the first.
    random_share: float = 0.0
    budget: int = BUDGET
    batch: int = BATCH

    def cells(self) -> list[Cell]:
        """Seed by seed: what is there early is paired already."""
        return [Cell(seed, self.world, self.head, strategy) for seed in self.seeds for strategy in self.strategies]

    def campaign(self, cell: Cell) -> CampaignConfig:
        return (
            WORLDS[self.world]
            .config()
            .model_copy(
                update={
                    "seed": cell.seed,
                    "learner": self.learner,
                    "strategy": cell.strategy,
                    "initial": InitialConfig(strategy=self.initial, labels=INITIAL),
                    "rounds": RoundsConfig(count=(self.budget - INITIAL) // self.batch, batch=self.batch),
                    "random_share": self.random_share,
                }
            )
        )


def embed_world(world: World, settings: Settings) -> None:
    """Does nothing where the store has every row."""
    source, samples = _source(world, settings)
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    embed(world.config(), source, samples, settings)


@cache
def study_of(world: World, settings: Settings) -> Study:
    """The stored embeddings in memory. Raises NotFound when `embed_world` was not called."""
    source, samples = _source(world, settings)
    config = world.config()
    bare = _learner(config, lambda _: None, samples, settings, ())
    card = bare.initial_model(len(samples.source.classes), SilentWatch())
    store = EmbeddingStore(settings.embeddings_dir, card.embedding_id, source.source_id)
    rows = Embedded.stored(store, (*samples.ids("pool"), *samples.ids("test")))
    return read_study(samples, settings.sources_dir, rows, card.embedding_id)


def learner_of(part: Part, cell: Cell, study: Study, settings: Settings) -> Learner:
    world = WORLDS[part.world]
    _, samples = _source(world, settings)
    return _learner(part.campaign(cell), study.embedded.of, samples, settings, study.pool_ids)


def _learner(config: CampaignConfig, rows: Callable, samples: SampleStore, settings: Settings, pool: tuple) -> Learner:
    return make_learner(
        config,
        source_height=samples.source.height,
        source_width=samples.source.width,
        weights_dir=settings.weights_dir,
        cache_dir=settings.cache_dir,
        embeddings=rows,
        images=samples.images,
        threads=1,
        pool_ids=pool,
    )


@cache
def _source(world: World, settings: Settings) -> tuple[Source, SampleStore]:
    source = make_source(world.config().source, settings.data_dir, settings.sources_dir, lambda *_: None)
    return source, SampleStore.open(settings.sources_dir, settings.data_dir, source.source_id)
