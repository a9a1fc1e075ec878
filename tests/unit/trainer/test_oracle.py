"""The simulated oracle and its mistakes."""

import numpy as np
import pytest

from services.common.errors import BadConfig
from services.trainer.config import OracleConfig
from services.trainer.oracle import NOISE, SIMULATED, SimulatedOracle, mistakes
from tests.unit.trainer.conftest import make_config

CLASSES = ("cat", "dog", "frog", "ship")
TRUTH = {f"s{i}": i % 4 for i in range(4000)}
IDS = list(TRUTH)


def answers(seed=0, **config):
    oracle = SimulatedOracle(TRUTH, mistakes(OracleConfig.model_validate(config), seed, CLASSES))
    return oracle.answers(IDS)


def wrong(given):
    return {it.sample_id: it.class_index for it in given if it.class_index != TRUTH[it.sample_id]}


def test_without_noise_every_answer_is_the_truth():
    given = answers()
    assert wrong(given) == {}
    assert {it.origin for it in given} == {SIMULATED}


def test_symmetric_noise_is_its_share_of_all_answers_and_any_other_class():
    flipped = wrong(answers(noise=0.1))
    assert len(flipped) / len(IDS) == pytest.approx(0.1, abs=0.015)
    for truth in range(4):
        told = [c for i, c in flipped.items() if TRUTH[i] == truth]
        shares = np.bincount(told, minlength=4) / len(told)
        assert shares[truth] == 0
        np.testing.assert_allclose(np.delete(shares, truth), 1 / 3, atol=0.15)


def test_pairs_are_mistaken_for_each_other_and_no_other_class_is():
    flipped = wrong(answers(noise=0.5, kind="pairs", pairs={"cat": "dog", "dog": "cat"}))
    assert {(TRUTH[i], c) for i, c in flipped.items()} == {(0, 1), (1, 0)}
    assert len(flipped) / 2000 == pytest.approx(0.5, abs=0.04)  # of the answers about cats and dogs


def test_a_wrong_answer_says_so_in_its_origin():
    given = answers(noise=0.2)
    flipped = wrong(given)
    assert {it.sample_id for it in given if it.origin == NOISE} == flipped.keys()
    assert {it.annotator for it in given} == {"simulated"}


def test_asking_again_or_for_fewer_changes_no_answer_and_another_seed_does():
    assert answers(noise=0.3) == answers(noise=0.3)
    oracle = SimulatedOracle(TRUTH, mistakes(OracleConfig(noise=0.3), 0, CLASSES))
    assert oracle.answers(IDS[70:80]) == answers(noise=0.3)[70:80]
    assert wrong(answers(noise=0.3)).keys() != wrong(answers(seed=1, noise=0.3)).keys()


@pytest.mark.parametrize(
    ("oracle", "told"),
    [
        ({"noise": 1.0}, r"oracle\.noise"),
        ({"kind": "pairs", "noise": 0.1}, "go together"),
        ({"pairs": {"cat": "dog"}}, "go together"),
        ({"kind": "pairs", "pairs": {"cat": "cat"}}, "paired with itself"),
        ({"noize": 0.1}, r"unknown key 'oracle.noize'; did you mean 'noise'\?"),
    ],
)
def test_an_oracle_that_makes_no_sense_is_explained(oracle, told):
    with pytest.raises(BadConfig, match=told):
        make_config(oracle=oracle)


def test_a_pair_of_a_class_that_is_not_there_names_the_nearest():
    with pytest.raises(BadConfig, match=r"no class 'cta'; did you mean 'cat'\?"):
        mistakes(OracleConfig(noise=0.1, kind="pairs", pairs={"cta": "dog"}), 0, CLASSES)
