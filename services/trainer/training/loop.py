"""The training itself: from labelled images to a trained copy of a backbone with a linear head."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from services.common.errors import BadConfig, Stopped
from services.trainer.backbones import Backbone
from services.trainer.classifier import EmbeddingNet
from services.trainer.finetune_config import FinetuneConfig
from services.trainer.training.augment import Augmenter, one_hot
from services.trainer.training.checkpoint import Checkpoint
from services.trainer.training.device import Machine, choose_machine
from services.trainer.training.feed import Feed
from services.trainer.training.memory import free_bytes, require_memory
from services.trainer.training.optimizer import Average, make_optimizer, set_rate, train_mode, unfreeze
from services.trainer.training.plan import Plan, class_weights, held_out, resample
from services.trainer.training.step import Stepper
from services.trainer.training.telling import Meter, Report

_JUDGED_AT_ONCE = 64


@dataclass(frozen=True)
class Labelled:
    """What a training learns from."""

    images: np.ndarray  # uint8 [N, H, W, 3]
    classes: np.ndarray  # int64 (N,)
    class_count: int
    # Those of the N that this training may see, int (R,).
    rows: np.ndarray


@dataclass(frozen=True)
class TrainedNetwork:
    # In evaluation mode, on the device where it was trained.
    net: EmbeddingNet
    weights: np.ndarray  # (C, D)
    biases: np.ndarray  # (C,)
    # "images_per_second", "data_wait_share", "best_epoch", ...
    notes: dict[str, float]


def train_network(
    backbone: Backbone,
    labelled: Labelled,
    config: FinetuneConfig,
    seed: tuple[int, ...],
    tell: Callable[[Report], None],
    checkpoint: Checkpoint | None = None,
    free: int | None = None,
) -> TrainedNetwork:
    """Cross-entropy on augmented images, from the pretrained weights on.

    `tell` is called before every step and may raise. With a checkpoint, a training that was cut short goes on where it
    was and ends in the same network (on a CPU with the same thread count). `free`: bytes that may be used; None: what
    the device has. Raises BadConfig when a batch does not fit, or when the training diverges.
    """
    kept = checkpoint.load() if checkpoint else None
    training = _Training(backbone, labelled, config, seed, free)
    if kept and kept["ended"]:
        return training.as_it_ended(kept)
    if kept:
        training.restore(kept)
    # Dropout and augmentation draw from torch's global generator: give it back as it was.
    with torch.random.fork_rng(devices=[training.machine.device] if training.machine.on_cuda else []):
        training.run(tell, checkpoint)
    return training.network()


class _Training:
    def __init__(
        self, backbone: Backbone, labelled: Labelled, config: FinetuneConfig, seed: tuple[int, ...], free: int | None
    ) -> None:
        self.machine: Machine = choose_machine(config)
        device = self.machine.device
        self._config, self._seed = config, seed
        chosen = held_out(labelled.classes[labelled.rows], config.validation_share, seed)
        self._train_rows, self._held_rows = labelled.rows[~chosen], labelled.rows[chosen]
        if config.bootstrap:
            self._train_rows = self._train_rows[resample(labelled.classes[self._train_rows], seed)]
        self._plan = Plan(len(self._train_rows), config)
        self._classes = labelled.classes
        self._class_count = labelled.class_count
        self._net = copy.deepcopy(backbone.net)
        learning = unfreeze(self._net, backbone.stages, config.stages)
        require_memory(
            self._net,
            torch.from_numpy(np.array(labelled.images[0])),
            config,
            self.machine,
            free_bytes(self.machine) if free is None else free,
        )
        self._net.to(device, memory_format=self.machine.layout)  # type: ignore[call-overload]
        # A head of zeros begins without an opinion and needs no random numbers.
        self._head = nn.Linear(backbone.embedding_size, labelled.class_count, device="meta").to_empty(device=device)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        self._learning = [*learning, *self._head.parameters()]
        self._optimizer = make_optimizer(backbone, self._net, self._head, config)
        self._average = Average(self._learning, config.ema) if config.ema else None
        forward = torch.compile(self._net) if config.compile else self._net
        weights = class_weights(labelled.classes[self._train_rows], labelled.class_count, config.class_weights)
        self._stepper = Stepper(
            forward, self._head, self._optimizer, config, self.machine, torch.from_numpy(weights).to(device)
        )
        self._augment = Augmenter(config, labelled.class_count)
        self._feed = Feed(labelled.images, device)
        self._step = 0
        self._best: dict[str, Any] | None = None
        self._meter = Meter(self._plan.steps, self._plan.epochs)

    # ---- from step to step -----------------------------------------------------------------------------

    def run(self, tell: Callable[[Report], None], checkpoint: Checkpoint | None) -> None:
        while self._step < self._plan.steps and not self._patience_is_over:
            epoch, first = divmod(self._step, self._plan.steps_per_epoch)
            rows = self._plan.batches(epoch, self._seed)[first:]
            batches = self._feed.batches([self._train_rows[some] for some in rows])
            for some, images in zip(rows, batches, strict=True):
                self._look(tell, checkpoint, epoch)
                self._one_step(images, self._train_rows[some], epoch)
            self._judge(epoch)
        self._finish()
        if checkpoint:
            checkpoint.save({**self._networks(), "ended": True, "notes": self._notes()})

    def _look(self, tell: Callable[[Report], None], checkpoint: Checkpoint | None, epoch: int) -> None:
        """Before each step: whatever is saved here has judged every epoch that is over."""
        if checkpoint and checkpoint.due:
            checkpoint.save(self._state())
        try:
            tell(self._report(epoch))
        except Stopped:
            if checkpoint:
                checkpoint.save(self._state())
            raise

    def _one_step(self, images: torch.Tensor, rows: np.ndarray, epoch: int) -> None:
        # A seed for each step: no generator's state needs to be kept for a training that goes on.
        torch.manual_seed(int(np.random.SeedSequence([*self._seed, self._step]).generate_state(1)[0]))
        head_only = self._step < self._plan.head_steps
        train_mode(self._net, head_only)
        set_rate(self._optimizer, self._plan.rate(self._step))
        classes = torch.from_numpy(self._classes[rows]).to(self.machine.device)
        images, targets = self._augment(images, one_hot(classes, self._class_count))
        loss, right = self._stepper.step(images, targets, head_only)
        if self._average:
            self._average.follow(self._step)
        self._meter.add(loss, right, len(rows), epoch)
        self._step += 1

    def _report(self, epoch: int) -> Report:
        report = self._meter.report(self._step, epoch)
        if self._meter.diverged:
            self._diverged()
        return report

    def _diverged(self) -> None:
        raise BadConfig(
            f"training diverged: learner.finetune.learning_rate {self._config.learning_rate:g} is too high; "
            "try a third of it, or a longer warm_up"
        )

    # ---- which epoch's weights -------------------------------------------------------------------------

    def _judge(self, epoch: int) -> None:
        """Keep the weights of the epoch with the least loss on the held-out labels."""
        if not len(self._held_rows) or self._step % self._plan.steps_per_epoch:
            return
        self._swap()
        loss = self._held_out_loss()
        if self._best is None or loss < self._best["loss"]:
            tensors = [p.detach().clone() for p in self._learning]
            buffers = [b.clone() for b in self._net.buffers()]
            self._best = {"loss": loss, "epoch": epoch, "tensors": tensors, "buffers": buffers}
        self._swap()

    def _held_out_loss(self) -> float:
        self._net.eval()
        total = 0.0
        pieces = np.array_split(self._held_rows, -(-len(self._held_rows) // _JUDGED_AT_ONCE))
        with torch.inference_mode(), self.machine.autocast():
            for rows, images in zip(pieces, self._feed.batches(pieces), strict=True):
                classes = torch.from_numpy(self._classes[rows]).to(self.machine.device)
                logits = self._head(self._net(images)).float()
                total += float(functional.cross_entropy(logits, classes, reduction="sum"))
        return total / len(self._held_rows)

    @property
    def _patience_is_over(self) -> bool:
        if self._config.patience is None or self._best is None:
            return False
        ended = self._step // self._plan.steps_per_epoch  # epochs
        return bool(ended - 1 - self._best["epoch"] >= self._config.patience)

    def _swap(self) -> None:
        """The running average in the place of the weights, and back."""
        if self._average:
            self._average.swap()

    def _finish(self) -> None:
        if self._best is not None:
            _copy_into(self._learning, self._best["tensors"])
            _copy_into([*self._net.buffers()], self._best["buffers"])
        else:
            self._swap()
        if not all(bool(torch.isfinite(p).all()) for p in self._learning):
            self._diverged()

    # ---- what is kept ----------------------------------------------------------------------------------

    def _networks(self) -> dict[str, Any]:
        return {"net": self._net.state_dict(), "head": self._head.state_dict()}

    def _state(self) -> dict[str, Any]:
        return {
            **self._networks(),
            "ended": False,
            "step": self._step,
            "optimizer": self._optimizer.state_dict(),
            "average": self._average.tensors if self._average else [],
            "best": self._best,
            "parts": self._stepper.parts,
            "scaler": self._stepper.scaler.state_dict(),
        }

    def as_it_ended(self, state: dict[str, Any]) -> TrainedNetwork:
        self._load_networks(state)
        return self.network(state["notes"])

    def _load_networks(self, state: dict[str, Any]) -> None:
        self._net.load_state_dict(state["net"])
        self._head.load_state_dict(state["head"])

    def restore(self, state: dict[str, Any]) -> None:
        self._load_networks(state)
        self._step = state["step"]
        self._optimizer.load_state_dict(state["optimizer"])
        if self._average:
            _copy_into(self._average.tensors, state["average"])
        best = state["best"]
        self._best = best and {
            **best,
            **{key: [tensor.to(self.machine.device) for tensor in best[key]] for key in ("tensors", "buffers")},
        }
        self._stepper.parts = state["parts"]
        self._stepper.scaler.load_state_dict(state["scaler"])

    def _notes(self) -> dict[str, float]:
        seconds = self._meter.seconds
        notes = {
            "images_per_second": round(self._meter.images_per_second, 1),
            "data_wait_share": round(self._feed.waited_s / seconds, 4) if seconds else 0.0,
        }
        if self._stepper.parts > self._config.accumulate:
            notes["batch_in_parts"] = float(self._stepper.parts)
        if self._best is not None:
            notes |= {"best_epoch": self._best["epoch"] + 1.0, "validation_loss": round(self._best["loss"], 4)}
        return notes

    def network(self, notes: dict[str, float] | None = None) -> TrainedNetwork:
        self._net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        net = self._net.eval().requires_grad_(False)
        weights, biases = (p.detach().cpu().numpy() for p in (self._head.weight, self._head.bias))
        return TrainedNetwork(net, weights, biases, notes if notes is not None else self._notes())


def _copy_into(targets: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
