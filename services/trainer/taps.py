"""Embeddings from several stages of a backbone: each stage's map averaged over its positions, one behind the other.

Earlier stages keep what the last one has given up for the classes that it was trained on.
"""

from typing import Literal

import torch
from torch import nn

from services.common.errors import BadConfig
from services.trainer.architecture import Taps

# As in a configuration: a number of last stages, or stage numbers from 1 on.
Wanted = Literal["last"] | int | tuple[int, ...]
LAST = "last"


class TappedNet(nn.Module):
    """Normalised [N, 3, S, S] -> (N, D): averages of maps, then the network's own embedding."""

    def __init__(self, reading: nn.Module) -> None:
        super().__init__()
        self.reading = reading

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        values: list[torch.Tensor] = self.reading(pixels)
        return torch.cat([v.mean(dim=(2, 3)) if v.ndim == 4 else v for v in values], dim=1)


def is_last(wanted: Wanted) -> bool:
    """The network's own embedding and nothing else?"""
    return wanted in (LAST, 1)


def tapped(name: str, taps: Taps, wanted: Wanted) -> tuple[nn.Module | None, str]:
    """The network that gives the wanted stages, and their name in manifests and embedding ids: "4,5", or "last" with
    None for the network as it is. Raises BadConfig for stages that there are not.
    """
    numbers = _numbers(name, taps.count, wanted)
    if numbers == (taps.count,):
        return None, LAST
    maps = tuple(number for number in numbers if number < taps.count)
    return TappedNet(taps.reading(maps, numbers[-1] == taps.count)), ",".join(map(str, numbers))


def _numbers(name: str, count: int, wanted: Wanted) -> tuple[int, ...]:
    """Stage numbers, rising."""
    if not count:
        raise BadConfig(f"backbone.taps: the stages of {name} give no maps that could be averaged; use taps: last")
    if isinstance(wanted, str):
        return (count,)
    asked = range(count - wanted + 1, count + 1) if isinstance(wanted, int) else sorted(set(wanted))
    numbers = tuple(asked)
    if numbers[0] < 1 or numbers[-1] > count:
        raise BadConfig(f"backbone.taps: {name} has {count} stages, 1 to {count}; {_shown(wanted)} asks for others")
    return numbers


def _shown(wanted: Wanted) -> str:
    return str(list(wanted)) if isinstance(wanted, tuple) else str(wanted)
