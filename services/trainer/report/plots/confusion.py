"""Confusion matrices of the last round: how many, and of how many."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from services.trainer.report.content import CampaignReport
from services.trainer.report.plots.canvas import Theme, as_label, axes_of, figure, png, title

# Beyond these a cell has no room for a number, and a line none for a name.
MOST_NUMBERS = 20
MOST_NAMES = 50
# Beyond this two matrices do not fit beside each other.
MOST_IN_HALF_A_PAGE = 12


def confusion_shares(report: CampaignReport, theme: Theme) -> bytes:
    """PNG: share of each true class (row) that was predicted as each class (column)."""
    counts = _counts(report)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    texts = [[f"{100 * s:.0f}" if s >= 0.005 else "" for s in row] for row in shares]
    return _matrix(report, shares, 1.0, texts, "Share of each true class, %", theme)


def confusion_counts(report: CampaignReport, theme: Theme) -> bytes:
    """PNG: test samples of each true class (row) that were predicted as each class (column)."""
    counts = _counts(report)
    texts = [[f"{n:.0f}" if n else "" for n in row] for row in counts]
    return _matrix(report, counts, max(float(counts.max()), 1.0), texts, "Test samples", theme)


def is_wide(report: CampaignReport) -> bool:
    """Whether a matrix takes the whole width of the page: its names need the room, mere numbers do not."""
    return MOST_IN_HALF_A_PAGE < len(report.confusion) <= MOST_NAMES


def _counts(report: CampaignReport) -> np.ndarray:
    return np.asarray(report.confusion, dtype=float).reshape(len(report.confusion), -1)  # (C, C)


def _matrix(
    report: CampaignReport, values: np.ndarray, top: float, texts: list[list[str]], heading: str, theme: Theme
) -> bytes:
    side = 8.6 if is_wide(report) else 5.0
    drawn = figure(theme, side, side * 0.96)
    axes = axes_of(drawn, theme, grid=False)
    image = axes.imshow(values, cmap=theme.heat, vmin=0, vmax=top)
    if len(values) <= MOST_NUMBERS:
        _write(axes, values / top, texts, theme)
    _mark(axes, report.classes[: len(values)])
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    title(axes, heading, theme)
    if len(values) > MOST_NUMBERS:
        bar = drawn.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
        bar.ax.tick_params(colors=theme.muted, length=0, labelsize=8)
        if top == 1.0:
            bar.ax.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        bar.outline.set_visible(False)
    return png(drawn)


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


def _write(axes: Axes, shares: np.ndarray, texts: list[list[str]], theme: Theme) -> None:
    for (row, column), share in np.ndenumerate(shares):
        colour = theme.paper if share > 0.5 else theme.ink
        axes.text(column, row, texts[row][column], ha="center", va="center", color=colour, fontsize=7.5)
