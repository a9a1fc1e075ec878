"""What the benchmark runs. CONTENDER and everything else in here was chosen on seeds 0 to 4."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.trainer.config import HeadName, LearnerConfig
from tests.bench.al.worlds import VGG16, VGG16_LARGE, Part

SEEDS = tuple(range(100, 115))
# Named before the reported seeds were run.
CONTENDER = "auto"
# Those of ours that docs/strategies.md finds worse than random are here as peers' (entropy, core-set): cheaper once.
OURS = (
    "random",
    "auto",
    "uncertainty_herding",
    "margin",
    "badge",
    "typiclust",
    "class_balanced",
    "cluster_margin",
    "drop_query",
)
CALIBRATED = ("margin", "auto")


@dataclass(frozen=True)
class Pipeline:
    """Features, head and strategy of our own choice against random sampling on the plain features of `world`."""

    world: str
    what: str
    part: Part


def _large(strategy: str, head: HeadName) -> Pipeline:
    """Three stages at 96 px, the strategy from the first label on, batches of 50, C chosen inside the labelled set."""
    part = Part(
        VGG16_LARGE.name,
        (strategy,),
        SEEDS,
        head=head,
        learner=LearnerConfig(head=head),
        initial=strategy,
        budget=350,
        batch=50,
    )
    return Pipeline(VGG16.name, f"{strategy}, three stages at 96 px, {head.replace('_', ' ')}", part)


# The last one is the contender; the others show what features, strategy and head give of it.
PIPELINES = (_large("random", "logistic"), _large("auto", "logistic"), _large("auto", "self_training"))


def accuracy_part(world: str, strategies: Sequence[str], seeds: Sequence[int]) -> Part:
    """Random always belongs to it."""
    return Part(world, tuple(dict.fromkeys(("random", *strategies))), tuple(seeds))


def calibration_part(world: str, seeds: Sequence[int]) -> Part:
    """As campaigns run: a tenth of each batch is drawn at random, the temperature comes from such rows alone, and C is
    chosen inside the labelled set.
    """
    return Part(world, CALIBRATED, tuple(seeds), head="calibrated", learner=LearnerConfig(), random_share=0.1)
