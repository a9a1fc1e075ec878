"""Labels spread along a k-NN graph of the whole pool, then teach a logistic head (Iscen et al. 2019).

As in the paper, a row gets the class that most of what it hears is of (what it hears is too even to learn from as it
is: two points less), and counts by how sure the graph is of it. Class masses are those of the labels (Zhu et al. 2003),
since a class in a dense region would otherwise win wherever the graph is undecided.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np

from services.trainer.heads.core import HeadFit, HeadMethod, HeadTask
from services.trainer.heads.knn_graph import knn_graph, propagate
from services.trainer.heads.pool_taught import Classroom, Lesson, Teach, fit_taught

# Weight of the pool against the labels', to choose from.
_SHARES = (0.3, 1.0, 3.0)


def spread(room: Classroom) -> tuple[np.ndarray, np.ndarray]:
    """What the graph says of the unlabelled rows: labels (M, P, C), one-hot, and trust (P, M)."""
    count, classes = len(room.classes), room.class_count
    graph = knn_graph(np.concatenate([room.view.labelled, room.view.unlabelled]), room.look)
    labels = np.zeros((graph.shape[0], len(room.known), classes), np.float32)
    labels[:count] = np.eye(classes, dtype=np.float32)[room.classes][:, None]
    taking_part = np.ones(labels.shape[:2], bool)
    taking_part[:count] = room.known.T
    heard = propagate(graph, labels, taking_part, room.look)[count:].astype(np.float64)
    masses = (labels * taking_part[..., None]).sum(axis=0)  # (P, C)
    heard *= masses / np.maximum(heard.sum(axis=0), 1e-12)
    total = heard.sum(axis=2, keepdims=True)
    shares = np.where(total > 0, heard / np.maximum(total, 1e-300), 1 / classes)
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=2)  # (M, P)
    present = np.maximum((masses > 0).sum(axis=1), 2)
    trust = np.where(total[..., 0] > 0, np.clip(1 - entropy / np.log(present), 0, 1), 0)
    return np.eye(classes)[shares.argmax(axis=2)], trust.T


def _teacher(room: Classroom) -> Iterable[Teach]:
    labels, trust = spread(room)
    return [partial(_lesson, Lesson(labels, trust, share)) for share in _SHARES]


def _lesson(lesson: Lesson, _: np.ndarray) -> Lesson:
    """The graph says the same whatever was fitted before."""
    return lesson


def _fit(task: HeadTask) -> HeadFit:
    return fit_taught(task, "label_propagation", _teacher)


LABEL_PROPAGATION = HeadMethod("label_propagation", _fit, uses_pool=True)
