"""A grid search: which settings there are, what each may look at, and what is said of them."""

import csv
import io
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from services.common.errors import BadConfig
from services.trainer.comparison.cells import Cell, CellResult, Point, Validation
from services.trainer.comparison.grid import GridConfig, labelled_set
from services.trainer.comparison.grid_write import ranking_table, write_grid
from services.trainer.comparison.plans import read_plan
from services.trainer.comparison.ranking import rank
from services.trainer.comparison.trial import trial
from services.trainer.config import BackboneConfig, LearnerConfig, parse_section
from services.trainer.learning import SilentWatch
from tests.fakes import FakePool
from tests.unit.comparison.conftest import make_comparison, make_study
from tests.unit.comparison.test_curve import Remembering

RAW = {
    "name": "grid",
    "source": {"kind": "cifar10", "size": 32},
    "labels": 20,
    "seeds": 3,
    "setting": {"backbone": {"name": "vgg16", "input_size": 64}, "learner": {"folds": 4}},
    "axes": {"flip": [False, True], "head": ["logistic", "cosine"], "c": [0.01, 1.0]},
}
DEFAULT = ("vgg16 flip=no", "logistic c=search")


def make_grid(**changes) -> GridConfig:
    return parse_section(GridConfig, {**RAW, **changes}, "test")


def names(config):
    return [(it.backbone_name, it.learner_name) for it in config.settings]


# ---- expansion ---------------------------------------------------------------------------------------


def test_the_default_comes_first_and_settings_that_mean_the_same_are_one():
    found = names(make_grid())
    assert found[0] == DEFAULT
    # C matters to the logistic head alone: 2 flips x (2 values of C + cosine), and the default.
    assert len(found) == len(set(found)) == 2 * 3 + 1
    assert ("vgg16 flip=yes", "cosine") in found


def test_a_searched_c_is_the_defaults_own_grid():
    config = make_grid(axes={"c": ["search", 1.0]})
    assert [it.learner.c_grid for it in config.settings] == [LearnerConfig().c_grid, (1.0,)]


def test_axes_of_trained_networks_touch_no_head():
    config = make_grid(axes={"mode": ["head", "finetune"], "weight_decay": [0.0, 0.1], "c": [0.1]})
    assert [it.learner_name for it in config.settings] == [
        "logistic c=search",
        "logistic c=0.1",
        "trained weight_decay=0",
        "trained weight_decay=0.1",
    ]


def test_every_seed_has_every_trial_and_keys_are_unique():
    cells = make_grid().cells()
    assert len({cell.key for cell in cells}) == len(cells) == 3 * 7
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"axes": {"hed": ["cosine"]}}, "unknown axis 'hed'; did you mean 'head'"),
        ({"axes": {"head": []}}, "name a value at least"),
        ({"axes": {"head": ["cosines"]}}, "cosines"),
        ({"max_trials": 6}, r"7 trials for each seed \(flip 2 x head 2 x c 2\), and max_trials is 6; leave values out"),
        ({"axes": {"c": list(range(1, 400)), "input_size": list(range(8, 400))}}, "156,408 trials"),
        ({"seeds": [1, 1]}, "each once"),
    ],
)
def test_a_grid_that_cannot_be_searched_is_explained(changes, told):
    with pytest.raises(BadConfig, match=told):
        make_grid(**changes)


def test_a_backbone_that_cannot_be_had_takes_its_trials_with_it():
    config = make_grid(axes={"backbone": ["vgg16", "resnet50"], "flip": [False, True]})
    assert {it.backbone.name for it in config.without(["resnet50"]).settings} == {"vgg16"}
    with pytest.raises(BadConfig, match="default"):
        config.without(["vgg16"])


def test_a_stored_plan_is_read_back_as_what_it_was():
    for plan in (make_grid(), make_comparison()):
        assert read_plan(plan.model_dump_json()) == plan


def test_only_heads_that_learn_from_the_pool_need_all_of_it_embedded():
    pool_ids = [f"{i:03d}" for i in range(500)]
    assert len(make_grid().pool_rows(pool_ids)) <= 3 * 20
    assert len(make_grid(axes={"head": ["label_propagation"]}).pool_rows(pool_ids)) == 500


# ---- a trial -----------------------------------------------------------------------------------------


def run_trial(pool, learner, at=0, seed=0):
    config = make_grid()
    cell = [c for c in config.cells() if c.seed == seed][at]
    return trial(config.campaign(cell), make_study(pool), learner, SilentWatch())


def test_trials_of_a_seed_see_the_same_samples_in_the_same_folds(pool):
    one, other = Remembering(pool), Remembering(pool)
    run_trial(pool, one, at=0)
    run_trial(pool, other, at=3)
    assert [set(g.ids) for g in one.given] == [set(g.ids) for g in other.given]
    third = Remembering(pool)
    run_trial(pool, third, seed=1)
    assert set(third.given[-1].ids) != set(one.given[-1].ids)


