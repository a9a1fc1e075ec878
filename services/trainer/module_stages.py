"""Stages of a network, found by the resolution of what its modules give: what is tapped and tuned one by one."""

import copy

import torch
from torch import nn

from services.trainer.architecture import Stages, Taps
from services.trainer.torchvision_shim import torchvision

assert torchvision  # the shim comes before any of its modules
from torchvision.models.feature_extraction import (  # noqa: E402 (as above)
    create_feature_extractor,
    get_graph_node_names,
)

# A convolution without padding takes off a pixel or two; a new stage begins where much more is gone.
_SMALLER = 1.5


def module_taps(network: nn.Module, size: int) -> Taps:
    """Taps of a network that torch.fx can trace, in evaluation mode; `size`: side of an input that it takes."""
    ends = [stage[-1] for stage in spatial_stages(network, size)]

    def reading(stages: tuple[int, ...], embedding: bool) -> nn.Module:
        wanted = {ends[stage - 1]: f"stage{stage}" for stage in stages}
        if embedding:
            wanted[get_graph_node_names(network)[1][-1]] = "embedding"
        return _Values(create_feature_extractor(network, return_nodes=wanted))

    return Taps(len(ends), reading)


class _Values(nn.Module):
    """What a feature extractor gives, without the names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return list(self.network(pixels).values())


def spatial_stages(network: nn.Module, size: int) -> list[tuple[str, ...]]:
    """Names of the modules of each stage, first stage first; the last module of each gives the stage's map.

    A stage ends where the resolution falls; a pooling that makes it fall belongs to the stage that it ends.
    Empty for a network whose modules give no square maps.
    """
    stages: list[list[str]] = []
    before, ended = 0, False
    for name, side, pools in _maps(network, size):
        falls = before >= _SMALLER * side
        if not stages or ended or (falls and not pools):
            stages.append([])
        stages[-1].append(name)
        before, ended = side, falls and pools
    return [tuple(stage) for stage in stages] if len(stages) > 1 else []


def parameter_stages(network: nn.Module, size: int) -> Stages:
    """Parameter names by the same stages; what lies between two belongs to the one before it.

    A network without square maps is divided by its modules.
    """
    by_map = spatial_stages(network, size) or [(name,) for name in _chain(network)]
    stages: list[list[str]] = [[] for _ in by_map]
    at = 0
    for name, _ in network.named_parameters():
        found = [i for i, modules in enumerate(by_map) if any(name.startswith(f"{module}.") for module in modules)]
        at = found[0] if found else at
        stages[at].append(name)
    return tuple(tuple(stage) for stage in stages)


def _chain(network: nn.Module) -> list[str]:
    """The modules that an image passes one after another: children, and those of sequences among them."""
    names = []
    for name, child in network.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and len(child):
            names += [f"{name}.{inner}" for inner, _ in child.named_children()]
        else:
            names.append(name)
    return names


def _maps(network: nn.Module, size: int) -> list[tuple[str, int, bool]]:
    """(module, side of its square output, is it a pooling?) in the order in which they run."""
    # On the meta device shapes are computed and nothing else.
    probe = copy.deepcopy(network).to("meta").eval()
    found: list[tuple[str, int, bool]] = []

    def look(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
            found.append((name, int(output.shape[2]), isinstance(module, nn.MaxPool2d)))

    for name in _chain(probe):
        probe.get_submodule(name).register_forward_hook(lambda module, _, output, name=name: look(name, module, output))
    with torch.inference_mode():
        probe(torch.zeros(1, 3, size, size, device="meta"))
    return found
