import numpy as np
import pytest

from services.trainer.strategies.kmeans import draw, kmeans, nearest_to_centers

BLOBS = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [10, 10], [10, 11], [30, 0]], np.float32)


def look() -> None: ...


def test_blobs_far_apart_are_the_clusters():
    found = kmeans(BLOBS, 3, np.random.default_rng(0), look)
    assert [len(set(found.labels[part])) for part in (slice(0, 4), slice(4, 6), slice(6, 7))] == [1, 1, 1]
    assert sorted(found.centers.tolist()) == [[0.5, 0.5], [10, 10.5], [30, 0]]
    assert found.nearest(np.array([[29, 1]], np.float32)) == found.labels[6]


def test_the_same_seed_gives_the_same_clusters():
    points = np.random.default_rng(1).normal(size=(500, 5)).astype(np.float32)
    first, second = (kmeans(points, 20, np.random.default_rng(7), look) for _ in range(2))
    np.testing.assert_array_equal(first.labels, second.labels)


def test_every_point_is_in_the_cluster_of_its_nearest_center():
    points = np.random.default_rng(1).normal(size=(5000, 3)).astype(np.float32)
    found = kmeans(points, 9, np.random.default_rng(2), look)
    distances = ((points[:, None] - found.centers) ** 2).sum(axis=2)
    np.testing.assert_array_equal(distances.argmin(axis=1), found.labels)


def test_weights_pull_the_center():
    points = np.array([[0.0], [1.0]], np.float32)
    found = kmeans(points, 1, np.random.default_rng(0), look, weights=np.array([3.0, 1.0]))
    assert found.centers.tolist() == [[0.25]]


@pytest.mark.parametrize("count", [1, 3, 7, 100])
def test_equal_points_and_more_clusters_than_points_are_no_trouble(count):
    found = kmeans(np.ones((7, 2), np.float32), count, np.random.default_rng(0), look)
    assert len(found.labels) == 7
    assert np.isfinite(found.centers).all()


def test_the_nearest_to_each_center_come_from_the_largest_cluster_first():
    found = kmeans(np.array([[0], [1], [2], [10], [50], [51]], np.float32), 3, np.random.default_rng(0), look)
    nearest = nearest_to_centers(np.array([[0], [1], [2], [10], [50], [51]], np.float32), found).tolist()
    assert nearest[0] == 1
    assert nearest[1] in (4, 5)
    assert nearest[2] == 3


def test_a_draw_never_lands_on_a_chance_of_zero_and_is_uniform_when_all_are_zero():
    rng = np.random.default_rng(0)
    assert {draw(np.array([0, 1.0, 0, 2.0, 0]), rng) for _ in range(200)} == {1, 3}
    assert {draw(np.zeros(3), rng) for _ in range(100)} == {0, 1, 2}
