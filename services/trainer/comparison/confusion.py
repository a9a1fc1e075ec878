"""Confusion matrices as pictures: counts and shares of each true class, side by side."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from services.trainer.comparison.plots import DPI, INK, PAPER, png

# More classes than this have no room for a number in each cell, or for a name beside each row.
_MOST_NUMBERS = 20
_MOST_NAMES = 60


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Each row by its sum; a class without samples has a row of zeros.  int (C, C) -> float (C, C)"""
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def confusion_picture(counts: np.ndarray, classes: Sequence[str], heading: str) -> bytes:
    """PNG. `counts`: int (C, C), rows are true classes and columns predicted ones."""
    side = min(9.0, max(3.4, 1.6 + 0.38 * len(counts)))
    figure = Figure(figsize=(2 * side + 0.7, side + 0.4), dpi=DPI, layout="constrained", facecolor=PAPER)
    left, right = figure.subplots(1, 2)
    shares = row_shares(counts)
    _matrix(left, counts / max(counts.max(), 1), [[f"{n:,}" if n else "" for n in row] for row in counts], classes)
    _matrix(right, shares, [[f"{100 * s:.0f}" if s >= 0.005 else "" for s in row] for row in shares], classes)
    right.tick_params(labelleft=False)
    right.set_ylabel("")
    left.set_title("test samples", loc="left", color=INK, fontsize=9.5)
    right.set_title("% of each true class", loc="left", color=INK, fontsize=9.5)
    figure.suptitle(heading, x=0.01, ha="left", color=INK, fontsize=11, weight="bold")
    return png(figure)


def _matrix(axes: Axes, depth: np.ndarray, texts: Sequence[Sequence[str]], classes: Sequence[str]) -> None:
    axes.imshow(depth, cmap="Blues", vmin=0, vmax=1)
    if len(depth) <= _MOST_NUMBERS:
        for row, column in np.ndindex(depth.shape):
            colour = PAPER if depth[row, column] > 0.55 else INK
            axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=7.5)
    places = list(range(len(depth))) if len(depth) <= _MOST_NAMES else []
    names = [classes[place] for place in places]
    axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, names)
    axes.set_xlabel("predicted", color=INK, fontsize=9)
    axes.set_ylabel("true", color=INK, fontsize=9)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    axes.spines[:].set_visible(False)
