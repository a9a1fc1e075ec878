"""The report's pictures. Figures are objects of their own: pyplot's global state is not safe in threads."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from services.trainer.report.content import CampaignReport, RoundRow, phases

INK, MUTED, GRID, PAPER = "#1f2933", "#6b7785", "#e3e8ee", "#ffffff"
BLUE, AMBER, GREEN = "#2563eb", "#d97706", "#059669"
_PHASE_COLOURS = ("#2563eb", "#60a5fa", "#059669", "#6ee7b7", "#d97706", "#fcd34d", "#7c3aed", "#c4b5fd", "#9aa5b1")
_DPI = 150


def learning_curve(report: CampaignReport) -> bytes:
    """PNG: accuracy and macro F1 on the test samples against labels bought."""
    figure, axes = _figure(7.6, 4.4)
    rows = [r for r in report.rows if r.test("accuracy") is not None]
    labels = [r.labels for r in rows]
    _line(axes, labels, [r.test("accuracy") for r in rows], BLUE, "accuracy", "o")
    _line(axes, labels, [r.test("macro_f1") for r in rows], AMBER, "macro F1", "s")
    if rows:
        last = rows[-1].test("accuracy") or 0.0
        axes.annotate(
            f"{100 * last:.1f}%",
            (labels[-1], last),
            textcoords="offset points",
            xytext=(0, 9),
            ha="center",
            color=BLUE,
            weight="bold",
        )
        axes.legend(loc="lower right", frameon=False)
    axes.set_title(f"{report.name}: what the labels bought", loc="left", color=INK, weight="bold", fontsize=11)
    axes.set_xlabel("labels")
    axes.set_ylabel("on the test samples")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    _label_ticks(axes, labels)
    axes.margins(x=0.06, y=0.18)
    return _png(figure)


def confusion_matrix(report: CampaignReport) -> bytes:
    """PNG: share of each true class (row) that was predicted as each class (column), last round."""
    counts = np.asarray(report.confusion, dtype=float).reshape(len(report.confusion), -1)  # (C, C)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, max(4.6, 2.4 + 0.52 * len(counts)))
    figure, axes = _figure(side, side * 0.92, grid=False)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(counts) <= 20:
        _write_shares(axes, shares)
    ticks = range(len(counts)) if len(counts) <= 60 else []
    names = [report.classes[i] for i in ticks]
    axes.set_xticks(list(ticks), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(list(ticks), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title("Test samples, last round: share of each true class (%)", loc="left", color=INK, fontsize=10)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, format=PercentFormatter(xmax=1, decimals=0))
    bar.outline.set_visible(False)
    return _png(figure)


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        colour = PAPER if share > 0.55 else INK
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)


def calibration_and_time(report: CampaignReport) -> bytes:
    """PNG: calibration error by labels, and where each round's seconds went."""
    figure = Figure(figsize=(9.6, 3.8), dpi=_DPI, layout="constrained", facecolor=PAPER)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    for axes in (left, right):
        _dress(axes, grid=True)
    rows = [r for r in report.rows if r.test("ece") is not None]
    _line(left, [r.labels for r in rows], [r.test("ece") for r in rows], GREEN, "ECE", "o")
    left.set_title("Calibration error (ECE, lower is better)", loc="left", color=INK, fontsize=10)
    left.set_xlabel("labels")
    _label_ticks(left, [r.labels for r in rows])
    left.margins(y=0.1)
    left.set_ylim(bottom=0)
    _stacked_seconds(right, report.rows)
    return _png(figure)


def _stacked_seconds(axes: Axes, rows: Sequence[RoundRow]) -> None:
    rounds = [r.round_no for r in rows]
    below = np.zeros(len(rows))
    for i, phase in enumerate(phases(rows)):
        seconds = np.array([r.seconds.get(phase, 0.0) for r in rows])
        colour = _PHASE_COLOURS[i % len(_PHASE_COLOURS)]
        axes.bar(rounds, seconds, bottom=below, color=colour, width=0.62, label=phase)
        below += seconds
    axes.set_title("Seconds by phase", loc="left", color=INK, fontsize=10)
    axes.set_xlabel("round")
    axes.set_xticks(rounds if len(rounds) <= 20 else rounds[:: len(rounds) // 10])
    axes.grid(axis="x", visible=False)
    if len(rows):
        handles, names = axes.get_legend_handles_labels()
        # From the top of the stack down, as the eye meets the colours.
        axes.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _label_ticks(axes: Axes, labels: Sequence[int]) -> None:
    if len(labels) <= 12:
        axes.set_xticks(labels)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _line(axes: Axes, x: Sequence[float], y: Sequence[float | None], colour: str, label: str, marker: str) -> None:
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    axes.plot(
        [a for a, _ in known], [b for _, b in known], color=colour, marker=marker, lw=2, ms=5, label=label, zorder=3
    )


def _figure(width: float, height: float, grid: bool = True) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    _dress(axes, grid)
    return figure, axes


def _dress(axes: Axes, grid: bool) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0, labelsize=8.5)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(color=GRID, lw=0.8)
    else:
        axes.spines[:].set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
