"""Pools whose right answer is visible by eye: samples on a line, in a plane or at angles of a circle."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from services.trainer.strategies import ScoredPool


class Store:
    """ids -> embeddings; remembers what it was asked for."""

    def __init__(self, rows: Mapping[str, Sequence[float] | np.ndarray]) -> None:
        self.rows = rows
        self.asked: list[str] = []

    def __call__(self, ids: Sequence[str]) -> np.ndarray:
        self.asked += ids
        return np.array([self.rows[i] for i in ids], np.float32)


def pool_of(
    rows: Mapping[str, Sequence[float] | np.ndarray],
    labelled: Sequence[str] = (),
    scores: Mapping[str, float] | None = None,
    classify: Callable[[np.ndarray], np.ndarray] | None = None,
    classes: int = 2,
    classes_of_labelled: Sequence[int] = (),
) -> ScoredPool:
    ids = tuple(i for i in rows if i not in labelled)
    known = classes_of_labelled or [0] * len(labelled)
    return ScoredPool(
        ids=ids,
        labelled=tuple(labelled),
        scores=None if scores is None else np.array([scores[i] for i in ids], np.float32),
        embeddings=Store(rows),
        classify=classify or (lambda some: np.full((len(some), 1, classes), 1 / classes, np.float32)),
        labelled_classes=np.array(known, np.int64),
        class_count=classes,
    )


def at_angle(degrees: float) -> tuple[float, float]:
    return float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))


def group(name: str, degrees: float, count: int, spread: float = 1.0) -> dict[str, tuple[float, float]]:
    """`count` samples evenly around `degrees`: name-00, name-01, ...; the middle one is the center."""
    return {f"{name}-{i:02d}": at_angle(degrees + d) for i, d in enumerate(np.linspace(-spread, spread, count))}
