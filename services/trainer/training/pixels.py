"""Labelled images, decoded once: uint8 in memory, or in a mapped file when they are many."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from services.trainer.learning import Watch

_IMAGES_AT_ONCE = 64


def decoded(
    images: Callable[[Sequence[str]], np.ndarray], ids: Sequence[str], folder: Path, ram_bytes: int, watch: Watch
) -> np.ndarray:
    """uint8 [N, H, W, 3] of one or more ids. Above `ram_bytes` it lies in a file in `folder`, gone when it is dropped.

    Looks at `watch` before each read.
    """
    every: np.ndarray | None = None
    for first in range(0, len(ids), _IMAGES_AT_ONCE):
        watch.progress("read", first, len(ids))
        some = images(ids[first : first + _IMAGES_AT_ONCE])
        if every is None:
            every = _room((len(ids), *some.shape[1:]), folder, ram_bytes)
        every[first : first + len(some)] = some
    assert every is not None  # one id at least
    return every


def _room(shape: tuple[int, ...], folder: Path, ram_bytes: int) -> np.ndarray:
    if np.prod(shape) <= ram_bytes:
        return np.empty(shape, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    # The mapping outlives the file's name: nothing is left behind, even by a worker that is killed.
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)
