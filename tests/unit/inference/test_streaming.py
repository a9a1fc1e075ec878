import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from services.common.acquisition import entropy, member_probabilities
from services.inference.embedding import Progress
from services.inference.metrics import Metrics
from services.inference.streaming import StreamedScores, highest
from tests.tiny_models import TinyModel, write_manifest


class Head:
    """The embedding is the logits; fails on a negative one."""

    def __init__(self, manifest):
        self.manifest = manifest
        self.calls = []

    def classify(self, embeddings):
        self.calls.append(len(embeddings))
        if (embeddings < 0).any():
            raise RuntimeError("negative")
        time.sleep(0.001)  # so that the other threads do not finish before the error is known
        logits = embeddings[:, None, :].astype(np.float32)
        return member_probabilities(logits)[:, 0], logits


@pytest.fixture
def head(tmp_path):
    for name in ("model.onnx", "head.onnx"):
        (tmp_path / name).touch()
    return Head(write_manifest(TinyModel(), tmp_path))


async def scores(head, values, places):
    """float32 (N,), with blocks of 10 rows."""
    blocks = ((places[i : i + 10], values[i : i + 10]) for i in range(0, len(values), 10))
    progress = Progress("score", 0, len(values))
    streamed = StreamedScores(head, blocks, entropy, progress, Metrics())
    with ThreadPoolExecutor(3) as pool:
        await streamed.run(pool, 3)
    assert progress.done == len(values)
    return streamed.scores


async def test_each_score_lands_in_the_place_asked_for(head):
    rng = np.random.default_rng(0)
    values, places = rng.random((105, 3)).astype(np.float16), rng.permutation(105)
    streamed = await scores(head, values, places)
    shares = np.exp(values.astype(np.float32))
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(streamed[places], -(shares * np.log(shares)).sum(axis=1), rtol=1e-5)


async def test_an_error_in_one_thread_ends_all_and_is_raised(head):
    values = np.ones((1000, 3), np.float16)
    values[15] = -1
    with pytest.raises(RuntimeError, match="negative"):
        await scores(head, values, np.arange(1000))
    assert len(head.calls) < 50


@pytest.mark.parametrize("top", [1, 3, 5, 6, 100])
def test_the_highest_are_those_of_a_stable_sort(top):
    values = np.array([1, 3, 2, 3, 3, 0], np.float32)
    assert highest(values, top).tolist() == np.argsort(-values, kind="stable")[:top].tolist()


def test_scores_that_are_not_numbers_come_last():
    assert highest(np.array([np.nan, 1, np.nan, 2], np.float32), 3).tolist() == [3, 1, 0]
