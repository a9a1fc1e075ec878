"""What a comparison's pictures have in common: one look for each strategy, colours of a verdict, words."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from services.trainer.comparison.summary import Found, Summary
from services.trainer.report.plots.canvas import Theme

# Beside colours, for those who see them alike and for print.
MARKERS = ("o", "s", "^", "D", "v", "P")
# Random's lines, everywhere.
DASHED = (0, (4, 2))
DOTTED = (0, (1, 2))


def verdict(one: Found, theme: Theme) -> str:
    """Blue where the interval is above zero, vermilion below, grey where it is open."""
    gain = one.aubc_gain
    if not gain.resolved:
        return theme.muted
    return theme.lines[0] if gain.low > 0 else theme.lines[1]


def curve(axes: Axes, labels: np.ndarray, one: Found, colour: str, marker: str, is_random: bool) -> np.ndarray:
    """Draws its mean with the 95% band, and gives the mean.  (L,)"""
    mean, low, high = one.band()
    axes.fill_between(labels, low, high, color=colour, alpha=0.13, lw=0)
    style = DASHED if is_random else "-"
    axes.plot(labels, mean, color=colour, marker=marker, lw=1.8, ms=4.5, ls=style, zorder=3)
    return mean


def ceiling(axes: Axes, summary: Summary, theme: Theme) -> None:
    if summary.ceiling is None:
        return
    accuracy, labels = summary.ceiling
    axes.axhline(accuracy, color=theme.muted, lw=1, ls=DOTTED)
    axes.annotate(
        f"all {labels:,} labels: {100 * accuracy:.1f}%",
        (float(summary.labels[0]), accuracy),
        xytext=(0, 4),
        textcoords="offset points",
        color=theme.muted,
        fontsize=8.5,
    )


def heading(axes: Axes, text: str, below: str, theme: Theme) -> None:
    axes.set_title(text, loc="left", color=theme.ink, weight="bold", fontsize=11.5, pad=20 if below else 8)
    axes.text(0, 1.015, below, transform=axes.transAxes, color=theme.muted, fontsize=9, va="bottom")


def name_rows(axes: Axes, names: Sequence[str], theme: Theme) -> None:
    axes.set_yticks(range(len(names)), names, color=theme.ink, fontsize=9.5)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.7, len(names) - 0.3)


def spoken(strategy: str) -> str:
    return strategy.replace("_", " ")


def of_seeds(summary: Summary) -> str:
    return f"{len(summary.seeds)} seed{'s' if len(summary.seeds) > 1 else ''}"
