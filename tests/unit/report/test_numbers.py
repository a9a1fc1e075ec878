"""The numbers behind the report's pictures."""

import math
from dataclasses import replace

import numpy as np
import pytest

from services.trainer.report.asked import MOST_IN_ALL, Asked, AskedRound, gallery
from services.trainer.report.classes import class_rows, class_shares, mix_ups
from services.trainer.report.content import CampaignReport
from services.trainer.report.thumbnails import LARGEST, data_uri


@pytest.fixture
def three(report: CampaignReport) -> CampaignReport:
    """Three classes, of which nothing is ever taken for the last."""
    row = replace(report.rows[-1], class_counts={"a": 6, "b": 3, "c": 1})
    return replace(
        report,
        classes=("a", "b", "c"),
        rows=(row,),
        confusion=[[8, 2, 0], [0, 6, 0], [3, 1, 0]],
        bought={1: {"a": 1, "b": 1}, 2: {"a": 5, "b": 2, "c": 1}},
        pool_shares={"a": 0.5, "b": 0.25, "c": 0.25},
    )


def test_precision_recall_and_f1_come_from_the_confusion_matrix(three: CampaignReport) -> None:
    a, b, c = class_rows(three)
    assert (a.precision, a.recall, a.support) == (8 / 11, 0.8, 10)
    assert a.f1 == pytest.approx(2 * (8 / 11) * 0.8 / (8 / 11 + 0.8))
    assert (b.precision, b.recall, b.support) == (6 / 9, 1.0, 6)
    assert math.isnan(c.precision)
    assert (c.recall, c.f1, c.bought, c.share, c.pool_share) == (0.0, 0.0, 1, 0.1, 0.25)


def test_mix_ups_are_the_largest_cells_off_the_diagonal(three: CampaignReport) -> None:
    found = mix_ups(three.confusion, three.classes)
    assert [(it.true, it.predicted, it.count, it.share) for it in found] == [
        ("c", "a", 3, 0.75),
        ("a", "b", 2, 0.2),
        ("c", "b", 1, 0.25),
    ]


def test_class_shares_are_those_of_each_round_of_all_and_of_the_pool(three: CampaignReport) -> None:
    shares = class_shares(three)
    assert shares is not None
    assert list(shares.columns) == ["1", "2", "all", "pool"]
    assert list(shares.names) == ["a", "b", "c"]
    np.testing.assert_allclose(shares.shares, [[0.5, 5 / 8, 0.6, 0.5], [0.5, 2 / 8, 0.3, 0.25], [0, 1 / 8, 0.1, 0.25]])


def test_classes_that_have_no_colour_of_their_own_are_told_together(three: CampaignReport) -> None:
    shares = class_shares(three, most=2)
    assert shares is not None
    assert list(shares.names) == ["a", "2 others"]
    np.testing.assert_allclose(shares.shares.sum(axis=0), 1)


def test_without_a_simulated_oracle_nothing_is_said_of_the_pool(three: CampaignReport) -> None:
    told = replace(three, pool_shares={})
    shares = class_shares(told)
    assert shares is not None
    assert list(shares.columns) == ["1", "2", "all"]
    assert {row.pool_share for row in class_rows(told)} == {None}
    assert class_shares(replace(three, bought={})) is None


def asked(count: int, round_no: int = 2) -> AskedRound:
    return AskedRound(round_no, "margin", [Asked(f"{i}", i % 10 == 0, score=float(i)) for i in range(count)])


def test_the_gallery_takes_the_highest_scores_before_what_was_drawn_at_random() -> None:
    (shown,) = gallery([asked(60)])
    assert [it.sample_id for it in shown.samples[:3]] == ["59", "58", "57"]
    assert len(shown.samples) == 24
    (few,) = gallery([asked(12)])
    assert [it.sample_id for it in few.samples[-2:]] == ["10", "0"]


@pytest.mark.parametrize("rounds", [1, 6, 40, 500])
def test_the_gallery_is_bounded_however_many_rounds_there_are(rounds: int) -> None:
    shown = gallery([asked(100, n) for n in range(1, rounds + 1)])
    assert sum(len(it.samples) for it in shown) <= MOST_IN_ALL
    assert min(len(it.samples) for it in shown) >= 6
    assert shown[-1].round_no == rounds  # it is the oldest that are left out


def test_wrong_is_said_only_where_both_sides_are_known() -> None:
    known = Asked("1", False, predicted="cat", answer="dog")
    right, waiting, old = replace(known, answer="cat"), replace(known, answer=None), replace(known, predicted=None)
    assert [it.wrong for it in (known, right, waiting, old)] == [True, False, None, None]
    it = AskedRound(2, "margin", [known, right, waiting, old])
    assert (it.answered, it.judged, it.wrong) == (3, 2, 1)


def test_a_thumbnail_of_a_photo_stays_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    assert len(data_uri(noise)) < 20_000
    assert data_uri(noise).startswith("data:image/jpeg;base64,")
    assert data_uri(noise[:32, :32]).startswith("data:image/png;base64,")
    assert LARGEST >= 96
