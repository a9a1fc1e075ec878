"""Peers' query code at our port: what every adapter promises, whatever its peer does."""

import numpy as np
import pytest

from services.trainer.comparison.curve import learning_curve
from services.trainer.learning import SilentWatch
from services.trainer.strategies import ScoredPool
from tests.bench.al.peers import PEERS
from tests.bench.al.runs import named
from tests.fakes import FakeLearner, FakePool
from tests.unit.comparison.conftest import make_comparison, make_study

CLASSES = 3


def made_up_pool(size: int = 90, labelled: int = 12) -> ScoredPool:
    rng = np.random.default_rng(0)
    classes = np.arange(size) % CLASSES
    rows = (rng.standard_normal((size, 6)) + 2 * np.eye(6)[classes]).astype(np.float32)
    ids = [f"{i:04d}" for i in range(size)]
    place = {sample: i for i, sample in enumerate(ids)}

    def classify(embeddings: np.ndarray) -> np.ndarray:
        exp = np.exp(embeddings[:, :CLASSES])
        return (exp / exp.sum(axis=1, keepdims=True))[:, None]

    return ScoredPool(
        ids=tuple(ids[labelled:]),
        labelled=tuple(ids[:labelled]),
        scores=None,
        embeddings=lambda wanted: rows[[place[i] for i in wanted]],
        classify=classify,
        labelled_classes=classes[:labelled],
        class_count=CLASSES,
    )


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_picks_unlabelled_samples_once_each_and_repeats_itself(name):
    pool = made_up_pool()
    picked = PEERS[name].pick(pool, 7, np.random.default_rng(3))
    assert len(picked) == len(set(picked)) == 7
    assert set(picked) <= set(pool.ids)
    assert picked == PEERS[name].pick(pool, 7, np.random.default_rng(3))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_never_asked_for_more_than_there_is(name):
    pool = made_up_pool(size=16)
    assert set(PEERS[name].pick(pool, 100, np.random.default_rng(0))) == set(pool.ids)


@pytest.mark.parametrize("name", ["scikit-activeml margin", "modAL margin"])
def test_a_peers_margin_is_ours(name):
    pool = made_up_pool()
    top = np.sort(pool.classify(pool.embeddings(pool.ids))[:, 0], axis=1)
    smallest = np.argsort(top[:, -1] - top[:, -2])[:5]
    assert set(PEERS[name].pick(pool, 5, np.random.default_rng(0))) == {pool.ids[i] for i in smallest}


def test_a_peer_goes_through_the_loop_of_our_own_strategies():
    pool = FakePool()
    config = make_comparison().campaign(make_comparison().cells()[0])
    labels = {}
    for name in ("margin", "modAL margin"):
        changed = config.model_copy(update={"strategy": name})
        points = learning_curve(changed, make_study(pool), FakeLearner(pool), SilentWatch(), named).points
        labels[name] = [(point.labels, point.accuracy) for point in points]
    assert [count for count, _ in labels["modAL margin"]] == [10, 20, 30]
    assert labels["modAL margin"][0] == labels["margin"][0], "the same initial labels"
