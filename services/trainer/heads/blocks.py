"""A committee of backbones (query by committee, Seung et al. 1992): one member for each part of the embedding.

Each member is what the method fits on its own part alone, with its own standardisation and its own C. As a map of the
whole embedding it is zero outside of its part, so that the exported head is like any other and the pool is scored in
one pass. One temperature for all, as for every committee.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from services.trainer.heads.core import HeadFit, HeadMethod, HeadTask, UnlabelledPool, calibrated
from services.trainer.learning import Head


def fit_blocks(method: HeadMethod, task: HeadTask, sizes: Sequence[int]) -> HeadFit:
    """`sizes`: dimensions of each backbone's part, in order; none: the embedding is of one backbone.

    The method's head is a single linear map. Raises what it raises.
    """
    if not sizes:
        return method.fit(task)
    edges = np.cumsum([0, *sizes])
    fits = [method.fit(_part(task, slice(a, b))) for a, b in pairwise(edges)]
    notes = {f"{key}_{i}": value for i, fit in enumerate(fits) for key, value in fit.notes.items()}
    logits = np.stack([fit.out_of_fold_logits for fit in fits], axis=1)  # (N, K, C)
    return calibrated(_joined([fit.head for fit in fits]), logits, task, notes)


def _part(task: HeadTask, columns: slice) -> HeadTask:
    def embeddings(ids: Sequence[str]) -> np.ndarray:
        return task.pool.embeddings(ids)[:, columns]

    return replace(task, embeddings=task.embeddings[:, columns], pool=UnlabelledPool(task.pool.ids, embeddings))


def _joined(heads: Sequence[Head]) -> Head:
    """K heads of one member each, on D1, D2, ... dimensions, as one of K members on all of them."""
    edges = np.cumsum([0, *(len(head.mean) for head in heads)])
    weights = np.zeros((len(heads), heads[0].weights.shape[1], edges[-1]), np.float32)
    for member, (head, (first, end)) in enumerate(zip(heads, pairwise(edges), strict=True)):
        weights[member, :, first:end] = head.weights[0]
    return Head(
        kind=heads[0].kind,
        mean=np.concatenate([head.mean for head in heads]),
        scale=np.concatenate([head.scale for head in heads]),
        weights=weights,
        biases=np.concatenate([head.biases for head in heads]),
    )
