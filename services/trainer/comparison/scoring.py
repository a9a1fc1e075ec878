"""Embeddings in memory, scored in this process by the functions that inference uses; nothing is published."""

from collections.abc import Sequence

import numpy as np

from services.common.acquisition import acquisition_named, member_probabilities
from services.common.embeddings import BLOCK_ROWS, EmbeddingStore
from services.trainer.learning import FittedModel


class Embedded:
    """The stored rows of some samples, kept in float16 as they are on disk."""

    def __init__(self, ids: Sequence[str], rows: np.ndarray) -> None:
        """`rows`: (N, D), aligned with `ids`."""
        self._place = {sample: place for place, sample in enumerate(ids)}
        self._rows = rows.astype(np.float16, copy=False)

    @classmethod
    def stored(cls, store: EmbeddingStore, ids: Sequence[str]) -> "Embedded":
        """Raises NotFound naming the first id that has no stored embedding."""
        rows: np.ndarray | None = None
        for places, block in store.blocks(ids):
            rows = np.empty((len(ids), block.shape[1]), np.float16) if rows is None else rows
            rows[places] = block
        return cls(ids, np.empty((0, 0), np.float16) if rows is None else rows)

    def of(self, ids: Sequence[str]) -> np.ndarray:
        """float32 (n, D), aligned with `ids`."""
        places = np.fromiter((self._place[i] for i in ids), np.int64, len(ids))
        return self._rows[places].astype(np.float32)

    def scores(self, model: FittedModel, ids: Sequence[str], acquisition: str) -> np.ndarray:
        """float32 (N,), as ScorePool gives them for the same head: in the same blocks."""
        function = acquisition_named(acquisition)
        parts = [
            function(members(model, self.of(ids[first : first + BLOCK_ROWS])))
            for first in range(0, len(ids), BLOCK_ROWS)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


def members(model: FittedModel, embeddings: np.ndarray) -> np.ndarray:
    """Class probabilities of the committee's members.  (n, D) -> (n, K, C)"""
    return member_probabilities(model.head.logits(embeddings))
