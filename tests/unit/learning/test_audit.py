"""Labels that are probably wrong: by eye on four rows, and on simulated mistakes by precision and recall."""

import csv
import io

import numpy as np
import pytest

from services.common.errors import BadRequest
from services.trainer.audit import Suspect, audit_labels, find_suspects
from services.trainer.config import OracleConfig
from services.trainer.oracle import mistakes
from services.trainer.report.audit_page import audit_csv, audit_page
from tests.unit.learning.conftest import CountingWatch, blobs, labelled

CLASSES = ("cat", "dog", "frog")
SUSPECT = Suspect("s3", 0, 1, 0.1, 0.8)


def test_a_row_that_looks_more_like_another_class_than_that_class_does_is_suspect():
    given = np.array([0, 0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8]])
    # Rows labelled 1 are given 0.75 on average: only s2 reaches that without being labelled so.
    assert find_suspects(list("abcde"), given, probabilities) == [Suspect("c", 0, 1, 0.1, 0.9)]


def test_a_model_that_is_unsure_of_a_class_suspects_nothing_of_it():
    given = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.45, 0.55], [0.9, 0.1], [0.4, 0.6], [0.1, 0.9]])
    # s0 is called 1, yet with 0.55, less than the 0.75 that rows labelled 1 have.
    assert find_suspects(list("abcd"), given, probabilities) == []


def test_the_most_doubtful_come_first():
    given = np.array([0, 0, 0, 0, 1, 1])
    probabilities = np.array([[1, 0], [1, 0], [0.2, 0.8], [0.05, 0.95], [0.3, 0.7], [0.3, 0.7]])
    assert [it.sample_id for it in find_suspects(list("abcdef"), given, probabilities)] == ["d", "c"]


def test_a_class_without_labels_is_never_suggested():
    found = find_suspects(["a", "b"], np.array([0, 0]), np.array([[0.1, 0.9], [0.9, 0.1]]))
    assert found == []


@pytest.mark.parametrize(
    ("noise", "precision", "recall"),
    [
        ({"noise": 0.1}, 0.8, 0.8),
        ({"noise": 0.2, "kind": "pairs", "pairs": {"cat": "dog"}}, 0.6, 0.7),
    ],
    ids=["symmetric", "pairs"],
)
def test_the_audit_finds_most_simulated_mistakes_and_names_their_class(noise, precision, recall):
    rows, truth = blobs(400, 60)
    oracle = mistakes(OracleConfig.model_validate(noise), 0, CLASSES)
    given = np.array([oracle.told(f"s{i}", int(c)) for i, c in enumerate(truth)])
    found = audit_labels(rows, labelled(given), 3, (0.01, 0.1), 5, 0, CountingWatch())
    listed, flipped = {it.sample_id for it in found}, {f"s{i}" for i in np.flatnonzero(given != truth)}
    assert len(listed & flipped) / len(listed) >= precision
    assert len(listed & flipped) / len(flipped) >= recall
    named = [it.suggested == truth[int(it.sample_id[1:])] for it in found if it.sample_id in flipped]
    assert np.mean(named) >= 0.9


def test_labels_that_are_right_are_left_alone():
    rows, truth = blobs(400, 60)
    assert len(audit_labels(rows, labelled(truth), 3, (0.01, 0.1), 5, 0, CountingWatch())) <= 8  # 2%


def test_a_row_that_is_the_only_one_of_its_class_is_not_suspected():
    rows, truth = blobs(60, classes=2)
    truth[0] = 2
    found = audit_labels(rows, labelled(truth), 3, (0.1,), 5, 0, CountingWatch())
    assert "s0" not in {it.sample_id for it in found}


def test_labels_of_one_class_cannot_be_audited():
    with pytest.raises(BadRequest, match="are of 1 class"):
        audit_labels(blobs(10)[0], labelled(np.zeros(10, np.int64)), 3, (0.1,), 5, 0, CountingWatch())


def test_the_page_holds_a_picture_for_each_and_needs_no_other_file():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    page = audit_page("pets-1", "2 of 9 labels", [SUSPECT, SUSPECT], ("<i>", "dog"), images)
    assert page.count("data:image/png;base64,") == 2
    assert "labelled <b>&lt;i&gt;</b>" in page
    assert "rather <b>dog</b>" in page
    for outside in ("http://", "https://", "<script", "<link", "$", "<i>"):
        assert outside not in page


def test_the_csv_has_a_line_for_each():
    (line,) = csv.DictReader(io.StringIO(audit_csv([SUSPECT], CLASSES)))
    assert line == {
        "sample_id": "s3",
        "label": "cat",
        "label_probability": "0.1000",
        "suggested": "dog",
        "suggested_probability": "0.8000",
    }
