"""Heads by name: the one table that configurations, learners and tests read."""

from services.trainer.heads.blocks import fit_blocks
from services.trainer.heads.bootstrap import BOOTSTRAP
from services.trainer.heads.core import (
    ABSENT_BIAS,
    HeadFit,
    HeadMethod,
    HeadTask,
    UnlabelledPool,
    by_name,
    calibrated_temperature,
    known_in_other_folds,
    random_classes,
    random_rows,
    require_learnable,
    stratified_folds,
    zero_head,
)
from services.trainer.heads.cosine import COSINE
from services.trainer.heads.label_propagation import LABEL_PROPAGATION
from services.trainer.heads.logistic import LOGISTIC, fit_head
from services.trainer.heads.mlp import DROPOUT, MLP
from services.trainer.heads.rounds import ROUNDS
from services.trainer.heads.self_training import SELF_TRAINING

HEADS = by_name((LOGISTIC, COSINE, MLP, BOOTSTRAP, DROPOUT, ROUNDS, LABEL_PROPAGATION, SELF_TRAINING))

__all__ = [
    "ABSENT_BIAS",
    "HEADS",
    "HeadFit",
    "HeadMethod",
    "HeadTask",
    "UnlabelledPool",
    "calibrated_temperature",
    "fit_blocks",
    "fit_head",
    "known_in_other_folds",
    "random_classes",
    "random_rows",
    "require_learnable",
    "stratified_folds",
    "zero_head",
]
