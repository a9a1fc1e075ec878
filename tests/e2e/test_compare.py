"""`al-trainer compare` and `grid` over a real broker and real services: a killed worker costs one cell."""

import signal
import subprocess
import sys

import pytest

from services.trainer.comparison.store import ComparisonStore
from services.trainer.database import open_database
from services.trainer.datasets import ensure_dataset
from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONFIG = """\
name: digits-strategies
source: {kind: digits, size: 32, pool: {split: train, limit: 300}, test: {split: test, limit: 200}}
strategies: [margin, badge]
backbones: {small: {name: base_cnn, weights: none}}
heads: {logistic: {folds: 3}}
seeds: 2
initial: {labels: 30}
batch: 30
budget: 120
"""

GRID = """\
name: digits-grid
source: {kind: digits, size: 32, pool: {split: train, limit: 300}, test: {split: test, limit: 200}}
labels: 200
seeds: 3
setting: {backbone: {name: base_cnn, weights: none}, learner: {folds: 3}}
axes: {flip: [false, true], c: [0.01, 1.0]}
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("compare"))
    ensure_dataset("digits", None, stack.folder / "data", lambda line: None)
    (stack.folder / "compare.yaml").write_text(CONFIG)
    (stack.folder / "grid.yaml").write_text(GRID)
    stack.start_redis()
    stack.start_inference()
    yield stack
    stack.end_all()


def compare(stack, *more, kind="compare", **environment):
    command = [sys.executable, "-m", "services.trainer.cli", kind, str(stack.folder / f"{kind}.yaml"), *more]
    env = stack.environment | {"NO_COLOR": "1", "COLUMNS": "100"} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def curves(url):
    store = ComparisonStore(open_database(url))
    results = store.results(store.comparison("digits-strategies"))
    return {r.cell.key: [(p.labels, p.accuracy, round(p.ece, 6)) for p in r.points] for r in results}


@pytest.fixture(scope="module")
def by_workers(stack):
    """Two workers, one of which is killed in the middle of a cell; the broker is lost with it."""
    begun = compare(stack)
    assert begun.returncode == 0, begun.stderr
    store = ComparisonStore(open_database(stack.environment["TRAINER_DATABASE_URL"]))
    comparison = store.comparison("digits-strategies")
    first = stack.start_worker()
    wait_for(lambda: (t := store.tally(comparison)).done >= 1 and t.running, "a cell that runs after the first")
    assert stack.end(first, signal.SIGKILL) == -signal.SIGKILL
    killed_at = store.tally(comparison).done
    stack.flush_redis()
    second = stack.start_worker()
    wait_for(lambda: store.tally(comparison).over, "all cells", 240)
    report = stack.folder / "reports" / "compare" / "digits-strategies" / "comparison.html"
    wait_for(report.is_file, "the report")
    assert stack.end(second) == 0
    assert killed_at < store.tally(comparison).done == 7
    return curves(stack.environment["TRAINER_DATABASE_URL"])


def test_all_cells_have_their_curves_although_a_worker_was_killed(by_workers):
    assert {len(points) for key, points in by_workers.items() if "all labels" not in key} == {4}
    assert all(points[-1][1] > points[0][1] for key, points in by_workers.items() if "all labels" not in key)


def test_every_strategy_of_a_seed_began_with_the_same_model(by_workers):
    for seed in (0, 1):
        firsts = {
            points[0] for key, points in by_workers.items() if key.endswith(f"/{seed}") and "all labels" not in key
        }
        assert len(firsts) == 1


def test_nothing_is_left_in_the_registry(stack, by_workers):
    assert stack.registry.campaigns() == []


def test_run_again_it_only_reports(stack, by_workers):
    again = compare(stack, "--follow", "--out", str(stack.folder / "elsewhere"))
    assert again.returncode == 0, again.stderr
    assert "7 of 7 cells are done" in again.stdout
    assert "margin" in again.stdout
    assert {p.name for p in (stack.folder / "elsewhere").glob("*.csv")} == {"runs.csv", "summary.csv"}
    assert len(list((stack.folder / "elsewhere").glob("*.png"))) == 5


def test_processes_here_come_to_the_same_curves_as_workers(stack, by_workers):
    url = f"sqlite:///{stack.folder}/here.db"
    local = compare(stack, "--local", "1", TRAINER_DATABASE_URL=url, TRAINER_REDIS_URL="redis://127.0.0.1:1/0")
    assert local.returncode == 0, local.stderr
    assert curves(url) == by_workers


def judged(url):
    store = ComparisonStore(open_database(url))
    results = store.results(store.comparison("digits-grid"))
    return {r.cell.key: (r.validation.accuracy, round(r.validation.log_loss, 6), r.points[0].accuracy) for r in results}


def test_a_killed_worker_costs_a_grid_search_one_trial_and_changes_none(stack):
    first = stack.start_worker()
    begun = compare(stack, kind="grid")
    assert begun.returncode == 0, begun.stderr
    store = ComparisonStore(open_database(stack.environment["TRAINER_DATABASE_URL"]))
    grid = store.comparison("digits-grid")
    wait_for(lambda: (t := store.tally(grid)).done >= 1 and t.running, "a trial that runs after the first")
    assert stack.end(first, signal.SIGKILL) == -signal.SIGKILL
    stack.flush_redis()
    second = stack.start_worker()
    wait_for(lambda: store.tally(grid).over, "all trials", 240)
    wait_for((stack.folder / "reports" / "grid" / "digits-grid" / "grid.html").is_file, "the report")
    assert stack.end(second) == 0

    url = f"sqlite:///{stack.folder}/grid-here.db"
    local = compare(stack, "--local", "1", kind="grid", TRAINER_DATABASE_URL=url)
    assert local.returncode == 0, local.stderr
    assert judged(url) == judged(stack.environment["TRAINER_DATABASE_URL"])
    assert len(judged(url)) == 3 * 5  # seeds x (the default with its own search for C, and two C for each flip)
