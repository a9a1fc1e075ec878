"""Every torchvision classifier as a backbone: what its last linear layer gets.

Networks that flatten a map into their classifier (VGG, AlexNet, SqueezeNet) are averaged over positions instead, and
so take any size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.common.errors import BadConfig
from services.trainer import weights
from services.trainer.architecture import Architecture, Triple
from services.trainer.graph_cache import file_in_weights_dir
from services.trainer.learning import Watch
from services.trainer.module_stages import module_taps, parameter_stages
from services.trainer.torchvision_shim import torchvision

# The first recipe: features of the newer one (label smoothing, mixing) transfer worse while frozen
# (Kornblith et al. 2021, "Why do better loss functions lead to less transferable features?").
_RECIPE = "IMAGENET1K_V1"
_AVERAGED = ("vgg", "alexnet", "squeezenet")
# Their position tables are made for one size.
_FIXED_SIZE = ("vit_", "maxvit_")
_VGG_LAYERS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}
# They compute their widths with tensors, so that they cannot be made without values.
_REGNET = "regnet_"
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's own files have these older names, and its own loaders rename them too.
_RENAMED = (
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    (r"(\.mlp\.)linear_1\.", r"\g<1>0."),
    (r"(\.mlp\.)linear_2\.", r"\g<1>3."),
)


def names() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models))


def torchvision_architecture(name: str, known_as: str) -> Architecture:
    """`name` is torchvision's, `known_as` the one in configurations."""
    options = torchvision.models.get_model_weights(name)
    entry = options[_RECIPE] if _RECIPE in options.__members__ else options.DEFAULT
    preset = entry.transforms()
    (native_size,) = preset.crop_size
    file_name = file_in_weights_dir(known_as)

    def attempts(weights_dir: Path | None, _size: int, watch: Watch) -> Sequence[weights.Attempt]:
        folder = weights.download_folder()
        return weights.weights_file(weights_dir, file_name), weights.torchvision_download(entry.url, folder, watch)

    return Architecture(
        name=known_as,
        native_size=native_size,
        mean=_triple(preset.mean),
        std=_triple(preset.std),
        make=lambda size: _headless(name, known_as, size, native_size),
        stages=lambda network: parameter_stages(network, native_size),
        taps=lambda network, _size: module_taps(network, native_size),
        dropped=_dropped(name),
        attempts=attempts,
        advice=f"run once with a network, or put {file_name} (torchvision's keys) into QUERENT_WEIGHTS_DIR",
        renamed=_RENAMED,
    )


class Averaged(nn.Module):
    """The map of `features`, averaged over positions."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised [N, 3, H, W] -> (N, D)"""
        maps: torch.Tensor = self.features(pixels)
        return maps.mean(dim=(2, 3))


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue


def _dropped(name: str) -> tuple[str, ...]:
    """Keys of the classifier."""
    if name.startswith(_AVERAGED):
        return ("classifier.",)
    if name.startswith(_REGNET):
        return ("fc.",)
    with torch.device("meta"):
        network = _network(name, None)
    return (f"{_last_linear(network)}.", *_AUXILIARY)


def _headless(name: str, known_as: str, size: int, native_size: int) -> nn.Module:
    if name in _VGG_LAYERS or name.removesuffix("_bn") in _VGG_LAYERS:
        return Averaged(_vgg_features(name))
    if name.startswith(_AVERAGED):
        return Averaged(_network(name, None).get_submodule("features"))
    if name.startswith(_FIXED_SIZE) and size != native_size:
        raise BadConfig(
            f"backbone.input_size: {known_as} takes {native_size} pixels and nothing else; "
            "leave input_size out, or use one of timm's networks"
        )
    network = _network(name, size if name.startswith("vit_") else None)
    network.set_submodule(_last_linear(network), nn.Identity())
    return network


def _network(name: str, image_size: int | None) -> nn.Module:
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        # As with torchvision's own weights: its preset's normalisation is turned into the one they were trained with.
        options |= {"aux_logits": False, "init_weights": False, "transform_input": True}
    if image_size is not None:
        options["image_size"] = image_size
    network: nn.Module = torchvision.models.get_model(name, **options)
    return network


def _last_linear(network: nn.Module) -> str:
    linear: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1]


def _vgg_features(name: str) -> nn.Module:
    """Made from its layers: the whole network would first fill 120 million weights that are thrown away."""
    vgg = torchvision.models.vgg
    layers = _VGG_LAYERS[name.removesuffix("_bn")]
    features: nn.Module = vgg.make_layers(vgg.cfgs[layers], batch_norm=name.endswith("_bn"))
    for module in features:  # type: ignore[attr-defined]
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return features
