"""A network of a few hundred weights, and images whose classes are told by colour."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from services.common.errors import Stopped
from services.trainer.backbones import Backbone
from services.trainer.classifier import EmbeddingNet
from services.trainer.finetune_config import FinetuneConfig
from services.trainer.training.loop import Labelled, TrainedNetwork, train_network
from services.trainer.training.telling import Report
from tests.fakes import BACKBONE

SIDE, D, C = 8, 6, 3
GIB = 2**30


class Tiny(nn.Module):
    """Two stages, with batch norm, dropout and average pooling: everything that has a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(4, D, 3, padding=1), nn.BatchNorm2d(D), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(pixels)).mean(dim=(2, 3))


class Plain(nn.Module):
    """As Tiny, without what looks at the whole batch or draws at random."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(4, D, 3, padding=1), nn.ReLU())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(pixels)).mean(dim=(2, 3))


class HoldsFew(nn.Module):
    """As Tiny, on a device whose memory ends at `most` images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.tiny, self.most = Tiny(), most

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.training and len(pixels) > self.most:
            raise torch.cuda.OutOfMemoryError("no room")
        return self.tiny(pixels)


def backbone(make: Callable[[], nn.Module] = Tiny) -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    net = EmbeddingNet(module, SIDE, SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), False).eval()
    names = [name for name, _ in net.named_parameters()]
    stages = tuple(tuple(n for n in names if part in n) for part in ("first.", "last."))
    return Backbone(net, stages, BACKBONE, D, SIDE, SIDE)


def colours(count: int = 48) -> Labelled:
    """Red, green or blue, under noise."""
    rng = np.random.default_rng(0)
    classes = np.arange(count) % C
    images = rng.integers(0, 120, (count, SIDE, SIDE, 3))
    images[np.arange(count), :, :, classes] += 100
    return Labelled(images.astype(np.uint8), classes.astype(np.int64), C, np.arange(count))


@dataclass
class Told:
    """Remembers the reports; says stop before step `stop_at`."""

    stop_at: int | None = None
    seen: list[Report] = field(default_factory=list)

    def __call__(self, report: Report) -> None:
        self.seen.append(report)
        if report.step == self.stop_at:
            raise Stopped("asked to")


def how(**keys) -> FinetuneConfig:
    return FinetuneConfig(**{"epochs": 3, "batch_size": 8, "learning_rate": 0.01, "device": "cpu", **keys})


def trained(labelled: Labelled | None = None, of: Backbone | None = None, tell=None, **keys) -> TrainedNetwork:
    more = {key: keys.pop(key) for key in ("checkpoint", "free") if key in keys}
    return train_network(of or backbone(), labelled or colours(), how(**keys), (0, 0), tell or Told(), **more)


def weights(network: TrainedNetwork) -> np.ndarray:
    """Everything that was learned, and the batch norms' statistics."""
    values = [v.detach().float().numpy().ravel() for v in network.net.state_dict().values()]
    return np.concatenate([*values, network.weights.ravel(), network.biases])


def accuracy(network: TrainedNetwork, labelled: Labelled) -> float:
    with torch.inference_mode():
        embeddings = network.net(torch.from_numpy(labelled.images)).numpy()
    return float(((embeddings @ network.weights.T + network.biases).argmax(axis=1) == labelled.classes).mean())


@pytest.fixture(autouse=True)
def one_thread():
    """On eight pixels a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
