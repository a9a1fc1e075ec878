"""What the report says of curves whose answers are known."""

import csv
import io
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from services.trainer.comparison.cells import CEILING, Cell, CellResult, Point
from services.trainer.comparison.summary import summarise
from services.trainer.comparison.write import summary_table, write_comparison
from services.trainer.strategies import STRATEGIES
from tests.unit.comparison.conftest import make_comparison

BUDGETS = (10, 20, 30)


def run(strategy, seed, accuracies, backbone="small", query=0.1):
    points = tuple(
        Point(n, a, a, 0.1, 1.0, a / 2, query if n > 10 else 0.0, 5.0, 0.2)
        for n, a in zip(BUDGETS, accuracies, strict=True)
    )
    return CellResult(Cell(seed, backbone, "logistic", strategy), points)


def ceiling(backbone="small"):
    return CellResult(Cell(0, backbone, "logistic", CEILING), (Point(40, 0.9, 0.9, 0.1, 1.0, 0.5, 0.0, None, 1.0),))


@pytest.fixture
def results():
    """Margin is two points ahead from the second budget on, and random's end is reached at 20 labels."""
    made = [ceiling()]
    for seed in range(5):
        shift = 0.01 * seed
        made.append(run("random", seed, [0.5 + shift, 0.6 + shift, 0.62 + shift]))
        made.append(run("margin", seed, [0.5 + shift, 0.62 + shift, 0.64 + shift], query=0.3))
    return made


@pytest.fixture
def config():
    return make_comparison(seeds=5)


def test_the_gain_is_paired_and_the_saving_is_where_randoms_end_is_reached(results, config):
    summary = summarise(results, config.strategies)[0]
    margin = summary.found[1]
    assert margin.final_gain.mean == pytest.approx(0.02)
    assert margin.aubc_gain.mean == pytest.approx(0.015)  # 0, 2, 2 points: (1 + 2) / 2
    assert margin.aubc_gain.low == pytest.approx(0.015)  # the seeds' own differences take nothing
    assert (margin.labels_to_reach, summary.saving(margin)) == (20, 10)
    assert summary.ceiling == (0.9, 40)


def test_who_is_ahead_at_every_later_budget_has_all_the_points(results, config):
    assert summarise(results, config.strategies)[0].penalties.tolist() == [[0, 0], [1, 0]]


def test_the_first_round_is_not_counted_as_a_query(results, config):
    assert summarise(results, config.strategies)[0].found[1].query_cpu_seconds == pytest.approx(0.3)


def test_only_paired_seeds_count(results, config):
    unpaired = [r for r in results if (r.cell.strategy, r.cell.seed) != ("margin", 4)]
    assert summarise(unpaired, config.strategies)[0].seeds == (0, 1, 2, 3)


def test_a_strategy_without_results_takes_no_seed_from_the_others(results):
    summary = summarise(results, ("random", "margin", "badge"))[0]
    assert [f.strategy for f in summary.found] == ["random", "margin"]
    assert len(summary.seeds) == 5


def test_each_backbone_is_a_table_of_its_own(results, config):
    other = [run(s, seed, [0.1, 0.2, 0.3], backbone="large") for s in ("random", "margin") for seed in range(5)]
    assert [s.backbone for s in summarise([*results, *other], config.strategies)] == ["small", "large"]


def test_nothing_is_said_before_a_seed_is_whole(config):
    assert summarise([run("random", 0, [0.1, 0.2, 0.3]), run("margin", 1, [0.1, 0.2, 0.3])], config.strategies) == []
    assert summarise([], config.strategies) == []


def test_every_run_is_in_the_csv_and_in_the_parquet_file(tmp_path, results, config):
    write_comparison(tmp_path, config, results)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert len(rows) == 2 * 5 * 3 + 1
    found = [r for r in rows if (r["strategy"], r["seed"], r["labels"]) == ("margin", "3", "20")]
    assert [float(r["accuracy"]) for r in found] == [pytest.approx(0.65)]
    assert pq.read_table(tmp_path / "runs.parquet").num_rows == len(rows)
    summary = list(csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text())))
    assert [(r["strategy"], r["labels_to_reach_random"]) for r in summary] == [("random", "30"), ("margin", "20")]


def test_the_page_needs_no_other_file(tmp_path, results, config):
    write_comparison(tmp_path, config, results)
    page = (tmp_path / "comparison.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    for kind in (r'<source media="\(prefers-color-scheme: dark\)" srcset', r'<img alt="[^"]+" src'):
        pictures = re.findall(rf'{kind}="data:image/png;base64,([^"]+)"', page)
        assert len(set(pictures)) == 5
    assert "+1.50 to +1.50" in page
    assert "20 (-10)" in page


@pytest.mark.parametrize("count", [1, 5, len(STRATEGIES) - 1])
def test_the_pictures_are_drawn_for_any_number_of_strategies_and_one_seed(tmp_path, count):
    names = [s for s in STRATEGIES if s != "random"][:count]
    rng = np.random.default_rng(0)
    made = [run(s, 0, np.sort(rng.random(3))) for s in ("random", *names)]
    write_comparison(tmp_path, make_comparison(strategies=names, seeds=1), made)
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 5
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_a_comparison_of_random_alone_has_tables_and_no_pictures(tmp_path):
    write_comparison(tmp_path, make_comparison(strategies=["random"]), [run("random", 0, [0.1, 0.2, 0.3])])
    assert not list(tmp_path.glob("*.png"))
    assert "random" in (tmp_path / "comparison.html").read_text()


def test_the_terminals_table_fits_80_columns(results, config):
    buffer = io.StringIO()
    Console(file=buffer, width=80).print(summary_table(summarise(results, config.strategies)[0]))
    text = buffer.getvalue()
    assert "+1.50" in text
    assert max(map(len, text.splitlines())) <= 80
