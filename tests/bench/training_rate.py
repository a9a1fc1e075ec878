"""How fast the trainer trains, beside a torch loop that does nothing else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console

from services.trainer.backbones import Backbone
from services.trainer.finetune_config import FinetuneConfig
from services.trainer.follow import progress_bars
from services.trainer.training.device import choose_machine
from services.trainer.training.loop import Labelled, TrainedNetwork, train_network
from services.trainer.training.telling import Report

_WARM_UP_STEPS = 20


@contextmanager
def show_progress() -> Iterator[Callable[[Report], None]]:
    """A bar with loss and accuracy on a terminal, a line an epoch anywhere else."""
    console = Console()
    with progress_bars(console) as bars:
        bar, told = bars.add_task("training"), -1

        def tell(report: Report) -> None:
            nonlocal told
            text = f"epoch {report.epoch + 1}/{report.epochs} loss {report.loss:.3g} accuracy {report.accuracy:.1%}"
            bars.update(bar, description=f"training ({text})", completed=report.step, total=report.steps)
            if not console.is_terminal and report.epoch > told:
                told = report.epoch
                console.print(f"{text}, {report.images_per_second:.1f} images/s")

        yield tell


def short_training(
    backbone: Backbone, images: np.ndarray, classes: np.ndarray, config: FinetuneConfig, seed: int
) -> TrainedNetwork:
    labelled = Labelled(images, classes, 10, np.arange(len(classes)))
    with show_progress() as tell:
        return train_network(backbone, labelled, config, (seed, 0), tell)


def compared_with_bare_loop(
    backbone: Backbone, images: np.ndarray, classes: np.ndarray, config: FinetuneConfig
) -> tuple[float, float]:
    """Images a second of our training, from the first step that is not warm-up, and of the bare loop."""
    seen: list[tuple[float, int]] = []

    def tell(report: Report) -> None:
        seen.append((time.perf_counter(), report.step))

    train_network(backbone, Labelled(images, classes, 10, np.arange(len(classes))), config, (0, 0), tell)
    (began, first), (ended, last) = seen[_WARM_UP_STEPS], seen[-1]
    ours = (last - first) * config.batch_size / (ended - began)
    return ours, bare_rate(backbone, images.shape[1:], config, steps=len(seen))


def bare_rate(backbone: Backbone, shape: tuple[int, ...], config: FinetuneConfig, steps: int) -> float:
    """Random uint8 images that lie on the device: forward, backward, AdamW, and nothing else."""
    import copy

    import torch
    from torch.nn import functional

    machine = choose_machine(config)
    net = copy.deepcopy(backbone.net).to(machine.device, memory_format=machine.layout).train()
    head = torch.nn.Linear(backbone.embedding_size, 10, device=machine.device)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=1e-5, fused=True)
    images = torch.randint(0, 256, (config.batch_size, *shape), dtype=torch.uint8, device=machine.device)
    classes = torch.randint(0, 10, (config.batch_size,), device=machine.device)
    began = time.perf_counter()
    for step in range(steps):
        if step == _WARM_UP_STEPS:
            _synchronise(machine.device)
            began = time.perf_counter()
        with machine.autocast():
            logits = head(net(images))
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(logits.float(), classes).backward()
        optimizer.step()
    _synchronise(machine.device)
    return (steps - _WARM_UP_STEPS) * config.batch_size / (time.perf_counter() - began)


def _synchronise(device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
