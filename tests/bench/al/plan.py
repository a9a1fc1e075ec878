"""What the benchmark runs. CONTENDER and everything else in here was chosen on seeds 0 to 4."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.trainer.config import HeadName, LearnerConfig
from tests.bench.al.worlds import VGG16, VGG16_TAPS, Part

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


def _two_stages(head: HeadName) -> Pipeline:
    """Twice the features, `auto` from the first label on, and C chosen inside the labelled set."""
    part = Part(
        VGG16_TAPS.name,
        ("auto",),
        SEEDS,
        head=head,
        learner=LearnerConfig(head=head),
        initial="auto",
        budget=500,
    )
    return Pipeline(VGG16.name, f"auto with the last two stages and {head.replace('_', ' ')}", part)


PIPELINES = (_two_stages("logistic"), _two_stages("label_propagation"), _two_stages("self_training"))


def accuracy_part(world: str, strategies: Sequence[str], seeds: Sequence[int]) -> Part:
    """Random always belongs to it."""
    return Part(world, tuple(dict.fromkeys(("random", *strategies))), tuple(seeds))


def calibration_part(world: str, seeds: Sequence[int]) -> Part:
    """As campaigns run: a tenth of each batch is drawn at random, and the temperature comes from such rows alone."""
    return Part(world, CALIBRATED, tuple(seeds), head="calibrated", random_share=0.1)
