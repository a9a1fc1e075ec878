"""Embeddings in memory, scored in this process by the functions that inference uses; nothing is published."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from services.common.acquisition import acquisition_named, member_probabilities
from services.common.embeddings import BLOCK_ROWS, EmbeddingStore
from services.trainer.in_parts import in_parts
from services.trainer.learning import FittedModel, Watch

_IMAGES_AT_ONCE = 64


class Features(Protocol):
    """Where a cell's embeddings come from."""

    def under(self, model: FittedModel, watch: Watch, /) -> "Embedded":
        """Those that belong to a model."""

    def of(self, ids: Sequence[str], /) -> np.ndarray:
        """float32 (n, D), for a head that is fitted on a frozen backbone's."""


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

    def under(self, _model: FittedModel, _watch: Watch) -> "Embedded":
        """The backbone is frozen: one embedding for all models."""
        return self

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


class Trained:
    """Features of networks that are trained: each model embeds for itself, here and only what it is asked for.

    In a campaign inference does that, with the published version; a comparison publishes nothing.
    """

    def __init__(self, images: Callable[[Sequence[str]], np.ndarray]) -> None:
        """`images`: sample ids -> uint8 RGB [N, H, W, 3]."""
        self._images = images

    def under(self, model: FittedModel, watch: Watch) -> Embedded:
        return _OwnEmbedded(model, self._images, watch)

    def of(self, _ids: Sequence[str]) -> np.ndarray:
        raise AssertionError("a network that is trained learns from images; no head is fitted on its embeddings")


class _OwnEmbedded(Embedded):
    """One model's embeddings, computed when they are first asked for and rounded as the store rounds them."""

    def __init__(self, model: FittedModel, images: Callable[[Sequence[str]], np.ndarray], watch: Watch) -> None:
        super().__init__((), np.empty((0, model.embedding_size), np.float16))
        self._model, self._images, self._watch = model, images, watch

    def of(self, ids: Sequence[str]) -> np.ndarray:
        self._add([i for i in ids if i not in self._place])
        return super().of(ids)

    def _add(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        reference = self._model.reference
        assert reference is not None  # every model of a learner that trains networks has its network
        rows = in_parts(lambda some: reference(self._images(some)), ids, _IMAGES_AT_ONCE, "embed", self._watch)
        first = len(self._place)
        self._place.update((sample, first + at) for at, sample in enumerate(ids))
        self._rows = np.concatenate([self._rows, rows.astype(np.float16)])


def members(model: FittedModel, embeddings: np.ndarray) -> np.ndarray:
    """Class probabilities of the committee's members.  (n, D) -> (n, K, C)"""
    return member_probabilities(model.head.logits(embeddings))
