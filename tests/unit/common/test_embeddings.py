import errno
import gc
import os
import shutil
from pathlib import Path

import numpy as np
import psutil
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


def test_open_shards_hold_no_file_descriptors_and_their_memory_maps_go_with_the_store(tmp_path):
    store = EmbeddingStore(tmp_path, "embedding", "source")
    for i in range(30):
        store.append([f"s{i}"], rows(i))
    before = psutil.Process().num_fds()
    again = EmbeddingStore(tmp_path, "embedding", "source")
    assert again.read(["s29", "s0"]).tolist() == rows(29, 0).tolist()
    assert psutil.Process().num_fds() <= before  # fewer when something older was collected meanwhile
    del store, again
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_a_shard_that_cannot_be_opened_for_want_of_descriptors_is_not_taken_for_damaged(store, tmp_path, monkeypatch):
    def too_many(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    reader = EmbeddingStore(tmp_path, "embedding", "source")
    store.append(["a"], rows(1))
    with monkeypatch.context() as patched:
        patched.setattr("services.common.embeddings.sha256_file", too_many)
        with pytest.raises(OSError, match="Too many open files"):
            reader.refresh()
    reader.refresh()
    assert reader.missing(["a"]) == []


def test_what_was_deleted_is_missing_also_when_another_writer_has_made_the_folder_again(store, tmp_path):
    writer = EmbeddingStore(tmp_path, "embedding", "source")
    writer.append(["a"], rows(1))
    writer.append(["b"], rows(2))
    store.refresh()
    begun = store.blocks(["a", "b"])
    shutil.rmtree(store.folder)
    writer.append(["b"], rows(3))
    store.refresh()
    assert store.missing(["a", "b"]) == writer.missing(["a", "b"]) == ["a"]
    assert store.read(["b"]).tolist() == rows(3).tolist()
    assert sorted(block.tolist() for _, block in begun) == [rows(1).tolist(), rows(2).tolist()]


def test_a_shard_that_cannot_be_written_whole_leaves_nothing_on_a_full_disk(store, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("services.common.embeddings.write_atomically", full)
    with pytest.raises(OSError, match="No space left"):
        store.append(["a"], rows(1))
    assert list(store.folder.iterdir()) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, 70_000.0, -70_000.0])
def test_values_that_float16_cannot_hold_are_refused(store, bad):
    with pytest.raises(BadRequest, match="finite"):
        store.append(["a"], np.array([[bad, 1.0]], np.float32))
    assert store.missing(["a"]) == ["a"]


def test_an_unknown_sample_is_named(store):
    store.append(["a"], rows(1))
    with pytest.raises(NotFound, match="'b'"):
        store.read(["a", "b"])


def test_blocks_cover_everything_once_in_storage_order_whatever_the_order_asked_for(store):
    ids = [f"s{i}" for i in range(3000)]
    store.append(ids[:2000], rows(*range(2000)))
    store.append(ids[2000:], rows(*range(2000, 3000)))
    asked = np.random.default_rng(0).permutation(3000)
    read = np.zeros((3000, 2), np.float32)
    seen = []
    for where, block in store.blocks([ids[i] for i in asked]):
        assert len(where) == len(block) <= 1024
        read[where] = block
        seen.extend(asked[where])
    assert seen == list(range(3000))
    assert (read == rows(*asked).astype(np.float16)).all()


def test_neighbours_on_disk_are_a_view_of_the_memory_map(store):
    store.append([f"s{i}" for i in range(100)], rows(*range(100)))
    ((_, block),) = store.blocks([f"s{i}" for i in range(10, 50)])
    assert not block.flags.owndata
    assert not block.flags.writeable
    ((_, gathered),) = store.blocks(["s1", "s1", "s3"])
    assert gathered.tolist() == rows(1, 1, 3).tolist()


def test_many_small_shards_are_found_and_open_again_in_the_same_rows(store, tmp_path):
    for i in range(40):
        store.append([f"s{i}", f"t{i}"], rows(i, i + 100))
    ids = [f"{kind}{i}" for i in range(40) for kind in "ts"]
    again = EmbeddingStore(tmp_path, "embedding", "source")
    assert len(store) == len(again) == 80
    assert (
        store.read(ids).tolist()
        == again.read(ids).tolist()
        == rows(*(i + d for i in range(40) for d in (100, 0))).tolist()
    )


def test_what_a_dead_writer_left_under_a_prefix_is_deleted_and_finished_shards_stay(store):
    store.append(["a"], rows(1), prefix="00000001-")
    np.save(store.folder / "00000001-half.f16.npy", np.zeros((1, 2), np.float16))
    np.save(store.folder / "00000002-other.f16.npy", np.zeros((1, 2), np.float16))
    store.remove_unfinished("00000001-")
    assert len(list(store.folder.glob("00000001-*"))) == 3
    assert (store.folder / "00000002-other.f16.npy").exists()
