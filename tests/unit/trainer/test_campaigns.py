"""Which strategies a campaign may ask for, found out before anything is created."""

import pytest

from services.common.errors import BadConfig
from services.trainer.campaigns import check_strategies
from services.trainer.config import LearnerConfig
from services.trainer.strategies import STRATEGIES
from tests.unit.trainer.conftest import make_config

COLD = ["random", "k_center", "centroids", "typiclust", "prob_cover", "auto"]
COMMITTEE = ["mean_std", "variation_ratios", "vote_entropy", "consensus_entropy", "mean_kl", "bald"]


@pytest.mark.parametrize("name", COLD)
def test_a_strategy_that_needs_no_model_may_pick_the_first_batch(name):
    check_strategies(make_config(initial={"labels": 10, "strategy": name}))


@pytest.mark.parametrize("name", ["margin", "badge", "drop_query", "cluster_margin", "vote_entropy"])
def test_one_that_needs_a_model_may_not_and_the_message_lists_those_that_may(name):
    with pytest.raises(BadConfig, match=r"initial.strategy .* needs a trained model; use one of: .*typiclust"):
        check_strategies(make_config(initial={"labels": 10, "strategy": name}))


@pytest.mark.parametrize("name", COMMITTEE)
def test_a_committee_strategy_is_refused_where_there_is_no_committee(name):
    with pytest.raises(BadConfig, match="compares the members of a committee, and this learner fits a single model"):
        check_strategies(make_config(strategy=name))


@pytest.mark.parametrize("name", COMMITTEE)
def test_and_welcome_where_there_is_one(name, monkeypatch):
    monkeypatch.setattr(LearnerConfig, "committee_size", property(lambda self: 5))
    check_strategies(make_config(strategy=name))


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - set(COMMITTEE)))
def test_every_other_strategy_runs_with_a_single_model(name):
    check_strategies(make_config(strategy=name))


def test_an_unknown_strategy_is_refused():
    with pytest.raises(BadConfig, match="did you mean 'typiclust'"):
        check_strategies(make_config(strategy="typiclast"))
