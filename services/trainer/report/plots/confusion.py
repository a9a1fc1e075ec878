"""Confusion matrices, of a campaign's last round and of comparisons: how many, and of how many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from services.trainer.report.plots.canvas import Theme, as_label, axes_of, dress, figure, headline, png, title

# Beyond these a cell has no room for a number, and a line none for a name.
MOST_NUMBERS = 20
MOST_NAMES = 50
# Beyond this two matrices do not fit beside each other.
MOST_IN_HALF_A_PAGE = 12


@dataclass(frozen=True)
class _Matrix:
    heading: str
    values: np.ndarray  # (C, C)
    # What the deepest colour stands for.
    top: float
    texts: Sequence[Sequence[str]]


def row_shares(counts: np.ndarray) -> np.ndarray:
    """Each row by its sum; a class without samples has a row of zeros.  int (C, C) -> float (C, C)"""
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def confusion_shares(counts: np.ndarray, classes: Sequence[str], theme: Theme) -> bytes:
    """PNG: share of each true class (row) that was predicted as each class (column).  `counts`: int (C, C)"""
    return _alone(_shares(counts), classes, theme)


def confusion_counts(counts: np.ndarray, classes: Sequence[str], theme: Theme) -> bytes:
    """PNG: test samples of each true class (row) that were predicted as each class (column).  `counts`: int (C, C)"""
    return _alone(_counts(counts), classes, theme)


def confusion_pair(counts: np.ndarray, classes: Sequence[str], heading: str, theme: Theme) -> bytes:
    """PNG: counts and shares side by side under one heading.  `counts`: int (C, C)"""
    side = min(9.0, max(3.4, 1.6 + 0.38 * len(counts)))
    drawn = figure(theme, 2 * side + 0.7, side + 0.4)
    both = drawn.subplots(1, 2)
    for axes, matrix in zip(both, (_counts(counts), _shares(counts)), strict=True):
        dress(axes, theme, grid=False)
        _draw(axes, matrix, classes, theme)
    both[1].tick_params(labelleft=False)
    both[1].set_ylabel("")
    headline(drawn, heading, theme)
    return png(drawn)


def is_wide(classes: int) -> bool:
    """Whether a matrix takes the whole width of the page: its names need the room, mere numbers do not."""
    return MOST_IN_HALF_A_PAGE < classes <= MOST_NAMES


def _shares(counts: np.ndarray) -> _Matrix:
    shares = row_shares(counts)
    texts = [[f"{100 * s:.0f}" if s >= 0.005 else "" for s in row] for row in shares]
    return _Matrix("Share of each true class, %", shares, 1.0, texts)


def _counts(counts: np.ndarray) -> _Matrix:
    texts = [[f"{n:,.0f}" if n else "" for n in row] for row in counts]
    return _Matrix("Test samples", counts, max(float(counts.max()), 1.0), texts)


def _alone(matrix: _Matrix, classes: Sequence[str], theme: Theme) -> bytes:
    side = 8.6 if is_wide(len(matrix.values)) else 5.0
    drawn = figure(theme, side, side * 0.96)
    _draw(axes_of(drawn, theme, grid=False), matrix, classes, theme)
    return png(drawn)


def _draw(axes: Axes, matrix: _Matrix, classes: Sequence[str], theme: Theme) -> None:
    size = len(matrix.values)
    image = axes.imshow(matrix.values, cmap=theme.heat, vmin=0, vmax=matrix.top)
    if size <= MOST_NUMBERS:
        _write(axes, matrix, theme)
    _mark(axes, classes[:size])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    title(axes, matrix.heading, theme)
    if size > MOST_NUMBERS:
        bar = image.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
        bar.ax.tick_params(colors=theme.muted, length=0, labelsize=8)
        if matrix.top == 1.0:
            bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        bar.outline.set_visible(False)


def _mark(axes: Axes, classes: Sequence[str]) -> None:
    """Names, or class numbers where names would run into each other."""
    if len(classes) <= MOST_NAMES:
        ticks = list(range(len(classes)))
        names = [as_label(name) for name in classes]
        size = 8.5 if len(classes) <= 20 else 6.5
    else:
        step = int(10 ** np.floor(np.log10(len(classes) / 2)))
        ticks = list(range(0, len(classes), step))
        names, size = [str(i) for i in ticks], 8.0
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(ticks, names, fontsize=size)


def _write(axes: Axes, matrix: _Matrix, theme: Theme) -> None:
    for (row, column), value in np.ndenumerate(matrix.values):
        colour = theme.paper if value / matrix.top > 0.5 else theme.ink
        text = matrix.texts[row][column]
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7.5)
