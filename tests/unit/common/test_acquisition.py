"""One contract over the whole table, and each function on numbers that the eye can check."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from services.common.acquisition import ACQUISITIONS, acquisition_named, member_probabilities
from services.common.errors import BadRequest

SURE = [0.98, 0.01, 0.01]
TORN = [0.50, 0.49, 0.01]
LOST = [1 / 3, 1 / 3, 1 / 3]

# What they look at: a single prediction, or how much the members of a committee differ.
OF_THE_MEAN = ("least_confidence", "margin", "entropy", "consensus_entropy")
OF_VOTES = ("variation_ratios", "vote_entropy")
OF_DISAGREEMENT = ("mean_std", "mean_kl", "bald")


def plain(*rows: list[float]) -> np.ndarray:
    """(N, 1, C)"""
    return np.array(rows, np.float32)[:, None, :]


def votes(*classes: int, of: int = 3, sure: float = 0.9) -> np.ndarray:
    """(1, K, C): one sample, a member for each of `classes`, which it finds `sure` probable."""
    rest = (1 - sure) / (of - 1)
    return np.array([[[sure if c == vote else rest for c in range(of)] for vote in classes]], np.float32)


def test_every_function_is_of_one_of_the_three_kinds() -> None:
    assert {*OF_THE_MEAN, *OF_VOTES, *OF_DISAGREEMENT} == set(ACQUISITIONS)


@pytest.mark.parametrize("name", [*OF_THE_MEAN, *OF_VOTES])
def test_the_less_sure_the_higher_and_one_finite_float32_for_each_sample(name: str) -> None:
    scores = ACQUISITIONS[name](plain(SURE, TORN, LOST))
    assert scores.shape == (3,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert scores[0] < scores[1] <= scores[2]


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_certain_sample_scores_zero_also_at_probability_one(name: str) -> None:
    assert ACQUISITIONS[name](plain([1.0, 0.0, 0.0])) == pytest.approx([0.0], abs=1e-6)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_sample_scores_the_same_alone_and_among_others_and_whatever_the_order_of_classes(name: str) -> None:
    rows = np.random.default_rng(0).dirichlet([1, 1, 1, 1], (50, 3)).astype(np.float32)  # (50, 3, 4)
    together = ACQUISITIONS[name](rows)
    alone = np.concatenate([ACQUISITIONS[name](row[None]) for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    np.testing.assert_allclose(together, ACQUISITIONS[name](rows[:, :, ::-1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 63, 64, 200])
@pytest.mark.parametrize("members", [1, 2, 5])
def test_the_margin_is_the_lead_over_the_next_class_whatever_their_number(classes: int, members: int) -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(classes), (50, members)).astype(np.float32)
    given = rows.copy()
    ascending = np.sort(rows.mean(axis=1), axis=1)
    found = ACQUISITIONS["margin"](rows)
    np.testing.assert_allclose(found, 1 - (ascending[:, -1] - ascending[:, -2]), rtol=1e-5)
    np.testing.assert_array_equal(rows, given)


@pytest.mark.parametrize("name", OF_THE_MEAN)
def test_a_committee_counts_by_its_mean(name: str) -> None:
    disagreeing = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)  # (1, 2, 2)
    np.testing.assert_allclose(ACQUISITIONS[name](disagreeing), ACQUISITIONS[name](plain([0.5, 0.5])))


@pytest.mark.parametrize("name", OF_DISAGREEMENT)
def test_a_single_model_does_not_disagree_with_itself(name: str) -> None:
    assert ACQUISITIONS[name](plain(SURE, TORN, LOST)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", OF_DISAGREEMENT)
def test_members_that_say_the_same_do_not_disagree_however_unsure_they_are(name: str) -> None:
    same = np.repeat(plain(SURE, TORN, LOST), 4, axis=1)
    np.testing.assert_allclose(ACQUISITIONS[name](same), 0, atol=1e-6)


@pytest.mark.parametrize("name", [*OF_VOTES, *OF_DISAGREEMENT])
def test_the_more_the_members_disagree_the_higher(name: str) -> None:
    agree, one_dissents, all_differ = votes(0, 0, 0), votes(0, 0, 1), votes(0, 1, 2)
    scores = ACQUISITIONS[name](np.concatenate([agree, one_dissents, all_differ]))
    assert scores[0] < scores[1] < scores[2]


@pytest.mark.parametrize("name", OF_VOTES)
def test_votes_of_a_single_model_order_samples_by_their_margin(name: str) -> None:
    rows = np.random.default_rng(0).dirichlet([1, 1, 1], (40, 1)).astype(np.float32)
    np.testing.assert_array_equal(np.argsort(ACQUISITIONS[name](rows)), np.argsort(ACQUISITIONS["margin"](rows)))


@pytest.mark.parametrize("name", OF_VOTES)
def test_the_margin_breaks_ties_of_votes_and_nothing_else(name: str) -> None:
    unsure, sure = votes(0, 0, 1, sure=0.4), votes(0, 0, 1, sure=0.9)
    more_dissent, surer = votes(0, 1, 2, sure=1.0), votes(0, 0, 1, sure=0.34)
    scores = ACQUISITIONS[name](np.concatenate([sure, unsure, surer, more_dissent]))
    assert scores[0] < scores[1] < scores[2] < scores[3]


def partitions(members: int, largest: int) -> Iterator[list[int]]:
    """Every way to split the votes among classes."""
    if members == 0:
        yield []
    for first in range(min(members, largest), 0, -1):
        yield from ([first, *rest] for rest in partitions(members - first, first))


@pytest.mark.parametrize("members", range(2, 11))
def test_no_margin_lifts_a_sample_to_the_next_level_of_votes(members: int) -> None:
    by_level: dict[int, list[float]] = {}
    for split in partitions(members, members):
        classes = [c for c, count in enumerate(split) for _ in range(count)]
        exact = -sum(n / members * np.log(n / members) for n in split)
        # The most and the least certain way to cast these votes.
        both = np.concatenate([votes(*classes, of=members, sure=s) for s in (1.0, 1 / members + 1e-4)])
        by_level.setdefault(round(exact * 1e9), []).extend(ACQUISITIONS["vote_entropy"](both).tolist())
        assert ACQUISITIONS["vote_entropy"](both) == pytest.approx(exact, abs=2e-3)
    levels = [by_level[level] for level in sorted(by_level)]
    assert all(max(lower) < min(higher) for lower, higher in pairwise(levels))


def test_the_values_of_committees_are_the_textbook_ones() -> None:
    opposed = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)  # two members, each certain, of different classes
    assert ACQUISITIONS["mean_std"](opposed) == pytest.approx([0.5])
    assert ACQUISITIONS["mean_kl"](opposed) == pytest.approx([np.log(2)])
    assert ACQUISITIONS["vote_entropy"](opposed) == pytest.approx([np.log(2)], abs=2e-3)
    assert ACQUISITIONS["consensus_entropy"](opposed) == pytest.approx([np.log(2)])
    # One of four dissents; all are certain, so that half of the mean's margin is left for ties.
    assert ACQUISITIONS["variation_ratios"](votes(0, 0, 0, 1, sure=1.0)) == pytest.approx([1 / 4 + 0.5 / 4], abs=1e-3)


def test_mean_kl_is_the_mean_divergence_of_the_members_from_their_mean() -> None:
    members = np.random.default_rng(1).dirichlet([1, 1, 1], (20, 5)).astype(np.float32)  # (20, 5, 3)
    mean = members.mean(axis=1, keepdims=True)
    divergence = (members * np.log(members / mean)).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(ACQUISITIONS["mean_kl"](members), divergence, rtol=1e-4)
    assert ACQUISITIONS["bald"] is ACQUISITIONS["mean_kl"]


def test_the_values_are_the_textbook_ones() -> None:
    torn = plain(TORN)
    assert ACQUISITIONS["least_confidence"](torn) == pytest.approx([0.50])
    assert ACQUISITIONS["margin"](torn) == pytest.approx([0.99])
    assert ACQUISITIONS["entropy"](plain(LOST)) == pytest.approx([np.log(3)])


def test_member_probabilities_survive_huge_logits() -> None:
    probabilities = member_probabilities(np.array([[[1e4, 0.0], [-1e4, 0.0]]], np.float32))
    np.testing.assert_allclose(probabilities, [[[1, 0], [0, 1]]])


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(BadRequest, match="did you mean 'entropy'"):
        acquisition_named("entropie")
