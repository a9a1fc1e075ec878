"""One contract over the whole table, and each function on numbers that the eye can check."""

import numpy as np
import pytest

from services.common.errors import BadRequest
from services.inference.acquisition import ACQUISITIONS, acquisition_named, member_probabilities

SURE = [0.98, 0.01, 0.01]
TORN = [0.50, 0.49, 0.01]
LOST = [1 / 3, 1 / 3, 1 / 3]


def plain(*rows: list[float]) -> np.ndarray:
    """(N, 1, C)"""
    return np.array(rows, np.float32)[:, None, :]


@pytest.mark.parametrize("name", ACQUISITIONS)
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


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_committee_counts_by_its_mean(name: str) -> None:
    disagreeing = np.array([[[1.0, 0.0], [0.0, 1.0]]], np.float32)  # (1, 2, 2)
    np.testing.assert_allclose(ACQUISITIONS[name](disagreeing), ACQUISITIONS[name](plain([0.5, 0.5])))


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
