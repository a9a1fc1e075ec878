from pathlib import Path

import pytest

from services.common.errors import BadConfig
from services.trainer.comparison.cells import CEILING
from services.trainer.comparison.config import check_strategies, load_comparison
from tests.unit.comparison.conftest import make_comparison

TWO = [{"name": "vgg16"}, {"name": "resnet50"}]


def test_several_backbones_are_a_committee_also_with_a_single_head():
    check_strategies(make_comparison(backbones={"two": {"members": TWO}}, strategies=["vote_entropy"]))
    with pytest.raises(BadConfig, match="fits a single model"):
        check_strategies(
            make_comparison(backbones={"two": {"members": TWO}, "one": TWO[0]}, strategies=["vote_entropy"])
        )


def test_random_is_always_compared_and_comes_first():
    assert make_comparison(strategies=["margin"]).strategies == ("random", "margin")
    assert make_comparison(strategies=["margin", "random"]).strategies == ("random", "margin")


def test_a_number_of_seeds_counts_from_0_and_a_list_is_taken_as_it_is():
    assert make_comparison(seeds=3).seeds == (0, 1, 2)
    assert make_comparison(seeds=[100, 7]).seeds == (100, 7)


def test_the_grid_has_each_cell_once_and_one_ceiling_for_each_learner():
    config = make_comparison(
        seeds=3,
        backbones={"a": {"name": "vgg16"}, "b": {"name": "resnet50"}},
        heads={"one": {}, "two": {"folds": 3}},
    )
    cells = config.cells()
    assert len({cell.key for cell in cells}) == len(cells) == 3 * 2 * 2 * 2 + 4
    assert sum(cell.strategy == CEILING for cell in cells) == 4


def test_the_first_seed_is_whole_before_the_next_begins():
    assert [cell.seed for cell in make_comparison(seeds=3).cells() if not cell.is_ceiling] == [0, 0, 1, 1, 2, 2]


def test_a_cell_is_a_campaign():
    config = make_comparison()
    campaign = config.campaign(config.cells()[1])
    assert (campaign.strategy, campaign.budget, campaign.rounds.batch) == ("margin", 30, 10)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"budget": 35}, "30 would do"),
        ({"budget": 10}, "20 would do"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds": 0}, "seeds"),
        ({"name": "Not A Folder"}, "a-z"),
        ({"heads": {"deep": {"mode": "finetune", "head": "mlp"}}}, "heads.deep"),
        ({"backbones": {}}, "backbones"),
        ({"backbones": {"a/b": {"name": "vgg16"}}}, "pattern"),
        ({"backbones": {"two": {"members": TWO}}, "heads": {"b": {"head": "bootstrap"}}}, "one linear head"),
        ({"budgett": 30}, "did you mean 'budget'"),
    ],
)
def test_a_mistake_is_told_with_the_way_out(changes, told):
    with pytest.raises(BadConfig, match=told):
        make_comparison(**changes)


def test_an_unknown_strategy_is_answered_with_the_nearest():
    with pytest.raises(BadConfig, match="margin"):
        check_strategies(make_comparison(strategies=["margins"]))


def test_a_committee_strategy_needs_a_committee():
    with pytest.raises(BadConfig, match="committee"):
        check_strategies(make_comparison(strategies=["vote_entropy"]))


def test_the_example_can_be_run():
    config = load_comparison(Path("examples/compare.yaml"))
    assert config.strategies[0] == "random"
