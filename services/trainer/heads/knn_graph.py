"""A k-NN graph of embeddings, and labels that spread along it (Zhou et al. 2004, "Local and global consistency").

Never N x N: neighbours come from one block of similarities at a time, and the graph is sparse. Differs from the paper
in its similarity, the cosine in place of a Gaussian whose width nobody knows.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse as sparse

NEIGHBOURS = 15
# Of a block of similarities, float32.
_BLOCK_BYTES = 1 << 25
# What a node takes from its neighbours in every pass; after 50 another pass would move nothing by more than 1/200.
_SPREAD = 0.9
_PASSES = 50


def knn_graph(rows: np.ndarray, look: Callable[[], None], neighbours: int = NEIGHBOURS) -> sparse.csr_matrix:
    """(N, R) -> the symmetric graph of cosine neighbours, sparse (N, N), each edge over the root of both degrees.

    O(N^2 R) time, O(N (neighbours + R)) memory.
    """
    count = len(rows)
    neighbours = min(neighbours, count - 1)
    units = rows.astype(np.float32)
    units = units / np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-6)
    nearest = np.empty((count, neighbours), np.int64)
    similarity = np.empty((count, neighbours), np.float32)
    height = max(1, _BLOCK_BYTES // (4 * count))
    for first in range(0, count, height):
        look()
        block = units[first : first + height] @ units.T
        block[np.arange(len(block)), np.arange(first, first + len(block))] = -np.inf  # nobody is his own neighbour
        found = np.argpartition(block, count - neighbours, axis=1)[:, count - neighbours :]
        nearest[first : first + height] = found
        similarity[first : first + height] = np.take_along_axis(block, found, axis=1)
    edges = (np.maximum(similarity, 0).ravel(), (np.repeat(np.arange(count), neighbours), nearest.ravel()))
    one_way = sparse.csr_matrix(edges, shape=(count, count))
    graph = one_way.maximum(one_way.T)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    root = sparse.diags(1 / np.sqrt(np.where(degree > 0, degree, 1)).astype(np.float32))
    return sparse.csr_matrix(root @ graph @ root)


def propagate(
    graph: sparse.csr_matrix, labels: np.ndarray, taking_part: np.ndarray, look: Callable[[], None]
) -> np.ndarray:
    """Labels (N, P, C) of P problems, zero where there is none -> what arrives at each node, float32 (N, P, C).

    `taking_part`: bool (N, P). A node that does not take part in a problem hears nothing in it and passes nothing on.
    """
    shape = labels.shape
    own = (labels * taking_part[..., None]).reshape(shape[0], -1).astype(np.float32)
    open_ = np.repeat(taking_part, shape[2], axis=1).astype(np.float32)
    heard = own
    for _ in range(_PASSES):
        look()
        heard = (_SPREAD * (graph @ heard) + (1 - _SPREAD) * own) * open_
    return np.asarray(heard.reshape(shape))
