"""The backbones known by a short name: torchvision's vgg16 and resnet50, and the baseline base_cnn."""

from collections.abc import Callable

from services.trainer.architecture import Architecture
from services.trainer.base_cnn import BaseCnn
from services.trainer.module_stages import module_taps, parameter_stages
from services.trainer.torchvision_backbones import torchvision_architecture

# Any size would do: its stages do not depend on it.
_PROBE_SIZE = 64


def _base_cnn() -> Architecture:
    return Architecture(
        name="base_cnn",
        native_size=None,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        make=lambda _size: BaseCnn(),
        stages=lambda network: parameter_stages(network, _PROBE_SIZE),
        taps=lambda network, _size: module_taps(network, _PROBE_SIZE),
        dropped=(),
        attempts=None,
        advice="",
    )


OWN: dict[str, Callable[[], Architecture]] = {
    "vgg16": lambda: torchvision_architecture("vgg16", "vgg16"),
    "resnet50": lambda: torchvision_architecture("resnet50", "resnet50"),
    "base_cnn": _base_cnn,
}
