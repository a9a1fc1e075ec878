"""Strategies that need no model: typiclust, prob_cover and centroids, on the unit circle."""

from dataclasses import replace

import numpy as np
import pytest

from services.trainer.strategies import Kept, strategy
from services.trainer.strategies import typiclust as typiclust_module
from services.trainer.strategies.landscape import landscape
from services.trainer.strategies.prob_cover import pure_radius, transposed
from services.trainer.strategies.typiclust import typicality
from tests.unit.strategies.planes import at_angle, group, pool_of

# Three dense groups, of 21, 15 and 9 samples, and two samples that resemble nothing.
CIRCLE = {
    **group("east", 0, 21),
    **group("north", 90, 15),
    **group("west", 180, 9),
    "odd-0": at_angle(250),
    "odd-1": at_angle(300),
}


def pick(name, pool, budget, seed=0):
    return strategy(name).pick(pool, budget, np.random.default_rng(seed))


def kinds(picked):
    return [i.split("-")[0] for i in picked]


def test_centroids_takes_the_middle_of_each_group_the_largest_first():
    rows = {i: at for i, at in CIRCLE.items() if not i.startswith("odd")}
    assert pick("centroids", pool_of(rows), 3) == ["east-10", "north-07", "west-04"]


def test_typiclust_takes_a_typical_sample_of_each_group_and_no_odd_one():
    # Five clusters, and those of the two odd samples are too small: after a turn of the others comes a second one.
    assert kinds(pick("typiclust", pool_of(CIRCLE), 5)) == ["east", "north", "west", "east", "north"]


def test_typiclust_asks_about_clusters_without_a_label_first():
    rows = {i: at for i, at in CIRCLE.items() if not i.startswith("odd")}
    # Two labels and one to buy: three clusters, and north has none yet.
    assert kinds(pick("typiclust", pool_of(rows, labelled=["east-00", "west-00"]), 1)) == ["north"]


def test_the_most_typical_sample_is_the_one_with_the_nearest_neighbours():
    points = np.array([[0.0], [0.9], [1.0], [1.1], [9.0]])
    assert typicality(points, pool_of(CIRCLE)).argmax() == 2
    assert typicality(points[:1], pool_of(CIRCLE)).tolist() == [1.0]


def test_typicality_is_one_over_the_mean_distance_to_the_nearest_half():
    points = np.array([[0.0], [1.0], [3.0], [7.0]])
    nearest_two = np.array([(1 + 3) / 2, (1 + 2) / 2, (2 + 3) / 2, (4 + 6) / 2])
    np.testing.assert_allclose(typicality(points, pool_of(CIRCLE)), 1 / (nearest_two + 1e-5))


def test_a_cluster_of_any_size_costs_a_bounded_number_of_distances(monkeypatch):
    monkeypatch.setattr(typiclust_module, "MAX_MEMBERS", 5)
    seen = []

    def counted(points, pool):
        seen.append(len(points))
        return typicality(points, pool)

    monkeypatch.setattr(typiclust_module, "typicality", counted)
    pick("typiclust", pool_of(CIRCLE), 3)
    assert max(seen) <= 5


def test_prob_cover_takes_the_ball_that_covers_most_first():
    picked = pick("prob_cover", pool_of(CIRCLE, classes=3), 3)
    assert kinds(picked) == ["east", "north", "west"]


def test_prob_cover_leaves_alone_what_a_labelled_sample_covers():
    picked = pick("prob_cover", pool_of(CIRCLE, labelled=["east-10"], classes=3), 2)
    assert kinds(picked) == ["north", "west"]


def test_prob_cover_draws_at_random_once_all_is_covered():
    rows = {i: at for i, at in CIRCLE.items() if not i.startswith("odd")}
    pool = pool_of(rows, labelled=["east-10", "north-07", "west-04"], classes=3)
    assert pick("prob_cover", pool, 5, seed=0) != pick("prob_cover", pool, 5, seed=1)


def test_the_radius_is_the_largest_at_which_balls_are_pure():
    # Two groups 10 apart. 19 of 20 samples have their nearest stranger at 10 or more, one at 3.
    points = np.array([[0.0]] * 19 + [[10.0]] * 20 + [[7.0]], np.float32)
    pseudo = np.array([0] * 19 + [1] * 20 + [0])
    # Of 40 samples two may be impure: the stray one, and as the next nearest those at 10 that see it 3 away.
    assert pure_radius(points, pseudo, pool_of(CIRCLE)) == pytest.approx(3.0)
    assert pure_radius(points, np.zeros(40, int), pool_of(CIRCLE)) == 0.0


def covering_by_hand(points, radius, budget):
    within = np.linalg.norm(points[:, None] - points[None], axis=2) < radius
    covered, chosen = np.zeros(len(points), bool), []
    for _ in range(budget):
        gains = (within & ~covered).sum(axis=1)
        gains[chosen] = 0
        if not gains.any():
            break  # all is covered
        chosen.append(int(gains.argmax()))
        covered |= within[chosen[-1]]
    return chosen


@pytest.mark.parametrize(("radius", "recounted"), [(0.2, 256), (0.4, 3), (0.8, 3), (0.8, 1)])
def test_prob_cover_with_bits_and_lazy_counts_is_prob_cover_on_the_whole_graph(monkeypatch, radius, recounted):
    module = "services.trainer.strategies.prob_cover."
    monkeypatch.setattr(module + "_TILE", 16)
    monkeypatch.setattr(module + "_RECOUNTED", recounted)
    monkeypatch.setattr(module + "pure_radius", lambda *_: radius)
    rows = np.random.default_rng(0).normal(size=(100, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pool = pool_of({f"{i:03d}": row for i, row in enumerate(rows)})
    expected = covering_by_hand(rows, radius, 15)
    assert [int(i) for i in pick("prob_cover", pool, len(expected))] == expected
    # What is kept from a round serves the next one.
    bought = [f"{i:03d}" for i in expected[:5]]
    later = replace(pool, ids=tuple(i for i in pool.ids if i not in bought), labelled=tuple(bought))
    assert [int(i) for i in pick("prob_cover", later, len(expected) - 5)] == expected[5:]


def test_prob_cover_keeps_the_balls_of_one_embedding_alone():
    pool = pool_of(CIRCLE, classes=3)
    for key in ("one", "two", "one"):
        picked = pick("prob_cover", replace(pool, embedding_key=key), 3)
        assert picked == pick("prob_cover", replace(pool, embedding_key=key, kept=Kept()), 3)
    assert pool.kept.get(("prob_cover",))[0] == (landscape(replace(pool, embedding_key="one")).key, 3)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (16, 40), (1024, 1000)])
def test_a_matrix_of_bits_is_transposed_as_one_of_bytes_is(rows, columns):
    matrix = np.random.default_rng(0).random((rows, columns)) < 0.3
    turned = transposed(np.packbits(matrix, axis=1))
    np.testing.assert_array_equal(np.unpackbits(turned, axis=1)[:columns], matrix.T)
