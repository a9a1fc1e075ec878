"""What the rest must know about a backbone, whoever made it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from services.trainer.learning import Watch
from services.trainer.weights import Attempt

Triple = tuple[float, float, float]
# Prefixes of parameter names, first stage first.
Stages = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Taps:
    """What can be read of one network besides its own embedding."""

    # Stages that give a map, numbered from 1 on; the last one is represented by the embedding. 0: none can be tapped.
    count: int
    # (stages before the last, with its own embedding?) -> a network that gives their maps [N, c, h, w] and, last, the
    # embedding (N, d). It shares its parameters.
    reading: Callable[[tuple[int, ...], bool], nn.Module]


NO_TAPS = Taps(0, lambda _stages, _whole: nn.Identity())


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
    # The network in evaluation mode, and its network size.
    taps: Callable[[nn.Module, int], Taps]
    # Keys of the classifier, which the embedding has no use for.
    dropped: tuple[str, ...]
    # (weights_dir, network size, watch) -> where to look, in order; None: there are no weights anywhere.
    attempts: Callable[[Path | None, int, Watch], Sequence[Attempt]] | None
    advice: str
    # (pattern, replacement) for keys that older files call otherwise.
    renamed: tuple[tuple[str, str], ...] = field(default=())
