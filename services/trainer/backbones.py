"""A configured backbone with its weights: what is embedded with, and the id of that embedding."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from services.common.errors import BadConfig, did_you_mean
from services.common.manifest import BackboneInfo
from services.trainer import timm_backbones, weights
from services.trainer.architecture import Architecture, Stages
from services.trainer.classifier import EmbeddingNet
from services.trainer.config import BackboneConfig
from services.trainer.graph_cache import embedding_id
from services.trainer.learning import Watch
from services.trainer.own_backbones import OWN


@dataclass(frozen=True)
class Backbone:
    # uint8 [N, H, W, 3] -> float32 (N, D), in evaluation mode, on the CPU.
    net: EmbeddingNet
    # Names of the parameters of `net` by stage, first stage first.
    stages: tuple[tuple[str, ...], ...]
    info: BackboneInfo
    embedding_size: int
    height: int
    width: int

    @property
    def embedding_id(self) -> str:
        return embedding_id(self.info, self.height, self.width)


def build(
    config: BackboneConfig, height: int, width: int, weights_dir: Path | None, seed: int, watch: Watch
) -> Backbone:
    """The network that a configuration names, for a source of this canonical size.

    `seed` matters to `weights: none` alone. Raises BadConfig, NotFound or DamagedArtefact.
    """
    kind = architecture(config.name)
    size = config.input_size or kind.native_size or max(height, width)
    # Fill new networks from a generator of our own: torch's global one is neither used nor changed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind.make(size)
        found = _weights(kind, config.weights, weights_dir, size, watch)
    if found is not None:
        weights.load_strictly(module, found, kind.dropped)
    module.eval()
    net = EmbeddingNet(module, height, width, size, kind.mean, kind.std, config.flip).eval()
    label = config.weights if config.weights in ("default", "none") else Path(config.weights).name
    info = BackboneInfo(
        name=config.name,
        weights=label,
        weights_sha256=weights.fingerprint(module),
        network_size=size,
        interpolation="bicubic",
        mean=kind.mean,
        std=kind.std,
        taps=config.taps,
        pooling=_pooling(module),
        flip=config.flip,
        precision="fp32",
    )
    return Backbone(net, _parameters(net, kind.stages(module)), info, _size(net, config, height, width), height, width)


def architecture(name: str) -> Architecture:
    """Raises BadConfig naming the nearest known backbone."""
    if name in OWN:
        return OWN[name]()
    if timm_backbones.is_known(name):
        return timm_backbones.timm_architecture(name)
    known = [*OWN, *timm_backbones.names()]
    hint = did_you_mean(name, known)
    if not hint.startswith("did you mean"):
        hint = f"known: {', '.join(sorted(OWN))} and every timm model"
    raise BadConfig(f"unknown backbone {name!r}; {hint}")


def _weights(
    kind: Architecture, source: str, weights_dir: Path | None, size: int, watch: Watch
) -> weights.Tensors | None:
    if source == "none":
        return None
    if source != "default":
        return weights.load_safetensors(weights.named_file(source, weights_dir))
    if kind.attempts is None:
        raise BadConfig(
            f"{kind.name} has no pretrained weights: it is trained from scratch. "
            "Say so with backbone.weights: none (random initialisation exists only by name)"
        )
    return weights.first_found(kind.name, kind.attempts(weights_dir, size, watch), kind.advice)


def _parameters(net: EmbeddingNet, stages: Stages) -> tuple[tuple[str, ...], ...]:
    """Full parameter names by stage; each parameter belongs to one. Stages without parameters are left out."""
    names = [name for name, _ in net.named_parameters()]
    by_stage = (tuple(n for n in names if n.removeprefix("backbone.").startswith(stage)) for stage in stages)
    return tuple(stage for stage in by_stage if stage)


def _pooling(module: nn.Module) -> str:
    """timm's networks say how they pool (some by a token); ours average."""
    pool = getattr(module, "global_pool", "avg")
    return str(getattr(pool, "pool_type", pool) or "avg") if isinstance(pool, str | nn.Module) else "avg"


def _size(net: EmbeddingNet, config: BackboneConfig, height: int, width: int) -> int:
    """D, by trying. Raises BadConfig when the network cannot take this input."""
    try:
        with torch.inference_mode():
            out = net(torch.zeros(1, height, width, 3, dtype=torch.uint8))
    except (RuntimeError, AssertionError) as error:
        raise BadConfig(f"{config.name} cannot take an input of {config.input_size} pixels: {error}") from error
    if out.ndim != 2:
        raise BadConfig(f"{config.name} gives features of shape {tuple(out.shape[1:])}; one vector is needed")
    return int(out.shape[1])
