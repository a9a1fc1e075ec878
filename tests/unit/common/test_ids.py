import numpy as np
import pytest

from services.common import ids as module
from services.common.errors import NotFound
from services.common.ids import IdIndex, pack, unpack


def test_ids_survive_packing():
    given = ["a", "0" * 40, "b" * 32 + "-2"]
    assert unpack(pack(given)) == given
    assert unpack(pack([])) == []


@pytest.mark.parametrize("bad", ["x" * 41, "x" * 10**6, "\u00e9", "a\0"])
def test_an_id_that_no_sample_can_have_is_named(bad):
    with pytest.raises(NotFound, match=repr(bad[:40])[1:-1].replace("\\", "\\\\")):
        pack(["a", bad])


def test_places_are_found_whatever_the_order():
    index = IdIndex(pack([f"s{i}" for i in range(1000)]))
    assert index.find(pack(["s7", "s999", "unknown", "s0", "s7"])).tolist() == [7, 999, -1, 0, 7]
    assert IdIndex(pack([])).find(pack(["a"])).tolist() == [-1]


def test_long_runs_are_found_where_they_lie_and_broken_ones_too():
    names = [f"s{i}" for i in range(5000)]
    index = IdIndex(pack(names))
    assert index.find(pack(names)).tolist() == list(range(5000))
    assert index.find(pack(names[100:4000])).tolist() == list(range(100, 4000))
    asked = [*names[3000:], "unknown", *names[:2999:-1], *names[4990:], "other"]
    assert index.find(pack(asked)).tolist() == [*range(3000, 5000), -1, *range(4999, 2999, -1), *range(4990, 5000), -1]


def test_ids_that_share_a_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(module, "_hashes", lambda ids: np.zeros(len(ids), np.uint64))
    index = IdIndex(pack(["a", "b", "c"]))
    assert index.find(pack(["c", "a", "d", "b"])).tolist() == [2, 0, -1, 1]
