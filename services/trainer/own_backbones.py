"""The backbones known by a short name: torchvision's vgg16 and resnet50, and the baseline base_cnn."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from services.trainer import weights
from services.trainer.architecture import Architecture, Stages, Triple
from services.trainer.base_cnn import BaseCnn
from services.trainer.graph_cache import file_in_weights_dir
from services.trainer.learning import Watch
from services.trainer.torchvision_shim import torchvision

_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Vgg16(nn.Module):
    """torchvision's vgg16 without its classifier, averaged over positions: 512 dimensions at any size."""

    def __init__(self) -> None:
        super().__init__()
        # Made from its layers: the whole vgg16 would first fill 120 million weights that are thrown away.
        vgg = torchvision.models.vgg
        self.features = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised [N, 3, H, W] -> (N, 512)"""
        features: torch.Tensor = self.features(pixels)
        return features.mean(dim=(2, 3))


def _vgg16() -> Architecture:
    # A stage ends with its pooling, at these places of `features`.
    ends = (4, 9, 16, 23, 30)
    starts = (0, *(end + 1 for end in ends))
    stages = tuple(
        tuple(f"features.{i}." for i in range(start, end + 1)) for start, end in zip(starts, ends, strict=False)
    )
    return _torchvision("vgg16", Vgg16, stages, ("classifier.",))


def _resnet50() -> Architecture:
    stages = (("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",))
    return _torchvision("resnet50", _headless_resnet50, stages, ("fc.",))


def _headless_resnet50() -> nn.Module:
    network: nn.Module = torchvision.models.resnet50()
    network.fc = nn.Identity()
    return network


def _torchvision(name: str, make: Callable[[], nn.Module], stages: Stages, dropped: tuple[str, ...]) -> Architecture:
    # The first recipe: features of the newer one (label smoothing, mixing) transfer worse while frozen
    # (Kornblith et al. 2021, "Why do better loss functions lead to less transferable features?").
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    file_name = file_in_weights_dir(name)

    def attempts(weights_dir: Path | None, _size: int, watch: Watch) -> Sequence[weights.Attempt]:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        return weights.weights_file(weights_dir, file_name), weights.torchvision_download(url, folder, watch)

    return Architecture(
        name=name,
        native_size=224,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        make=lambda _size: make(),
        stages=lambda _network: stages,
        dropped=dropped,
        attempts=attempts,
        advice=f"run once with a network, or put {file_name} (torchvision's keys) into QUERENT_WEIGHTS_DIR",
    )


def _base_cnn() -> Architecture:
    return Architecture(
        name="base_cnn",
        native_size=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        make=lambda _size: BaseCnn(),
        stages=lambda network: tuple((f"blocks.{i}.",) for i in range(len(network.blocks))),  # type: ignore[arg-type]
        dropped=(),
        attempts=None,
        advice="",
    )


OWN: dict[str, Callable[[], Architecture]] = {"vgg16": _vgg16, "resnet50": _resnet50, "base_cnn": _base_cnn}
