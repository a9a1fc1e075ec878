import numpy as np
import pytest

from services.common.embeddings import EmbeddingStore
from services.common.errors import BadRequest, NotFound


@pytest.fixture
def store(tmp_path):
    return EmbeddingStore(tmp_path, "embedding", "source")


def rows(*values: float) -> np.ndarray:
    return np.array([[v, v + 0.5] for v in values], np.float32)


def test_what_was_written_is_read_in_the_order_asked_for(store):
    store.append(["a", "b"], rows(1, 2))
    store.append(["c-2"], rows(3))
    assert store.read(["c-2", "a", "b", "a"]).tolist() == rows(3, 1, 2, 1).tolist()
    assert store.missing(["a", "x", "c-2", "y"]) == ["x", "y"]


def test_another_process_sees_finished_shards_only(store, tmp_path):
    reader = EmbeddingStore(tmp_path, "embedding", "source")
    store.append(["a"], rows(1))
    np.save(store.folder / "half.f16.npy", np.zeros((1, 2), np.float16))  # its writer died here
    reader.refresh()
    assert reader.missing(["a", "b"]) == ["b"]


def test_a_damaged_shard_is_missing_again(store, tmp_path):
    store.append(["a"], rows(1))
    store.append(["b"], rows(2))
    shard = next(p for p in store.folder.glob("*.ids.npy") if np.load(p)[0] == b"a")
    data = shard.with_suffix("").with_suffix(".f16.npy")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    assert EmbeddingStore(tmp_path, "embedding", "source").missing(["a", "b"]) == ["a"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 70_000.0, -70_000.0])
def test_values_that_float16_cannot_hold_are_refused(store, bad):
    with pytest.raises(BadRequest, match="finite"):
        store.append(["a"], np.array([[bad, 1.0]], np.float32))
    assert store.missing(["a"]) == ["a"]


def test_an_unknown_sample_is_named(store):
    store.append(["a"], rows(1))
    with pytest.raises(NotFound, match="'b'"):
        store.read(["a", "b"])


def test_chunks_cover_everything_once(store):
    ids = [f"s{i}" for i in range(10)]
    store.append(ids, rows(*range(10)))
    parts = list(store.chunks(ids, rows=4))
    assert [len(values) for _, values in parts] == [4, 4, 2]
    assert np.concatenate([values for _, values in parts]).tolist() == rows(*range(10)).tolist()
