from dataclasses import replace

import numpy as np

from services.trainer.strategies import Kept, strategy
from services.trainer.strategies import k_center as module
from tests.unit.strategies.planes import Store, pool_of

K_CENTER = strategy("k_center")


def pick(pool, budget, seed=0):
    return K_CENTER.pick(pool, budget, np.random.default_rng(seed))


def greedy(rows, labelled, budget):
    """Farthest first, as the paper has it."""
    left, chosen = [i for i in rows if i not in labelled], list(labelled)
    for _ in range(budget):
        chosen.append(max(left, key=lambda i: min(np.sum((rows[i] - rows[j]) ** 2) for j in chosen)))
        left.remove(chosen[-1])
    return chosen[len(labelled) :]


def test_the_farthest_point_comes_first():
    # 10 is farthest from 0; then 6 is 4 away from 10, and 2 is 2 away from 0.
    line = {"l0": [0.0], "u0": [1.0], "u1": [2.0], "u2": [10.0], "u3": [6.0]}
    assert pick(pool_of(line, labelled=["l0"]), 3) == ["u2", "u3", "u1"]


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    rows = {f"{i:03d}": rng.normal(size=4) for i in range(150)}
    labelled = ["003", "070", "120"]
    expected = greedy(rows, labelled, 30)
    for size in (1, 2, 17, 150, 1024):
        monkeypatch.setattr(module, "_BLOCK", size)
        assert pick(pool_of(rows, labelled), 30) == expected


def test_many_labelled_samples_are_many_tiles(monkeypatch):
    monkeypatch.setattr(module, "_TILE_CENTERS", 4)
    monkeypatch.setattr(module, "_TILE_ROWS", 16)
    rng = np.random.default_rng(1)
    rows = {f"{i:03d}": rng.normal(size=5) for i in range(90)}
    labelled = list(rows)[::6]
    assert pick(pool_of(rows, labelled), 12) == greedy(rows, labelled, 12)


def rounds(rows, count, kept_between):
    """Batches of 7, each bought before the next; and which embeddings the last one asked for beside the pool's."""
    kept, bought, asked = Kept(), [], []
    for _ in range(count):
        pool = replace(pool_of(rows, bought), kept=kept if kept_between else Kept())
        assert isinstance(pool.embeddings, Store)
        bought += pick(pool, 7)
        asked = pool.embeddings.asked[len(rows) :]
    return bought, asked


def test_distances_kept_across_rounds_give_the_same_picks_and_save_the_labelled_ones():
    rng = np.random.default_rng(2)
    rows = {f"{i:03d}": rng.normal(size=6) for i in range(200)}
    with_kept, asked_with = rounds(rows, 4, kept_between=True)
    without, asked_without = rounds(rows, 4, kept_between=False)
    assert with_kept == without
    assert set(asked_with) <= set(with_kept[-14:-7])  # the last batch bought: measured from now
    assert len(asked_without) == 21


def test_a_batch_that_was_never_bought_is_forgotten():
    rng = np.random.default_rng(3)
    rows = {f"{i:03d}": rng.normal(size=6) for i in range(60)}
    pool = pool_of(rows, labelled=["000"])
    first = pick(pool, 10)
    assert pick(pool, 10) == first


def test_of_a_large_pool_the_samples_with_the_smallest_ids_are_looked_at(monkeypatch):
    monkeypatch.setattr(module, "MAX_SAMPLES", 4)
    line = {f"u{i}": [float(i)] for i in range(9)}
    picked = pick(pool_of(line, labelled=["u0"]), 8)
    assert picked[0] == "u3"
    assert set(picked[:3]) == {"u1", "u2", "u3"}
    assert set(picked[3:]) == {"u4", "u5", "u6", "u7", "u8"}  # beyond these: at random
