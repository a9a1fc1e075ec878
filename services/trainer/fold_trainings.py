"""The trainings of one round: those that judge, one for each fold, and those that are published."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from services.trainer.calibration import softmax
from services.trainer.config import LearnerConfig
from services.trainer.heads import (
    ABSENT_BIAS,
    calibrated_temperature,
    known_in_other_folds,
    random_classes,
    random_rows,
    stratified_folds,
)
from services.trainer.learning import LabelledSamples, Watch
from services.trainer.pretrained import embed
from services.trainer.training.plan import Plan, held_out

if TYPE_CHECKING:
    from services.trainer.backbones import Backbone
    from services.trainer.training.checkpoint import Checkpoints
    from services.trainer.training.loop import TrainedNetwork
    from services.trainer.training.telling import Report

# Each fold is a whole training: as many as a temperature needs, not as many as a head can afford.
_MOST_FOLDS = 3
_MINUTE_S = 60


@dataclass(frozen=True)
class Judged:
    """What networks say about randomly drawn labels that they never saw."""

    temperature: float
    right: dict[str, bool]
    classes: dict[str, int]
    notes: dict[str, float]


class FoldTrainings:
    """`images`: uint8 [N, H, W, 3], aligned with the labelled samples."""

    def __init__(
        self,
        backbone: "Backbone",
        config: LearnerConfig,
        images: np.ndarray,
        labelled: LabelledSamples,
        class_count: int,
        seed: int,
        checkpoints: "Checkpoints",
        watch: Watch,
    ) -> None:
        self._backbone = backbone
        self._config = config.finetune
        self._images = images
        self._labelled = labelled
        self._class_count = class_count
        self._seed = seed
        self._checkpoints = checkpoints
        self._watch = watch
        self._fold_of = stratified_folds(labelled.ids, labelled.classes, min(config.folds, _MOST_FOLDS), seed)
        self._folds = [
            fold for fold in np.unique(self._fold_of) if (labelled.drawn_at_random & (self._fold_of == fold)).any()
        ]
        seen = [*(self._fold_of != fold for fold in self._folds), np.ones(len(labelled), bool)]
        # Steps of every training, in the order in which they come.
        self._steps = [
            self._steps_of(rows, (seed, place * self._config.members + member))
            for place, rows in enumerate(seen)
            for member in range(self._config.members)
        ]
        self._begun = 0

    def out_of_fold(self) -> Judged:
        labelled, fold_of = self._labelled, self._fold_of
        logits = np.zeros((len(labelled), self._config.members, self._class_count))
        for fold in self._folds:
            here = (fold_of == fold) & labelled.drawn_at_random
            others = fold_of != fold
            for member, network in enumerate(self.committee(others)):
                embeddings = embed(network.net, self._images[here])
                logits[here, member] = embeddings @ network.weights.T + network.biases
            absent = np.setdiff1d(np.arange(self._class_count), labelled.classes[others])
            logits[np.ix_(here, np.arange(self._config.members), absent)] = ABSENT_BIAS
        judged = known_in_other_folds(labelled.classes, fold_of)
        temperature = calibrated_temperature(logits, judged, labelled)
        probabilities = softmax(logits / temperature).mean(axis=1)  # (N, C)
        right = random_rows(labelled, probabilities.argmax(axis=1) == labelled.classes)
        notes = {"out_of_fold_accuracy": float(np.mean(list(right.values())))} if right else {}
        return Judged(temperature, right, random_classes(labelled, probabilities), notes)

    def committee(self, rows: np.ndarray) -> list["TrainedNetwork"]:
        """One network for each member, from the rows where bool (N,) is true."""
        return [self._train(np.flatnonzero(rows)) for _ in range(self._config.members)]

    def notes(self, members: list["TrainedNetwork"]) -> dict[str, float]:
        """For the round's report; what each training found out, of the first member's."""
        return {"epochs": float(self._config.epochs), "trainings": float(len(self._steps)), **members[0].notes}

    def _steps_of(self, rows: np.ndarray, seed: tuple[int, int]) -> int:
        held = held_out(self._labelled.classes[rows], self._config.validation_share, seed)
        return Plan(int((~held).sum()), self._config).steps

    def _train(self, rows: np.ndarray) -> "TrainedNetwork":
        from services.trainer.training.loop import Labelled, train_network

        number, before = self._begun, sum(self._steps[: self._begun])
        self._begun += 1

        def tell(report: "Report") -> None:
            done, total = before + report.step, sum(self._steps)
            seconds = self._seconds_left(report, total - done)
            self._watch.progress("train", done, total, told(report, number, len(self._steps), seconds))

        return train_network(
            self._backbone,
            Labelled(self._images, self._labelled.classes, self._class_count, rows),
            self._config,
            (self._seed, number),
            tell,
            self._checkpoints.training(number),
        )

    def _seconds_left(self, report: "Report", steps: int) -> float | None:
        if not report.images_per_second:
            return None
        return steps * self._config.batch_size / report.images_per_second


def told(report: "Report", number: int, trainings: int, seconds_left: float | None) -> str:
    """ "training 1 of 4, epoch 2/12, loss 0.81, accuracy 74%, 312 images/s, 3:05 left" """
    parts = [f"training {number + 1} of {trainings}, epoch {report.epoch + 1}/{report.epochs}"]
    if report.loss == report.loss:  # not nan: a step has been looked at
        parts.append(f"loss {report.loss:.3g}, accuracy {100 * report.accuracy:.0f}%")
    if seconds_left is not None:
        minutes, seconds = divmod(round(seconds_left), _MINUTE_S)
        parts.append(f"{report.images_per_second:,.0f} images/s, {minutes}:{seconds:02d} left")
    return ", ".join(parts)
