"""Fine-tuning in torch: the last stages of a backbone, or all of it, with a linear head on top."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from services.common.errors import BadConfig
from services.trainer.classifier import EmbeddingNet
from services.trainer.config import LearnerConfig

if TYPE_CHECKING:
    from services.trainer.backbones import Backbone

_WARM_UP_SHARE = 0.05


@dataclass(frozen=True)
class TrainedNetwork:
    # In evaluation mode, on the device where it was trained.
    net: EmbeddingNet
    weights: np.ndarray  # (C, D)
    biases: np.ndarray  # (C,)


def steps_of(samples: int, config: LearnerConfig) -> int:
    """How many batches a training of so many samples takes."""
    return config.epochs * math.ceil(samples / config.batch_size)


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Raises BadConfig when CUDA was asked for by name and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadConfig("learner.device: cuda, but torch sees no CUDA device here; use auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def train_network(
    backbone: "Backbone",
    images: np.ndarray,
    classes: np.ndarray,
    class_count: int,
    config: LearnerConfig,
    rng: np.random.Generator,
    look: Callable[[], None],
) -> TrainedNetwork:
    """uint8 [N, H, W, 3] and classes (N,) -> a trained copy of the backbone with a linear head.

    Cross-entropy, AdamW, short warm-up, cosine decay. `look` is called before every step and may raise.
    Same images, generator and thread count: same network (on a CPU).
    """
    device = choose_device(config.device)
    net = copy.deepcopy(backbone.net).to(device)
    # A head of zeros begins without an opinion and needs no random numbers.
    head = nn.Linear(backbone.embedding_size, class_count, device="meta").to_empty(device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    trained = _unfreeze(net, backbone.stages, config.stages)
    # From scratch there is nothing to be careful with.
    share = 1.0 if backbone.info.weights == "none" else config.backbone_lr_share
    optimizer = _optimizer(net, head, config, share)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _schedule(steps_of(len(images), config)))
    # Dropout, where a network has any, draws from torch's global generator: give it back as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(rng.integers(2**31)))
        for rows, mirrored in _batches(len(images), config, rng):
            look()
            _train_mode(net)
            batch = torch.from_numpy(images[rows]).to(device)
            flags = torch.from_numpy(mirrored).to(device)[:, None, None, None]
            logits = head(net(torch.where(flags, batch.flip(2), batch)))
            loss = functional.cross_entropy(logits, torch.from_numpy(classes[rows]).to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scheduler.step()
    if not all(bool(torch.isfinite(p).all()) for p in (*trained, *head.parameters())):
        raise BadConfig(f"training diverged: learner.learning_rate {config.learning_rate:g} is too high")
    return TrainedNetwork(
        net.eval().requires_grad_(False), head.weight.detach().cpu().numpy(), head.bias.detach().cpu().numpy()
    )


def _unfreeze(
    net: EmbeddingNet, stages: tuple[tuple[str, ...], ...], wanted: int | Literal["all"]
) -> list[nn.Parameter]:
    """Let the last `wanted` stages learn, and nothing else. Gives their parameters."""
    chosen = stages if wanted == "all" else stages[max(0, len(stages) - wanted) :]
    names = {name for stage in chosen for name in stage}
    trained = []
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names:
            trained.append(parameter)
    return trained


def _train_mode(net: EmbeddingNet) -> None:
    """Training mode, except in frozen parts: their batch norms keep the statistics they were trained with."""
    net.train()
    for module in net.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def _optimizer(net: EmbeddingNet, head: nn.Linear, config: LearnerConfig, share: float) -> torch.optim.Optimizer:
    groups = []
    for module, lr in ((net, config.learning_rate * share), (head, config.learning_rate)):
        parameters = [p for p in module.parameters() if p.requires_grad]
        # Biases and batch norms are not decayed.
        for decayed, decay in ((True, config.weight_decay), (False, 0.0)):
            members = [p for p in parameters if (p.ndim > 1) is decayed]
            groups.append({"params": members, "lr": lr, "weight_decay": decay})
    # Fused: one pass over each tensor instead of ten, a quarter of a small network's step on a CPU.
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def _schedule(steps: int) -> Callable[[int], float]:
    """Linear warm-up, then half a cosine to zero, as a share of the learning rate."""
    warm_up = max(1, int(steps * _WARM_UP_SHARE))

    def share(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return share


def _batches(samples: int, config: LearnerConfig, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, which of them are mirrored) for every step of the training."""
    per_epoch = math.ceil(samples / config.batch_size)
    for _ in range(config.epochs):
        # Parts of nearly equal size: a last batch of one image would break batch norm.
        for rows in np.array_split(rng.permutation(samples), per_epoch):
            yield rows, (rng.random(len(rows)) < 0.5) & config.mirror
