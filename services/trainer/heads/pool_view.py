"""Labelled and unlabelled rows in the axes along which the whole pool differs: what semi-supervised heads work on."""

from dataclasses import dataclass

import numpy as np

from services.trainer.heads.core import HeadTask, standardisation
from services.trainer.logistic import Rotation

# The graph compares all rows with all others: at 50,000 the whole fit takes a minute of one core and half a gigabyte.
# Four times as many would take sixteen, and a random part of them surrounds each of a few thousand labels as well.
MOST_ROWS = 50_000
# Rows that decide on the axes, the labelled ones among them.
_ROWS_FOR_AXES = 2048
_AXES = 256


@dataclass(frozen=True)
class PoolView:
    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    axes: np.ndarray  # (R, D)
    labelled: np.ndarray  # float64 (N, R)
    unlabelled: np.ndarray  # float32 (M, R)

    @staticmethod
    def of(task: HeadTask) -> "PoolView":
        """Reads the pool a few thousand rows at a time and keeps at most MOST_ROWS, in R dimensions."""
        pool = task.pool
        shown = [task.embeddings]
        if pool.ids and len(task.embeddings) < _ROWS_FOR_AXES:
            wanted = pool.draw(_ROWS_FOR_AXES - len(task.embeddings))
            shown.append(pool.rows(wanted, lambda rows: rows, task.watch))
        seen = np.concatenate(shown)
        mean, scale = standardisation(seen)
        axes = Rotation.of((seen - mean) / scale, task.look).leading(_AXES).axes
        task.look()

        def in_axes(rows: np.ndarray) -> np.ndarray:
            return np.asarray(((rows - mean) / scale) @ axes.T)

        unlabelled = np.empty((0, len(axes)), np.float32)
        if pool.ids:
            unlabelled = pool.rows(pool.draw(MOST_ROWS), lambda rows: in_axes(rows).astype(np.float32), task.watch)
        return PoolView(mean, scale, axes, in_axes(task.embeddings), unlabelled)
