"""What the rest must know about a backbone, whoever made it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from services.trainer.learning import Watch
from services.trainer.weights import Attempt

Triple = tuple[float, float, float]
# Prefixes of parameter names, first stage first.
Stages = tuple[tuple[str, ...], ...]


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
    attempts: Callable[[Path | None, int, Watch], Sequence[Attempt]] | None
    advice: str
