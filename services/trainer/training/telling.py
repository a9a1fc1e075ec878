"""What a training says while it runs, and how often."""

import math
import time
from dataclasses import dataclass

import torch

# A look at the loss waits for the device: seldom enough to cost nothing, often enough to be watched.
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Report:
    step: int
    steps: int
    epoch: int
    epochs: int
    # Over the images of this epoch so far; nan before the first look.
    loss: float = float("nan")
    accuracy: float = float("nan")
    # Since the training began or was resumed.
    images_per_second: float = 0.0


class Meter:
    """Sums on the device; `look` reads them now and then."""

    def __init__(self, plan_steps: int, epochs: int) -> None:
        self._steps, self._epochs = plan_steps, epochs
        self._sums: list[torch.Tensor] = []
        self._images = self._epoch_images = 0
        self._seconds = 0.0
        self._began = self._looked_at = time.perf_counter()
        self._loss = self._accuracy = float("nan")
        self._looked = False
        self._epoch = -1

    @property
    def diverged(self) -> bool:
        """The loss, when it was last looked at, was no number any more."""
        return self._looked and not math.isfinite(self._loss)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @property
    def images_per_second(self) -> float:
        return self._images / self.seconds if self._images else 0.0

    def add(self, loss: torch.Tensor, right: torch.Tensor, images: int, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._epoch_images, self._sums = epoch, 0, []
        if not self._sums:
            self._sums = [torch.zeros_like(loss), torch.zeros_like(right)]
        self._sums[0] += loss * images
        self._sums[1] += right
        self._images += images
        self._epoch_images += images

    def report(self, step: int, epoch: int) -> Report:
        now = time.perf_counter()
        if self._sums and (now - self._looked_at >= _LOOK_EVERY_S or not self._looked):
            self._loss, self._accuracy = (float(total) / self._epoch_images for total in self._sums)
            self._looked_at, self._looked = now, True
        return Report(step, self._steps, epoch, self._epochs, self._loss, self._accuracy, self.images_per_second)
