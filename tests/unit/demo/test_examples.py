"""Every example can be run as it lies there."""

from pathlib import Path

import pytest

from services.trainer.comparison.config import load_comparison
from services.trainer.comparison.grid import load_grid
from services.trainer.comparison.study import load_study
from services.trainer.config import load_config
from services.trainer.strategies import strategy

EXAMPLES = Path(__file__).parents[3] / "examples"


COMPARISONS = {EXAMPLES / "compare.yaml"}
GRID, STUDY = EXAMPLES / "grid.yaml", EXAMPLES / "original-study.yaml"


@pytest.mark.parametrize(
    "path", sorted(set(EXAMPLES.glob("*.yaml")) - COMPARISONS - {GRID, STUDY}), ids=lambda path: path.name
)
def test_an_example_is_valid_and_its_strategies_exist(path: Path) -> None:
    config = load_config(path)
    assert strategy(config.strategy).name == config.strategy
    assert strategy(config.initial.strategy)


@pytest.mark.parametrize("path", sorted(COMPARISONS), ids=lambda path: path.name)
def test_an_example_of_a_comparison_is_valid_and_its_strategies_exist(path: Path) -> None:
    config = load_comparison(path)
    assert all(strategy(name).name == name for name in config.strategies)


def test_the_example_of_a_grid_search_varies_what_the_docs_say() -> None:
    config = load_grid(GRID)
    assert set(config.axes) == {"input_size", "flip", "head", "c"}
    assert len(config.settings) == 2 * 2 * (5 + 2)  # C matters to the logistic head alone


def test_the_original_study_has_its_arms_and_its_grid() -> None:
    config = load_study(STUDY)
    arms = {name: (arm.backbone.name, arm.learner.mode) for name, arm in config.arms.items()}
    assert arms == {
        "base-cnn": ("base_cnn", "finetune"),
        "vgg16": ("vgg16", "head"),
        "resnet50": ("resnet50", "head"),
    }
    assert {"margin", "entropy", "least_confidence"} == set(config.strategies)
    assert config.grid is not None
    assert config.grid.arm == "vgg16"


def test_the_demo_buys_what_the_readme_says() -> None:
    config = load_config(EXAMPLES / "cifar10-demo.yaml")
    assert (config.source.pool.limit, config.source.test.limit) == (10_000, 2_000)
    assert (config.initial.labels, config.rounds.count, config.rounds.batch) == (100, 5, 100)
    assert (config.backbone.name, config.backbone.input_size) == ("tf_efficientnet_lite0", 96)
    assert (config.strategy, config.backbone.flip, config.learner.mode) == ("margin", False, "head")


def test_the_random_baseline_differs_in_nothing_but_the_strategy() -> None:
    margin = load_config(EXAMPLES / "cifar10-vgg16.yaml")
    baseline = load_config(EXAMPLES / "cifar10-vgg16-random.yaml")
    assert baseline.strategy == "random"
    assert baseline.model_copy(update={"strategy": "margin", "name": margin.name}) == margin
    assert margin.budget == 1_500


def test_digits_are_never_mirrored() -> None:
    config = load_config(EXAMPLES / "digits-demo.yaml")
    assert not config.learner.finetune.mirror
    assert config.backbone.weights == "none"
