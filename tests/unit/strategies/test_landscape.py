from dataclasses import replace

import numpy as np

from services.trainer.strategies import Kept
from services.trainer.strategies import landscape as module
from services.trainer.strategies.landscape import Axes, landscape
from tests.unit.strategies.planes import Store, pool_of


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def distances(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows[:, None] - rows[None], axis=2)


def test_axes_keep_every_distance_of_rows_that_have_no_more_dimensions_than_that():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(300, 10)) @ rng.normal(size=(10, 200))  # 200 columns of rank 10
    rows = flat.astype(np.float32)
    projected = Axes.of(rows, size=16).project(rows)
    assert projected.shape == (300, 16)
    np.testing.assert_allclose(distances(projected), distances(unit(rows)), atol=1e-4)


def test_axes_are_those_of_the_singular_value_decomposition():
    rng = np.random.default_rng(1)
    rows = (rng.normal(size=(400, 120)) * 0.8 ** np.arange(120)).astype(np.float32)
    centred = unit(rows) - unit(rows).mean(axis=0)
    exact = np.linalg.svd(centred, full_matrices=False)[2][:8]
    found = Axes.of(rows, size=8).axes.T
    np.testing.assert_allclose(np.linalg.svd(found @ exact.T)[1], 1, atol=1e-3)  # they span the same space


def test_a_row_of_zeros_stays_finite():
    rows = np.zeros((5, 100), np.float32)
    assert np.isfinite(Axes.of(rows).project(rows)).all()


def test_a_map_is_made_once_for_an_embedding_and_again_for_another_one():
    rows = {f"{i:02d}": np.random.default_rng(i).normal(size=3) for i in range(20)}
    pool = pool_of(rows)
    first = landscape(pool)
    assert landscape(replace(pool, ids=pool.ids[5:], labelled=pool.ids[:5])) is first
    assert landscape(replace(pool, embedding_key="other")) is not first
    np.testing.assert_array_equal(landscape(replace(pool, kept=Kept())).points, first.points)


def test_of_a_large_pool_the_smallest_ids_are_taken_and_others_are_put_on_the_map_when_asked_for(monkeypatch):
    monkeypatch.setattr(module, "MAX_SAMPLES", 10)
    rows = {f"{i:02d}": np.random.default_rng(i).normal(size=3) for i in range(30)}
    pool = pool_of(dict(reversed(rows.items())), labelled=["03", "25"])
    land = landscape(pool)
    assert list(land.ids) == sorted(rows)[:10]
    expected = land.axes.project(Store(rows)(["25", "03"]))
    np.testing.assert_allclose(land.points_of(["25", "03"], pool), expected)
    assert land.places(["25", "03"]).tolist() == [3]


def test_embeddings_are_read_in_bounded_pieces(monkeypatch):
    monkeypatch.setattr(module, "_ROWS_FOR_AXES", 4)
    monkeypatch.setattr("services.trainer.strategies.core.ROWS_AT_ONCE", 4)
    rows = {f"{i:02d}": np.random.default_rng(i).normal(size=3) for i in range(10)}
    pool, sizes = pool_of(rows), []

    def embeddings(ids):
        sizes.append(len(ids))
        return Store(rows)(ids)

    landscape(replace(pool, embeddings=embeddings))
    assert max(sizes) == 4


def test_kept_drops_what_was_not_asked_for_longest():
    kept = Kept()
    for key in range(8):
        kept.put((key,), key)
    assert kept.get((0,)) == 0  # asked for: now the newest
    kept.put((8,), 8)
    assert kept.get((1,)) is None
    assert kept.get((0,)) == 0


def test_kept_makes_a_thing_once():
    kept, made = Kept(), []
    for _ in range(3):
        kept.made(("a",), lambda: made.append(1) or "thing")
    assert made == [1]
