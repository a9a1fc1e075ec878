"""Two real servers on one embeddings folder."""

import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from services.client.client import QuerentClient
from services.common.errors import Unavailable
from tests.tiny_models import Folders, RunningInference, TinyModel, TinySource, publish, running_inference

pytestmark = pytest.mark.slow
BLOCK = 1024


def score(server: RunningInference, source: TinySource) -> np.ndarray:
    with QuerentClient(server.address, timeout_s=60) as client:
        return np.asarray(client.score_pool(source.source_id, "margin").scores)


def embedded(server: RunningInference) -> float:
    text = urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()
    found = re.search(r'inference_images_total\{.*purpose="embed".*\} (\S+)', text)
    return float(found[1]) if found else 0.0


def stored(folders: Folders) -> list[str]:
    """The ids of every row of every finished shard."""
    commits = folders.embeddings_dir.rglob("*.json")
    return [i for commit in commits for i in np.load(commit.with_suffix(".ids.npy")).astype(str).tolist()]


def leftovers(folders: Folders) -> list[Path]:
    """Rows that belong to no finished shard."""
    rows = folders.embeddings_dir.rglob("*.f16.npy")
    return [r for r in rows if not r.with_suffix("").with_suffix(".json").exists()]


def test_two_replicas_asked_at_once_share_a_pool_and_embed_each_sample_once(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=1), promote=True)
    source = folders.source(splits={"pool": 6 * BLOCK + 100})
    threads = {"INFERENCE_THREADS": "1"}
    with (
        running_inference(folders, **threads) as one,
        running_inference(folders, **threads) as other,
        ThreadPoolExecutor(2) as callers,
    ):
        scores = list(callers.map(lambda server: score(server, source), (one, other)))
        shares = embedded(one), embedded(other)
    assert sum(shares) == 6 * BLOCK + 100
    assert min(shares) >= BLOCK
    assert sorted(stored(folders)) == sorted(source.ids["pool"])
    assert scores[0].tolist() == scores[1].tolist()
    assert list(folders.embeddings_dir.rglob("*.claim")) == []


def test_a_replica_finishes_what_a_killed_one_left_and_no_sample_is_stored_twice(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=1), promote=True)
    source = folders.source(splits={"pool": 8 * BLOCK})
    threads = {"INFERENCE_THREADS": "1"}
    with (
        running_inference(folders, **threads) as survivor,
        running_inference(folders, **threads) as victim,
        ThreadPoolExecutor(2) as callers,
    ):
        finishing = callers.submit(score, survivor, source)
        dying = callers.submit(score, victim, source)
        deadline = time.monotonic() + 30
        while len(stored(folders)) < 2 * BLOCK or embedded(victim) < BLOCK + 256:
            assert time.monotonic() < deadline, "the replicas did not get on in time"
            time.sleep(0.01)
        before = embedded(victim)
        victim.process.kill()
        scores = finishing.result(timeout=60)
        with pytest.raises(Unavailable):
            dying.result(timeout=90)
        finished = embedded(survivor)
    assert len(scores) == 8 * BLOCK
    assert sorted(stored(folders)) == sorted(source.ids["pool"])
    # The blocks that the victim had finished stay finished; the survivor does the rest, and no more.
    assert 8 * BLOCK - (before + BLOCK) <= finished <= 8 * BLOCK - BLOCK
    assert leftovers(folders) == []
