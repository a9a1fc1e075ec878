"""A configured backbone with its weights: what is embedded with, and the id of that embedding."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from torch import nn

from services.common.errors import BadConfig, did_you_mean
from services.common.files import digest
from services.common.manifest import BackboneInfo
from services.trainer import taps, timm_backbones, torchvision_backbones, weights
from services.trainer.architecture import Architecture, Stages
from services.trainer.classifier import EmbeddingNet, SideBySide
from services.trainer.config import BackboneConfig, UrlWeights
from services.trainer.graph_cache import embedding_id
from services.trainer.learning import Watch
from services.trainer.own_backbones import OWN
from services.trainer.weight_files import Tensors, parts, read_weights

log = structlog.get_logger()


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
    # Dimensions of each backbone's part of the embedding, when there are several.
    blocks: tuple[int, ...] = ()

    @property
    def embedding_id(self) -> str:
        return embedding_id(self.info, self.height, self.width)


def build(
    config: BackboneConfig, height: int, width: int, weights_dir: Path | None, seed: int, watch: Watch
) -> Backbone:
    """The network that a configuration names, for a source of this canonical size.

    `seed` matters to `weights: none` alone. Raises BadConfig, NotFound or DamagedArtefact.
    """
    if config.members:
        return _side_by_side([build(it, height, width, weights_dir, seed, watch) for it in config.members])
    kind = architecture(config.name)
    size = config.input_size or kind.native_size or max(height, width)
    # Fill new networks from a generator of our own: torch's global one is neither used nor changed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = kind.make(size)
        found = _weights(kind, config.weights, weights_dir, size, watch)
    if found is not None:
        weights.load_strictly(module, weights.renamed(found, kind.renamed), kind.dropped)
        _tell_parts(kind, found)
    module.eval()
    read, stages = _tapped(kind, module, size, config)
    net = EmbeddingNet(read, height, width, size, kind.mean, kind.std, config.flip).eval()
    info = BackboneInfo(
        name=kind.name,
        weights=_label(config.weights),
        weights_sha256=weights.fingerprint(module),
        network_size=size,
        interpolation="bicubic",
        mean=kind.mean,
        std=kind.std,
        taps=stages,
        pooling=_pooling(module),
        flip=config.flip,
        precision="fp32",
    )
    return Backbone(
        net, _parameters(net, module, kind.stages(module)), info, _size(net, config, height, width), height, width
    )


def _side_by_side(backbones: Sequence[Backbone]) -> Backbone:
    """One backbone of several frozen ones."""
    infos = [it.info for it in backbones]
    info = BackboneInfo(
        name="+".join(it.name for it in infos),
        weights="+".join(it.weights for it in infos),
        weights_sha256=digest([it.weights_sha256 for it in infos]),
        network_size=max(it.network_size for it in infos),
        interpolation="bicubic",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        taps="by member",
        pooling="by member",
        flip=False,
        precision="fp32",
        members=tuple(infos),
    )
    blocks = tuple(it.embedding_size for it in backbones)
    net = SideBySide([it.net for it in backbones]).eval()
    return Backbone(net, (), info, sum(blocks), backbones[0].height, backbones[0].width, blocks)


def architecture(name: str) -> Architecture:
    """By a plain name (ours, then timm's, then torchvision's) or one that says whose it is: torchvision/resnet18.

    Raises BadConfig naming the nearest known backbone.
    """
    library, _, plain = name.rpartition("/")
    if library in ("", "torchvision") and plain in OWN and (plain != "base_cnn" or not library):
        return OWN[plain]()
    if library in ("", "timm") and timm_backbones.is_known(plain):
        return timm_backbones.timm_architecture(plain, name if plain in OWN else plain)
    if library in ("", "torchvision") and plain in torchvision_backbones.names():
        return torchvision_backbones.torchvision_architecture(plain, name if timm_backbones.is_known(plain) else plain)
    hint = did_you_mean(plain, [*OWN, *timm_backbones.names(), *torchvision_backbones.names()])
    if not hint.startswith("did you mean"):
        hint = f"known: {', '.join(sorted(OWN))} and every timm model or torchvision classifier"
    raise BadConfig(f"unknown backbone {name!r}; {hint}")


def _label(source: str | UrlWeights) -> str:
    """As manifests name it."""
    path = source.url if isinstance(source, UrlWeights) else source
    return path if path in ("default", "none") else Path(path).name


def _weights(
    kind: Architecture, source: str | UrlWeights, weights_dir: Path | None, size: int, watch: Watch
) -> Tensors | None:
    if isinstance(source, UrlWeights):
        return weights.from_url(source.url, source.sha256, watch)
    if source == "none":
        return None
    if source != "default":
        return read_weights(weights.named_file(source, weights_dir))
    if kind.attempts is None:
        raise BadConfig(
            f"{kind.name} has no pretrained weights: it is trained from scratch. "
            "Say so with backbone.weights: none (random initialisation exists only by name)"
        )
    return weights.first_found(kind.name, kind.attempts(weights_dir, size, watch), kind.advice)


def _tapped(kind: Architecture, module: nn.Module, size: int, config: BackboneConfig) -> tuple[nn.Module, str]:
    """What gives the embedding, and the name of its taps."""
    if taps.is_last(config.resolved_taps):
        return module, taps.LAST
    reading, name = taps.tapped(kind.name, kind.taps(module, size), config.resolved_taps)
    return (module if reading is None else reading.eval()), name


def _tell_parts(kind: Architecture, found: Tensors) -> None:
    """Files may hold the features alone, or a classifier that nobody needs here."""
    left = [key for key in found if key.startswith(kind.dropped)]
    used = parts(key for key in found if key not in left)
    log.info("weights_loaded", backbone=kind.name, used=used, left_out=parts(left) or "nothing: it has no classifier")


def _parameters(net: EmbeddingNet, module: nn.Module, stages: Stages) -> tuple[tuple[str, ...], ...]:
    """Parameter names of `net` by stage; each of them is one of `module`'s. Stages without parameters are left out."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    of_module = [(name, names[id(p)]) for name, p in module.named_parameters() if id(p) in names]
    by_stage = (tuple(full for name, full in of_module if name.startswith(stage)) for stage in stages)
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
