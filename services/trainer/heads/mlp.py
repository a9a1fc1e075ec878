"""Heads with one hidden layer: `mlp`, the whole network, and `dropout`, a committee of thinned ones.

Both train one network with dropout (Srivastava et al. 2014). The committee is Monte-Carlo dropout (Gal & Ghahramani
2016) with K masks that are drawn once and then belong to the head, so that the exported graph says the same twice and
members disagree about the same images everywhere.
"""

import numpy as np

from services.trainer.heads.core import (
    HeadFit,
    HeadMethod,
    HeadTask,
    absent_bias,
    calibrated,
    out_of_fold_loss,
    require_learnable,
    standardisation,
    with_all_rows,
)
from services.trainer.heads.network import KEPT, UNITS, Network, train
from services.trainer.learning import Head, Hidden
from services.trainer.logistic import Rotation

# Numbers of steps to choose from: how long it trains is how much it is regularised.
_STEPS = (50, 100, 200, 400, 800)
# Leading axes of the labelled rows that the network sees. Of 1,280 dimensions they hold four fifths of the variance,
# and every step is five times cheaper.
_AXES = 256


def _fit(kind: str, masks: np.ndarray, task: HeadTask) -> HeadFit:
    """`masks`: (K, H) factors of the hidden units, one row for each member."""
    require_learnable(task.labelled, task.class_count)
    classes, fold_of = task.labelled.classes, task.fold_of
    mean, scale = standardisation(task.embeddings)
    rotation = Rotation.of((task.embeddings - mean) / scale, task.look).leading(_AXES)
    rows = rotation.rows.astype(np.float32)

    def trained(number: int, known: np.ndarray, steps: tuple[int, ...]) -> list[Network]:
        rng = np.random.default_rng([task.seed, number])
        return train(rows[known], classes[known], task.class_count, len(mean), steps, rng, task.look)

    *folds, everything = with_all_rows(fold_of)
    logits = np.empty((len(_STEPS), len(rows), len(masks), task.class_count))
    for fold, known in enumerate(folds):
        absent = absent_bias(classes[known], task.class_count)
        for at, network in enumerate(trained(fold, known, _STEPS)):
            logits[at, ~known] = network.logits(rows[~known], masks) + absent
    losses = [out_of_fold_loss(of_steps, task) for of_steps in logits]
    best = int(np.argmin(losses))
    (network,) = trained(len(folds), everything, (_STEPS[best],))
    head = Head(
        kind=kind,
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        weights=np.einsum("kh,hc->kch", masks, network.outer).astype(np.float32),
        biases=np.tile(network.outer_bias + absent_bias(classes, task.class_count), (len(masks), 1)).astype(np.float32),
        hidden=Hidden((network.inner.T @ rotation.axes).astype(np.float32), network.inner_bias),
    )
    return calibrated(head, logits[best], task, {"steps": float(_STEPS[best])})


def _mlp(task: HeadTask) -> HeadFit:
    return _fit("mlp", np.ones((1, UNITS), np.float32), task)


def _dropout(task: HeadTask) -> HeadFit:
    rng = np.random.default_rng([task.seed, task.members])
    return _fit("dropout", ((rng.random((task.members, UNITS)) < KEPT) / KEPT).astype(np.float32), task)


MLP = HeadMethod("mlp", _mlp)
DROPOUT = HeadMethod("dropout", _dropout, committee=True)
