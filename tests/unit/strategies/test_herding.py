import numpy as np

from services.trainer.strategies import strategy
from services.trainer.strategies.herding import herd
from tests.unit.strategies.planes import group, pool_of

EAST, NORTH = group("east", 0, 30, spread=10), group("north", 90, 10, spread=10)
LONE = {"lone": (-1.0, -0.2)}


def first_pick(rows, labelled=(), scores=None, budget=1) -> list[str]:
    scores = scores or dict.fromkeys(rows, 0.5)
    pool = pool_of(rows, labelled, scores)
    return strategy("uncertainty_herding").pick(pool, budget, np.random.default_rng(0))


def test_a_sample_that_stands_for_many_comes_before_a_lone_one():
    (picked,) = first_pick(EAST | NORTH | LONE)
    assert picked.startswith("east")


def test_what_a_label_covers_is_not_bought_again():
    (picked,) = first_pick(EAST | NORTH | LONE, labelled=("east-15",))
    assert picked.startswith("north")


def test_doubts_count_more_than_numbers():
    scores = {i: 0.9 if i.startswith("north") else 0.01 for i in EAST | NORTH | LONE}
    (picked,) = first_pick(EAST | NORTH | LONE, scores=scores)
    assert picked.startswith("north")


def test_a_batch_holds_one_of_each_group():
    picked = first_pick(EAST | NORTH, budget=2)
    assert {i.split("-")[0] for i in picked} == {"east", "north"}


def test_old_bounds_give_the_batch_that_looking_at_every_gain_gives():
    rng = np.random.default_rng(1)
    points, weights = rng.normal(size=(80, 2)).astype(np.float32), rng.random(80).astype(np.float32)
    kernel = np.exp(-((points[:, None] - points[None]) ** 2).sum(axis=2)).astype(np.float32)
    covered = kernel[7]
    pool = pool_of(EAST, (), dict.fromkeys(EAST, 0.5))
    wanted, cover = [], covered
    for _ in range(12):
        gains = np.maximum(kernel - cover, 0) @ weights
        gains[wanted] = -1
        wanted.append(int(gains.argmax()))
        cover = np.maximum(cover, kernel[wanted[-1]])
    assert herd(kernel, weights, covered, 12, pool) == wanted
