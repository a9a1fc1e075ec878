"""`al-trainer compare` as people type it: what cannot be run is explained, and nothing is begun."""

import os
import subprocess
import sys

import pytest

from services.trainer.comparison.store import ComparisonStore
from services.trainer.database import open_database
from services.trainer.datasets import ensure_dataset

pytestmark = pytest.mark.slow

CONFIG = """\
name: digits
source: {kind: digits, size: 8, pool: {split: train, limit: 60}, test: {split: test, limit: 20}}
strategies: [margin]
backbones: {small: {name: base_cnn, weights: none}}
seeds: 1
initial: {labels: 10}
batch: 10
"""


@pytest.fixture
def compare(tmp_path):
    environment = os.environ | {
        "TRAINER_DATABASE_URL": f"sqlite:///{tmp_path}/trainer.db",
        "TRAINER_REGISTRY_DIR": f"{tmp_path}/registry",
        "TRAINER_SOURCES_DIR": f"{tmp_path}/sources",
        "TRAINER_EMBEDDINGS_DIR": f"{tmp_path}/embeddings",
        "TRAINER_REPORTS_DIR": f"{tmp_path}/reports",
        "TRAINER_CACHE_DIR": f"{tmp_path}/cache",
        "TRAINER_REDIS_URL": "redis://127.0.0.1:1/0",
        "TRAINER_INFERENCE_ADDRESS": "127.0.0.1:1",
        "QUERENT_DATA_DIR": f"{tmp_path}/data",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    ensure_dataset("digits", None, tmp_path / "data", lambda line: None)

    def run(text, *more):
        path = tmp_path / "compare.yaml"
        path.write_text(text)
        command = [sys.executable, "-m", "services.trainer.cli", "compare", str(path), *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("budget: 30\nstrateggies: [margin]\n", "unknown key 'strateggies'; did you mean 'strategies'?"),
        ("budget: 35\n", "30 would do"),
        ("budget: 100\n", "the pool has 60 samples and the budget is 100 labels"),
    ],
)
def test_a_config_that_cannot_run_is_explained(compare, changed, told):
    result = compare(CONFIG + changed)
    assert result.returncode == 1
    assert told in result.stderr
    assert "Traceback" not in result.stderr


def test_without_inference_nothing_is_begun_and_the_error_names_its_address(compare, tmp_path):
    result = compare(CONFIG + "budget: 30\n")
    assert result.returncode == 1
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr
    store = ComparisonStore(open_database(f"sqlite:///{tmp_path}/trainer.db"))
    assert store.next_due("digits") is None


def test_stopping_what_was_never_begun_says_so(compare):
    result = compare(CONFIG + "budget: 30\n", "--stop")
    assert result.returncode == 1
    assert "no comparison 'digits'" in result.stderr
