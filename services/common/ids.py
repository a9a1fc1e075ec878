"""Sample ids by the million: 40 bytes each in one array instead of as many Python strings."""

from collections.abc import Sequence

import numpy as np

from services.common.errors import NotFound

WIDTH = 40
ID = np.dtype(f"S{WIDTH}")
_WORDS = WIDTH // 8
_RUN = 1024
_PRIME = np.uint64(0x9E3779B97F4A7C15)

Ids = Sequence[str] | np.ndarray


def pack(ids: Ids) -> np.ndarray:
    """bytes S40 (N,). Raises NotFound naming the first one that no sample can have."""
    if isinstance(ids, np.ndarray):
        return ids.astype(ID, copy=False)
    ids = list(ids)
    for given in ids:
        # One id of a megabyte would make the array as many megabytes for each of the others.
        if len(given) > WIDTH or not given.isascii() or "\0" in given:
            raise NotFound(f"no sample {given[: 2 * WIDTH]!r}; ids are at most {WIDTH} ASCII characters")
    return np.array(ids, dtype=ID)


def unpack(ids: np.ndarray) -> list[str]:
    return [given.decode() for given in ids.tolist()]


class IdIndex:
    """Where each of some ids is. 56 bytes an id; made and asked by whole arrays."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids
        hashes = _hashes(ids)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len(self.ids)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """int64 (N,): the place of each, -1 where there is none."""
        found = np.full(len(ids), -1, np.int64)
        # A pool is mostly asked for in the order in which it is stored: one look for a whole run, and a comparison.
        for first, place in zip(range(0, len(ids), _RUN), self._look_up(ids[::_RUN]).tolist(), strict=True):
            run = _words(ids[first : first + _RUN])
            if place >= 0 and np.array_equal(run, _words(self.ids[place : place + len(run)])):
                found[first : first + len(run)] = np.arange(place, place + len(run))
        left = np.flatnonzero(found < 0)
        found[left] = self._look_up(ids[left])
        return found

    def _look_up(self, ids: np.ndarray) -> np.ndarray:
        wanted = _hashes(ids)
        at = np.searchsorted(self._hashes, wanted)
        found = np.full(len(ids), -1, np.int64)
        left = self._same_hash(np.arange(len(ids)), at, wanted)
        # Goes round again only for different ids of one hash.
        while len(left):
            places = self._order[at[left]]
            same = (_words(self.ids[places]) == _words(ids[left])).all(axis=1)
            found[left[same]] = places[same]
            left = left[~same]
            at[left] += 1
            left = self._same_hash(left, at, wanted)
        return found

    def _same_hash(self, left: np.ndarray, at: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        left = left[at[left] < len(self._hashes)]
        return np.asarray(left[self._hashes[at[left]] == wanted[left]])


def _words(ids: np.ndarray) -> np.ndarray:
    """uint64 (N, 5): several times as fast to compare as bytes."""
    return np.asarray(np.ascontiguousarray(ids).view(np.uint64).reshape(-1, _WORDS))


def _hashes(ids: np.ndarray) -> np.ndarray:
    """uint64 (N,)"""
    hashes = np.zeros(len(ids), np.uint64)
    for word in _words(ids).T:
        hashes = (hashes ^ word) * _PRIME
        hashes ^= hashes >> np.uint64(29)
    return hashes
