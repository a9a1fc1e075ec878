"""One contract for every strategy in the table."""

import numpy as np
import pytest

from services.common.errors import BadConfig
from services.trainer.strategies import STRATEGIES, ScoredPool, strategy

POOL = 60


def scored_pool(labelled: int = 5, size: int = POOL, scores: np.ndarray | None = None) -> ScoredPool:
    rng = np.random.default_rng(1)
    ids = tuple(f"u{i}" for i in range(size))
    old = tuple(f"l{i}" for i in range(labelled))
    embedding = {i: rng.normal(size=8).astype(np.float32) for i in (*ids, *old)}
    return ScoredPool(
        ids=ids,
        labelled=old,
        scores=rng.random(size).astype(np.float32) if scores is None else scores,
        embeddings=lambda wanted: np.array([embedding[i] for i in wanted]).reshape(len(wanted), 8),
    )


every_strategy = pytest.mark.parametrize("name", sorted(STRATEGIES))


def pick(name: str, pool: ScoredPool, budget: int, seed: int = 0) -> list[str]:
    return STRATEGIES[name].pick(pool, budget, np.random.default_rng(seed))


@every_strategy
@pytest.mark.parametrize("budget", [0, 1, 7, POOL, POOL + 10])
def test_picks_distinct_unlabelled_samples_within_the_budget(name, budget):
    pool = scored_pool()
    picked = pick(name, pool, budget)
    assert len(picked) == len(set(picked)) == min(budget, POOL)
    assert set(picked) <= set(pool.ids)


@every_strategy
def test_the_same_seed_picks_the_same_batch(name):
    pool = scored_pool()
    assert pick(name, pool, 10, seed=3) == pick(name, pool, 10, seed=3)


@every_strategy
def test_works_before_anything_is_labelled(name):
    assert len(pick(name, scored_pool(labelled=0), 5)) == 5


@every_strategy
def test_works_when_all_scores_and_embeddings_are_equal(name):
    pool = scored_pool(scores=np.full(POOL, 0.5, np.float32))
    pool = ScoredPool(pool.ids, pool.labelled, pool.scores, lambda ids: np.ones((len(ids), 8), np.float32))
    assert len(set(pick(name, pool, 10))) == 10


@every_strategy
def test_a_strategy_knows_its_own_name_and_what_it_needs(name):
    assert STRATEGIES[name].name == name
    assert STRATEGIES[name].acquisition in (None, "least_confidence", "margin", "entropy")


@pytest.mark.parametrize("name", ["least_confidence", "margin", "entropy"])
def test_uncertainty_picks_the_highest_scores_first(name):
    scores = np.arange(POOL, dtype=np.float32)
    assert pick(name, scored_pool(scores=scores), 3) == [f"u{POOL - 1}", f"u{POOL - 2}", f"u{POOL - 3}"]


def test_equal_scores_are_drawn_at_random():
    pool = scored_pool(scores=np.zeros(POOL, np.float32))
    assert pick("margin", pool, 10, seed=1) != pick("margin", pool, 10, seed=2)


def test_k_center_takes_the_farthest_point_first():
    at = {"l0": 0.0, "u0": 1.0, "u1": 2.0, "u2": 10.0, "u3": 6.0}
    pool = ScoredPool(("u0", "u1", "u2", "u3"), ("l0",), None, lambda ids: np.array([[at[i]] for i in ids], np.float32))
    # 10 is farthest from 0; then 6 is 4 away from 10, and 2 is 2 away from 0.
    assert pick("k_center", pool, 3) == ["u2", "u3", "u1"]


def test_random_draws_every_sample_about_equally_often():
    counts = dict.fromkeys(scored_pool().ids, 0)
    for seed in range(300):
        for sample in pick("random", scored_pool(), 20, seed):
            counts[sample] += 1
    assert 60 < min(counts.values()) <= max(counts.values()) < 140  # 100 expected


def test_an_unknown_strategy_names_the_nearest():
    with pytest.raises(BadConfig, match="did you mean 'margin'"):
        strategy("margins")
