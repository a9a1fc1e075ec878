"""A study: arms with what they share and what is their own, confusion matrices, and what its page says is missing."""

import re

import numpy as np
import pytest
from PIL import Image

from services.common.errors import BadConfig
from services.trainer.comparison.cells import CEILING, Cell, CellResult, Point
from services.trainer.comparison.study import StudyConfig
from services.trainer.comparison.study_write import StudyResults, confusions, write_study
from services.trainer.config import parse_section
from services.trainer.report.plots.canvas import LIGHT
from services.trainer.report.plots.confusion import confusion_pair, row_shares

RAW = {
    "name": "study",
    "source": {"kind": "cifar10", "size": 32},
    "strategies": ["margin"],
    "seeds": 2,
    "initial": {"labels": 10},
    "batch": 10,
    "budget": 30,
    "arms": {
        "scratch": {
            "backbone": {"name": "base_cnn", "weights": "none"},
            "learner": {"mode": "finetune"},
            "seeds": [4],
            "budget": 20,
        },
        "transfer": {"backbone": {"name": "vgg16", "input_size": 64}},
    },
    "grid": {"arm": "transfer", "labels": 20, "axes": {"head": ["logistic", "cosine"]}},
}
COUNTS = ((5, 1), (2, 2))


def make(**changes) -> StudyConfig:
    return parse_section(StudyConfig, {**RAW, **changes}, "test")


def test_an_arm_is_a_comparison_with_what_it_says_for_itself():
    config = make()
    scratch, transfer = config.comparison("scratch"), config.comparison("transfer")
    assert (scratch.name, scratch.seeds, scratch.budget, set(scratch.heads)) == ("study-scratch", (4,), 20, {"trained"})
    assert (transfer.seeds, transfer.budget, set(transfer.heads)) == ((0, 1), 30, {"logistic"})
    assert scratch.strategies == transfer.strategies == ("random", "margin")


def test_the_grid_search_is_around_its_arms_setting():
    grid = make().grid_search()
    assert grid.name == "study-grid"
    assert grid.settings[0].backbone == make().arms["transfer"].backbone


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grid": {**RAW["grid"], "arm": "other"}}, "no arm 'other'; arms: scratch, transfer"),
        ({"grid": {**RAW["grid"], "axes": {"hed": ["cosine"]}}}, "did you mean 'head'"),
        ({"budget": 35}, "arms.transfer"),
        ({"arms": {}}, "arms"),
    ],
)
def test_a_mistake_in_a_part_names_the_part(changes, told):
    with pytest.raises(BadConfig, match=told):
        make(**changes)


def run(arm, head, strategy, seed, labels=(10, 20, 30)):
    points = tuple(Point(n, 0.4 + n / 100, 0.4, 0.1, 1.0, 0.2, 0.1, None, 0.2) for n in labels)
    return CellResult(Cell(seed, arm, head, strategy), points, COUNTS)


@pytest.fixture
def written(tmp_path):
    runs = [run("transfer", "logistic", s, seed) for s in ("random", "margin") for seed in (0, 1)]
    runs.append(run("transfer", "logistic", CEILING, 0, (90,)))
    missing = {"scratch": "no pretrained weights of <resnet50>; to get them: run once with a network"}
    results = StudyResults({"transfer": runs}, None, None, missing, ("cat", "dog"))
    write_study(tmp_path, make(), results)
    return tmp_path


def test_the_page_says_what_was_not_run_and_how_to_get_it(written):
    page = (written / "study.html").read_text()
    assert "<b>scratch was not run:</b>" in page
    assert "&lt;resnet50&gt;; to get them: run once with a network" in page
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_every_arm_has_its_curves_and_a_confusion_matrix_for_each_strategy_and_all_labels(written):
    assert {path.name for path in written.glob("*.png")} == {
        "overview.png",
        "transfer-learning_curves.png",
        "transfer-aubc_gains.png",
        "transfer-confusion-random.png",
        "transfer-confusion-margin.png",
        "transfer-confusion-all-labels.png",
    }
    assert {path.name for path in written.glob("*.csv")} == {"runs.csv", "summary.csv", "confusion.csv"}
    assert "transfer,logistic,margin,1,1,0,2" in (written / "confusion.csv").read_text()


def test_confusions_are_summed_over_seeds_and_old_results_have_none():
    old = CellResult.of_json({"cell": vars(Cell(0, "b", "h", "margin")), "points": []})
    assert old.confusion == ()
    found = confusions([run("b", "h", "margin", 0), run("b", "h", "margin", 1), old])
    assert found["margin"].tolist() == [[10, 2], [4, 4]]


def test_a_result_is_read_back_as_it_was_saved():
    saved = run("b", "h", "margin", 0)
    assert CellResult.of_json(saved.as_json()) == saved


def test_rows_are_normalised_by_their_own_samples():
    shares = row_shares(np.array([[5, 1], [0, 0]]))
    assert shares[0].sum() == pytest.approx(1)
    assert shares[1].tolist() == [0, 0]


@pytest.mark.parametrize("classes", [2, 10, 80])
def test_a_confusion_matrix_is_drawn_for_any_number_of_classes(tmp_path, classes):
    counts = np.arange(classes**2).reshape(classes, classes)
    (tmp_path / "it.png").write_bytes(confusion_pair(counts, [f"class {i}" for i in range(classes)], "heading", LIGHT))
    with Image.open(tmp_path / "it.png") as image:
        assert image.size[0] > 1.5 * image.size[1]  # two beside each other