def test_a_trial_fits_folds_inside_its_labelled_set_and_then_all_of_it(pool):
    learner = Remembering(pool)
    outcome = run_trial(pool, learner)
    *folds, everything = [set(g.ids) for g in learner.given]
    assert everything == set(labelled_set(pool.pool_ids, 20, 0))
    assert len(folds) == 4
    assert all(len(fold) == 15 for fold in folds)
    assert all(sum(sample not in fold for fold in folds) == 1 for sample in everything)
    assert outcome.points[0].labels == 20


def test_what_ranks_a_trial_does_not_depend_on_the_classes_of_test_or_unbought_samples():
    pool = FakePool()
    bought = set(labelled_set(pool.pool_ids, 20, 0))
    honest = run_trial(pool, Remembering(pool))
    pool.truth = {i: c if i in bought else 1 - c for i, c in pool.truth.items()}
    lied_to = run_trial(pool, Remembering(pool))
    assert lied_to.validation.accuracy == honest.validation.accuracy
    assert lied_to.validation.log_loss == honest.validation.log_loss
    assert lied_to.points[0].accuracy != honest.points[0].accuracy  # the test samples do report


def test_larger_labelled_sets_contain_smaller_ones():
    ids = [str(i) for i in range(50)]
    assert set(labelled_set(ids, 10, 3)) < set(labelled_set(ids, 20, 3))


# ---- the ranking -------------------------------------------------------------------------------------


def result(config, at, seed, validation, test=0.5, loss=1.0):
    setting = config.settings[at]
    cell = Cell(seed, setting.backbone_name, setting.learner_name, "grid trial")
    point = Point(20, test, test, 0.1, 1.0, 0.2, 0.0, None, 2.0)
    return CellResult(cell, (point,), validation=Validation(validation, loss, 3.0))


@pytest.fixture
def results():
    """The second setting is always two points ahead of the default, and worst on test; the rest lie below."""
    config = make_grid()
    made = []
    for seed in range(3):
        shift = 0.02 * seed
        made += [result(config, 0, seed, 0.6 + shift), result(config, 1, seed, 0.62 + shift, test=0.1)]
        made += [result(config, at, seed, 0.5 - 0.01 * at + shift * (at % 2)) for at in range(2, 7)]
    return made


def test_validation_ranks_and_test_decides_nothing(results):
    ranking = rank(make_grid(), results)
    assert ranking.best.setting.learner_name == make_grid().settings[1].learner_name
    assert ranking.best.gain.mean == pytest.approx(0.02)
    assert ranking.best.gain.low == pytest.approx(0.02)  # paired: the seeds' own differences take nothing
    assert ranking.best.test.mean() == pytest.approx(0.1)
    assert ranking.default.validation.tolist() == pytest.approx([0.6, 0.62, 0.64])
    low, high = ranking.default.interval()
    assert (low + high) / 2 == pytest.approx(0.62)
    assert high - low == pytest.approx(2 * 4.3027 * 0.02 / np.sqrt(3), rel=1e-3)


def test_equal_accuracies_are_ranked_by_log_loss_and_nothing_shows_that_the_best_is_better():
    config = make_grid()
    made = [result(config, at, seed, 0.6, loss=1.0 - 0.1 * at) for at in (0, 1) for seed in range(3)]
    ranking = rank(config, made)
    assert ranking.best.setting == config.settings[1]
    assert ranking.level_with_best == 1


def test_a_trial_that_misses_a_seed_comes_after_all_whole_ones(results):
    config = make_grid()
    ranking = rank(config, [*[r for r in results if r.cell.seed != 2 or "cosine" not in r.cell.head]])
    whole = [len(t.seeds) == 3 for t in ranking.trials]
    assert whole == sorted(whole, reverse=True)


def test_without_a_result_there_is_no_ranking():
    assert rank(make_grid(), []) is None


# ---- what it writes ----------------------------------------------------------------------------------


def test_all_trials_are_kept_and_the_best_can_be_pasted_into_a_campaign(tmp_path, results):
    ranking = write_grid(tmp_path, make_grid(), results)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text())))
    assert len(rows) == 3 * 7
    assert {row["axis_head"] for row in rows} == {"logistic", "cosine"}
    best = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert BackboneConfig(**best["backbone"]) == ranking.best.setting.backbone
    assert LearnerConfig(**best["learner"]) == ranking.best.setting.learner


def test_the_page_needs_no_other_file_and_shows_every_trial_best_first(tmp_path, results):
    write_grid(tmp_path, make_grid(), results)
    page = (tmp_path / "grid.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    places = re.findall(r"<tr class=\"(?:served)?\"><td>(\d+)</td>", page)
    assert places == [str(n) for n in range(1, 8)]
    assert "+2.00 to +2.00" in page
    with Image.open(tmp_path / "trials.png") as image:
        assert min(image.size) > 200


def test_nothing_finished_yet_is_said(tmp_path):
    assert write_grid(tmp_path, make_grid(), []) is None
    assert "No trial is finished yet" in (tmp_path / "grid.html").read_text()


def test_the_terminals_table_fits_80_columns(results):
    buffer = io.StringIO()
    Console(file=buffer, width=80).print(ranking_table(rank(make_grid(), results)))
    assert "default" in buffer.getvalue()
    assert max(map(len, buffer.getvalue().splitlines())) <= 80
