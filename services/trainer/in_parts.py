"""Long work over many samples in bounded pieces."""

from collections.abc import Callable, Sequence

import numpy as np

from services.trainer.learning import Watch


def in_parts(
    part: Callable[[Sequence[str]], np.ndarray], ids: Sequence[str], size: int, phase: str, watch: Watch
) -> np.ndarray:
    """`part` over one or more ids, `size` at a time, one under the other. Looks at `watch` before each."""
    parts = []
    for first in range(0, len(ids), size):
        watch.progress(phase, first, len(ids))
        parts.append(part(ids[first : first + size]))
    return np.concatenate(parts)
