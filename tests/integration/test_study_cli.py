"""`al-trainer grid` and `al-trainer study` as people type them, with nothing else running."""

import csv
import os
import signal
import subprocess
import sys

import pytest

from services.trainer.comparison.store import ComparisonStore
from services.trainer.database import open_database
from services.trainer.datasets import ensure_dataset
from tests.e2e.stack import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SOURCE = "source: {kind: digits, size: 16, pool: {split: train, limit: 120}, test: {split: test, limit: 60}}\n"
GRID = (
    SOURCE
    + """\
name: tiny-grid
labels: 40
seeds: 2
setting:
  backbone: {name: base_cnn, weights: none}
  learner: {folds: 3}
axes: {flip: [false, true], head: [logistic, cosine], c: [0.01, 1.0]}
"""
)
STUDY = (
    SOURCE
    + """\
name: tiny
strategies: [margin]
seeds: 2
initial: {labels: 20}
batch: 20
budget: 60
arms:
  trained:
    backbone: {name: base_cnn, weights: none}
    learner: {mode: finetune, folds: 2, finetune: {epochs: 1, mirror: false}}
  frozen: {backbone: {name: base_cnn, weights: none}, learner: {folds: 3}}
  lacking: {backbone: {name: resnet50, input_size: 32}}
grid:
  arm: frozen
  labels: 40
  seeds: 2
  axes: {head: [logistic, cosine], c: [0.01, 1.0]}
"""
)


@pytest.fixture
def environment(tmp_path):
    ensure_dataset("digits", None, tmp_path / "data", lambda line: None)
    return os.environ | {
        "TRAINER_DATABASE_URL": f"sqlite:///{tmp_path}/trainer.db",
        "TRAINER_REGISTRY_DIR": f"{tmp_path}/registry",
        "TRAINER_SOURCES_DIR": f"{tmp_path}/sources",
        "TRAINER_EMBEDDINGS_DIR": f"{tmp_path}/embeddings",
        "TRAINER_REPORTS_DIR": f"{tmp_path}/reports",
        "TRAINER_CACHE_DIR": f"{tmp_path}/cache",
        "TRAINER_REDIS_URL": "redis://127.0.0.1:1/0",
        "TRAINER_LEASE_SECONDS": "2",
        "TRAINER_THREADS": "1",
        "TRAINER_INFERENCE_ADDRESS": "127.0.0.1:1",
        "QUERENT_DATA_DIR": f"{tmp_path}/data",
        # Nothing may be found here, and nothing downloaded: the port is closed.
        "QUERENT_WEIGHTS_DIR": f"{tmp_path}/weights",
        "https_proxy": "http://127.0.0.1:1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }


@pytest.fixture
def command(tmp_path):
    def write(kind, text, *more):
        path = tmp_path / f"{kind}.yaml"
        path.write_text(text)
        return [sys.executable, "-m", "services.trainer.cli", kind, str(path), *more]

    return write


def run(command, environment):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_a_grid_search_needs_nothing_that_runs_and_keeps_every_trial(command, environment, tmp_path):
    result = run(command("grid", GRID, "--local", "1"), environment)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "reports" / "grid" / "tiny-grid"
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert len(rows) == 2 * (1 + 2 * (2 + 1))  # seeds x (the default, and for each flip two C and the cosine head)
    assert {p.name for p in folder.iterdir()} >= {"grid.html", "best.yaml", "ranking.csv", "trials.parquet"}
    assert not list((tmp_path / "registry").glob("*"))  # nothing is published


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("max_trials: 3\n", "and max_trials is 3; leave values out"),
        ("axis: {head: [mlp]}\n", "unknown key 'axis'; did you mean 'axes'?"),
    ],
)
def test_a_grid_that_cannot_be_searched_is_explained(command, environment, changed, told):
    result = run(command("grid", GRID + changed), environment)
    assert result.returncode == 1
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_a_killed_study_goes_on_and_says_what_it_could_not_run(command, environment, tmp_path):
    started = subprocess.Popen(
        command("study", STUDY, "--local", "1"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    store = ComparisonStore(open_database(environment["TRAINER_DATABASE_URL"]))

    def cells_done():
        if not store.has("tiny-grid"):  # the last of its parts
            return 0
        parts = [store.comparison(f"tiny-{part}") for part in ("trained", "frozen", "grid")]
        return sum(tally.done for tally in store.tallies(parts).values())

    try:
        wait_for(lambda: cells_done() >= 1, "a cell that is done", 300)
    finally:
        started.send_signal(signal.SIGKILL)
        started.wait()
    before = {r.cell.key: r for r in store.results(store.comparison("tiny-trained"))}

    again = run(command("study", STUDY, "--local", "1"), environment)
    assert again.returncode == 3, again.stderr
    assert "finished without lacking" in again.stdout
    after = {r.cell.key: r for r in store.results(store.comparison("tiny-trained"))}
    assert {key: after[key] for key in before} == before  # what was done stayed done
    assert len(after) == 2 * 2 + 1

    folder = tmp_path / "reports" / "study" / "tiny"
    page = (folder / "study.html").read_text()
    assert "lacking was not run" in page
    assert "resnet50_imagenet.safetensors in QUERENT_WEIGHTS_DIR" in page
    assert "To get them: run once with a network" in page
    files = {path.name for path in folder.iterdir()}
    assert {"overview.png", "runs.csv", "confusion.csv", "grid-trials.csv", "grid-best.yaml"} <= files
    assert {f"{arm}-confusion-{s}.png" for arm in ("trained", "frozen") for s in ("margin", "all-labels")} <= files
    assert not list((tmp_path / "registry").glob("*"))
