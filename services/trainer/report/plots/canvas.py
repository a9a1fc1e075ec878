"""What all pictures are drawn on. Figures are objects of their own: pyplot's global state is not safe in threads."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Inches. Two pictures share a row on a wide screen; on a phone each is as wide as the screen and must stay readable.
WIDTH, HEIGHT = 5.0, 3.9
_DPI = 150
_TEXT = 9.0
_LONGEST_NAME = 18


@dataclass(frozen=True)
class Theme:
    """Colours of the page that a picture lies on."""

    ink: str
    muted: str
    grid: str
    paper: str
    blue: str
    amber: str
    green: str
    violet: str
    red: str
    # From nothing to everything, for matrices.
    ramp: tuple[str, ...]
    # For classes and phases; the last is for what is told together.
    series: tuple[str, ...]
    # For curves that are compared, after Okabe and Ito: the colour-blind can tell them apart.
    lines: tuple[str, ...]

    @property
    def heat(self) -> Colormap:
        return LinearSegmentedColormap.from_list("heat", list(self.ramp))

    def of(self, place: int) -> str:
        return self.series[place % len(self.series)]


LIGHT = Theme(
    ink="#1f2933",
    muted="#5b6875",
    grid="#e3e8ee",
    paper="#ffffff",
    blue="#2563eb",
    amber="#d97706",
    green="#059669",
    violet="#7c3aed",
    red="#dc2626",
    ramp=("#f7f9fb", "#bfd3fb", "#5b8def", "#1e4fc2", "#12306f"),
    series=(
        "#2563eb", "#f59e0b", "#059669", "#db2777", "#7c3aed", "#0891b2", "#84cc16", "#b45309", "#f472b6", "#94a3b8"
    ),
    lines=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)  # fmt: skip
DARK = Theme(
    ink="#e6ebf0",
    muted="#9aa7b4",
    grid="#2b3540",
    paper="#1a2129",
    blue="#7cabff",
    amber="#f5b454",
    green="#5ad1a4",
    violet="#b79bff",
    red="#ff8f8f",
    ramp=("#1f2833", "#27457f", "#3f74d8", "#86b1ff", "#dbe8ff"),
    series=(
        "#6f9ff5", "#e9ab4b", "#4cc096", "#e06aa3", "#a98bf2", "#4bb8cf", "#a3c957", "#c58a4e", "#eea6cf", "#72808f"
    ),
    lines=("#5aa9e6", "#ff8f4d", "#37c79b", "#e6a3c8", "#f2bb45", "#a5dbf7"),
)  # fmt: skip


def figure(theme: Theme, width: float = WIDTH, height: float = HEIGHT) -> Figure:
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor=theme.paper)


def axes_of(drawn: Figure, theme: Theme, grid: bool = True) -> Axes:
    axes = drawn.subplots()
    dress(axes, theme, grid)
    return axes


def dress(axes: Axes, theme: Theme, grid: bool = True) -> None:
    axes.set_facecolor(theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.grid)
    axes.tick_params(which="both", colors=theme.muted, length=0, labelsize=_TEXT - 0.5)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(theme.muted)
        label.set_fontsize(_TEXT)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(color=theme.grid, lw=0.8)
    else:
        axes.spines[:].set_visible(False)


def title(axes: Axes, text: str, theme: Theme) -> None:
    axes.set_title(text, loc="left", color=theme.ink, weight="bold", fontsize=_TEXT + 1)


def headline(drawn: Figure, text: str, theme: Theme) -> None:
    """Above all parts of a picture that has several."""
    drawn.suptitle(text, x=0.01, ha="left", color=theme.ink, weight="bold", fontsize=_TEXT + 2)


def legend(axes: Axes, theme: Theme, **place: Any) -> None:
    axes.legend(frameon=False, fontsize=_TEXT - 0.5, labelcolor=theme.ink, **place)


def line(axes: Axes, x: Sequence[float], y: Sequence[float | None], colour: str, label: str, marker: str = "o") -> None:
    """Unknown values are left out."""
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    axes.plot(
        [a for a, _ in known], [b for _, b in known], color=colour, marker=marker, lw=2, ms=4.5, label=label, zorder=3
    )


def label_ticks(axes: Axes, labels: Sequence[int]) -> None:
    """Numbers of labels where there are few rounds, round numbers where there are many."""
    if 1 < len(labels) <= 8:
        axes.set_xticks(labels)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))


def as_label(name: str) -> str:
    """A class's name as matplotlib can take it: short, no formula, and not hidden from legends by an underscore."""
    shown = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return f"{' ' if shown.startswith('_') else ''}{shown}".replace("$", r"\$")


def png(drawn: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(drawn)
    drawn.savefig(buffer, format="png")
    return buffer.getvalue()
