"""One step of the optimiser: a batch in parts, halved when the device's memory does not hold them."""

from collections.abc import Callable

import structlog
import torch
from torch import nn
from torch.nn import functional

from services.trainer.finetune_config import FinetuneConfig
from services.trainer.training.device import Machine

log = structlog.get_logger()


class Stepper:
    """`parts`: into how many a batch is divided; it doubles whenever one was too large, and stays so."""

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        head: nn.Linear,
        optimizer: torch.optim.Optimizer,
        config: FinetuneConfig,
        machine: Machine,
        class_weights: torch.Tensor,
    ) -> None:
        self.parts = config.accumulate
        # float16 gradients underflow unless the loss is scaled.
        self.scaler = torch.amp.GradScaler(machine.device.type, enabled=machine.precision == "fp16")
        self._forward = forward
        self._head = head
        self._optimizer = optimizer
        self._machine = machine
        self._smoothing = config.label_smoothing
        self._class_weights = class_weights

    def step(self, images: torch.Tensor, targets: torch.Tensor, head_only: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and number of right answers of the batch, as scalars on the device: nothing waits for them here."""
        while (found := self._gradients_or_none(images, targets, head_only)) is None:
            # Not inside the handler: the error holds on to what the failed part had allocated.
            self._halve(len(images))
        self.scaler.step(self._optimizer)
        self.scaler.update()
        return found

    def _gradients_or_none(
        self, images: torch.Tensor, targets: torch.Tensor, head_only: bool
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """None when the memory does not hold a part that can still be halved."""
        try:
            return self._gradients(images, targets, head_only)
        except torch.cuda.OutOfMemoryError:
            if self.parts >= len(images):
                raise
            return None

    def _gradients(
        self, images: torch.Tensor, targets: torch.Tensor, head_only: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=images.device)
        right = torch.zeros((), dtype=torch.int64, device=images.device)
        parts = min(self.parts, len(images))
        for some, of in zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True):
            logits = self._logits(some, head_only)
            part = functional.cross_entropy(
                logits, of, self._class_weights, reduction="sum", label_smoothing=self._smoothing
            ) / len(images)
            self.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
            right += (logits.detach().argmax(dim=1) == of.argmax(dim=1)).sum()
        return loss, right

    def _logits(self, images: torch.Tensor, head_only: bool) -> torch.Tensor:
        with self._machine.autocast():
            with torch.set_grad_enabled(not head_only):
                embeddings = self._forward(images)
            logits: torch.Tensor = self._head(embeddings)
        return logits.float()

    def _halve(self, batch: int) -> None:
        self.parts = min(2 * self.parts, batch)
        self._optimizer.zero_grad(set_to_none=True)
        if self._machine.on_cuda:
            torch.cuda.empty_cache()
        log.warning(
            "out_of_memory", what="the batch is halved and gradients accumulated", parts=self.parts, batch=batch
        )
