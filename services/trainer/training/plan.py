"""Steps of a training and the learning rate at each of them: closed forms, so that a resumed one goes on exactly."""

import math
from dataclasses import dataclass

import numpy as np

from services.trainer.finetune_config import FinetuneConfig


@dataclass(frozen=True)
class Plan:
    """`samples`: those that are trained on, without the held-out ones."""

    samples: int
    config: FinetuneConfig

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.samples / self.config.batch_size)

    @property
    def epochs(self) -> int:
        return self.config.head_epochs + self.config.epochs

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def head_steps(self) -> int:
        return self.config.head_epochs * self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Share of each learning rate: constant while only the head learns, then warm-up and half a cosine to zero."""
        if step < self.head_steps:
            return 1.0
        steps, step = self.steps - self.head_steps, step - self.head_steps
        warm_up = max(1, int(steps * self.config.warm_up))
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    def batches(self, epoch: int, seed: tuple[int, ...]) -> list[np.ndarray]:
        """Rows of each batch of an epoch; the same ones whenever they are asked for."""
        rows = np.random.default_rng([*seed, epoch]).permutation(self.samples)
        # Parts of nearly equal size: a last batch of one image would break batch norm.
        return np.array_split(rows, self.steps_per_epoch)


def held_out(classes: np.ndarray, share: float, seed: tuple[int, ...]) -> np.ndarray:
    """bool (N,): the rows that only choose. About `share` of each class, and always one left to train on."""
    rng = np.random.default_rng([*seed, 1])
    chosen = np.zeros(len(classes), bool)
    for c in np.unique(classes) if share else ():
        rows = rng.permutation(np.flatnonzero(classes == c))
        # Rounded at random, so that small classes are held out as often as their share says.
        count = int(len(rows) * share + rng.random())
        chosen[rows[: min(count, len(rows) - 1)]] = True
    return chosen


def resample(classes: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """Rows drawn with replacement within each class, int (N,): a bootstrap that loses no class."""
    rng = np.random.default_rng([*seed, 2])
    return np.concatenate([rng.choice(rows, len(rows)) for rows in _by_class(classes)])


def class_weights(classes: np.ndarray, class_count: int, kind: str) -> np.ndarray:
    """Weight of each class in the loss, float32 (C,), 1 on average over the samples; 1 for a class without any."""
    weights = np.ones(class_count, np.float32)
    if kind == "balanced":
        present, counts = np.unique(classes, return_counts=True)
        weights[present] = len(classes) / (len(present) * counts)
    return weights


def _by_class(classes: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(classes == c) for c in np.unique(classes)]
