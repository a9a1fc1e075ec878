"""A comparison's pictures. Colours are Okabe and Ito's, which the colour-blind can tell apart; markers differ too."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from services.trainer.comparison.statistics import t_quantile
from services.trainer.comparison.summary import Found, Summary

INK, MUTED, GRID, PAPER = "#1f2933", "#5b6875", "#e3e8ee", "#ffffff"
BASELINE_INK = "#4b5563"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
_BETTER, _WORSE, _OPEN = "#0072b2", "#d55e00", "#6b7785"
DPI = 150
# More lines than this cannot be told apart in one picture.
_MOST_LINES = 6


def learning_curves(summary: Summary) -> bytes:
    """PNG: mean test accuracy by labels with 95% bands, each line named at its end."""
    found = summary.found
    if len(found) - 1 > _MOST_LINES:
        return _curves_apart(summary)
    figure = Figure(figsize=(8.6, 5.0), dpi=DPI, layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    dress(axes)
    ends = []
    for place, one in enumerate(found):
        colour, marker = _look(place)
        mean = _curve(axes, summary.labels, one, colour, marker)
        ends.append((float(mean[-1]), one.strategy, colour))
    _ceiling(axes, summary)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.margins(x=0.02, y=0.06)
    axes.set_xlabel("labels")
    axes.set_ylabel("accuracy on the test samples")
    title(axes, f"{summary.title}: accuracy by labels", f"mean of {_seeds(summary)}, 95% interval shaded")
    _name_ends(axes, float(summary.labels[-1]), ends)
    return png(figure)


def _curves_apart(summary: Summary) -> bytes:
    """One small picture a strategy, each with random behind it."""
    figure, panels = _panels(summary.found[1:])
    for axes, one in panels:
        _curve(axes, summary.labels, summary.baseline, BASELINE_INK, "")
        _curve(axes, summary.labels, one, _verdict(one), "")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.set_title(spoken(one.strategy), loc="left", color=_verdict(one), fontsize=10, weight="bold")
    _name_panels(
        figure, f"{summary.title}: against random (grey), mean of {_seeds(summary)}", "accuracy on the test samples"
    )
    return png(figure)


def gains(summary: Summary) -> bytes:
    """PNG: paired difference to random at each budget, one small picture a strategy on one scale."""
    figure, panels = _panels(summary.found[1:])
    for axes, one in panels:
        d = 100 * (one.accuracy - summary.baseline.accuracy)  # (n, L)
        mean, colour = d.mean(axis=0), _verdict(one)
        if len(d) > 1:
            half = t_quantile(len(d)) * d.std(axis=0, ddof=1) / np.sqrt(len(d))
            axes.fill_between(summary.labels, mean - half, mean + half, color=colour, alpha=0.18, lw=0)
        axes.axhline(0, color=BASELINE_INK, lw=1.2, zorder=2)
        axes.plot(summary.labels, mean, color=colour, lw=2, zorder=3)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+g}" if v else "0"))
        axes.set_title(spoken(one.strategy), loc="left", color=colour, fontsize=10, weight="bold")
    _name_panels(
        figure, f"{summary.title}: gain over random, paired over {_seeds(summary)}, 95% interval", "points of accuracy"
    )
    return png(figure)


def aubc_gains(summary: Summary) -> bytes:
    """PNG: paired difference of AUBC to random with its 95% interval, the best on top."""
    others = sorted(summary.found[1:], key=lambda f: f.aubc_gain.mean)
    figure = Figure(figsize=(8.6, 1.5 + 0.42 * len(others)), dpi=DPI, layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    dress(axes)
    axes.axvline(0, color=BASELINE_INK, lw=1.2, zorder=1)
    right = max((_reach(f) for f in others), default=0.0)
    for row, one in enumerate(others):
        gain, colour = one.aubc_gain, _verdict(one)
        if np.isfinite(gain.low):
            axes.plot([100 * gain.low, 100 * gain.high], [row, row], color=colour, lw=2.4, solid_capstyle="round")
        axes.plot(100 * gain.mean, row, "o", color=colour, ms=8, zorder=3)
        axes.text(right, row, f"   {_points(gain.mean)} {_interval(one)}", va="center", color=colour, fontsize=9)
    axes.set_yticks(range(len(others)), [spoken(f.strategy) for f in others], color=INK, fontsize=9.5)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.7, len(others) - 0.3)
    axes.set_xlabel("AUBC less random's, in points of accuracy")
    title(axes, f"{summary.title}: area under the budget curve", f"paired over {_seeds(summary)}, 95% t interval")
    return png(figure)


def penalties(summary: Summary) -> bytes:
    """PNG: how often the strategy of a row beats that of a column, with how often each is beaten below."""
    names = [spoken(f.strategy) for f in summary.found]
    count = len(names)
    beaten = summary.penalties.sum(axis=0) / max(count - 1, 1)
    side = 0.56 * count
    figure = Figure(figsize=(max(side + 1.7, 5.4), side + 2.2), dpi=DPI, layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    table = np.vstack([summary.penalties, beaten])
    axes.imshow(table, cmap="Blues", vmin=0, vmax=1)
    axes.axhline(count - 0.5, color=PAPER, lw=6)
    for row, column in np.ndindex(table.shape):
        value = table[row, column]
        if row == column and row < count:
            axes.text(column, row, "·", ha="center", va="center", color=MUTED)
            continue
        colour = PAPER if value > 0.55 else INK
        text = f"{value:.2f}".lstrip("0") if 0 < value < 1 else f"{value:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8.5)
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count + 1), [*names, "beaten, mean"])
    axes.tick_params(colors=INK, length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    title = "Share of budgets at which the row beats the column"
    figure.suptitle(title, x=0.02, ha="left", color=INK, fontsize=10.5, weight="bold")
    return png(figure)


def query_cost(summary: Summary) -> bytes:
    """PNG: CPU seconds of one query on a logarithmic scale, the slowest one as a thin line, peak memory beside."""
    found = sorted(summary.found, key=lambda f: -f.query_cpu_seconds)
    figure = Figure(figsize=(8.6, 1.4 + 0.4 * len(found)), dpi=DPI, layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    dress(axes)
    smallest = 1e-3
    for row, one in enumerate(found):
        mean, slowest = max(one.query_cpu_seconds, smallest), max(one.slowest_query, smallest)
        axes.plot([mean, slowest], [row, row], color=COLOURS[5], lw=1.6, zorder=2)
        axes.plot(slowest, row, "|", color=COLOURS[5], ms=9, mew=1.6)
        axes.plot(mean, row, "o", color=COLOURS[0], ms=7, zorder=3)
        memory = "" if one.query_peak_mb is None else f", +{one.query_peak_mb:,.0f} MB"
        told = f"  {_seconds(one.query_cpu_seconds)}{memory}"
        axes.annotate(
            told, (slowest, row), xytext=(5, 0), textcoords="offset points", va="center", color=INK, fontsize=8.5
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _seconds(v)))
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(found)), [spoken(f.strategy) for f in found], color=INK, fontsize=9.5)
    axes.set_ylim(-0.7, len(found) - 0.3)
    axes.set_xlim(right=axes.get_xlim()[1] * 6)
    axes.set_xlabel(
        "CPU seconds of one query: mean of the rounds (dot), slowest (bar), largest memory above the pool's"
    )
    title(axes, f"{summary.title}: what a query costs", "")
    return png(figure)


# ---- parts -------------------------------------------------------------------------------------------


def _panels(found: Sequence[Found]) -> tuple[Figure, list[tuple[Axes, Found]]]:
    """A small picture for each on one scale; numbers below the lowest of each column."""
    count = len(found)
    columns = 4 if count > 6 else 3 if count > 4 else min(count, 4)
    rows = -(-count // columns)
    size = (max(2.75 * columns, 5.5), 0.95 + 2.2 * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained", facecolor=PAPER)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < count)
        axes.tick_params(labelbottom=place + columns >= count)
        dress(axes)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure, list(zip(grid.flat, found, strict=False))


def _name_panels(figure: Figure, title: str, unit: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, weight="bold")
    figure.supxlabel("labels", fontsize=9, color=MUTED)
    figure.supylabel(unit, fontsize=9, color=MUTED)


def _curve(axes: Axes, labels: np.ndarray, one: Found, colour: str, marker: str) -> np.ndarray:
    mean, low, high = one.band()
    axes.fill_between(labels, low, high, color=colour, alpha=0.13, lw=0)
    style = (0, (4, 2)) if colour == BASELINE_INK and marker else "-"
    axes.plot(labels, mean, color=colour, marker=marker, lw=1.8, ms=4.5, ls=style, zorder=3)
    return mean


def _look(place: int) -> tuple[str, str]:
    return (BASELINE_INK, ".") if place == 0 else (COLOURS[place - 1], MARKERS[place - 1])


def _ceiling(axes: Axes, summary: Summary) -> None:
    if summary.ceiling is None:
        return
    accuracy, labels = summary.ceiling
    axes.axhline(accuracy, color=MUTED, lw=1, ls=(0, (1, 2)))
    axes.annotate(
        f"all {labels:,} labels: {100 * accuracy:.1f}%",
        (float(summary.labels[0]), accuracy),
        xytext=(0, 4),
        textcoords="offset points",
        color=MUTED,
        fontsize=8.5,
    )


def _name_ends(axes: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names beside the last points, moved apart where they would cover each other."""
    low, high = axes.get_ylim()
    apart = 0.05 * (high - low)
    ordered = sorted(ends)
    places = _apart([y for y, _, _ in ordered], apart, high)
    for (y, name, colour), place in zip(ordered, places, strict=True):
        axes.annotate(
            f"{spoken(name)}  {100 * y:.1f}%",
            (x, y),
            xytext=(1.025, (place - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=9.5,
            weight="bold",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)},
        )


def _apart(wanted: Sequence[float], distance: float, highest: float) -> list[float]:
    """Ascending places at least `distance` from each other, near the wanted ones, none above `highest`."""
    places: list[float] = []
    for y in wanted:
        places.append(max(y, places[-1] + distance) if places else y)
    # As a whole moved down by what pushing apart has moved them up in the mean.
    shift = float(np.mean([p - w for p, w in zip(places, wanted, strict=True)]))
    shift = max(shift, places[-1] - highest)
    return [p - shift for p in places]


def _verdict(one: Found) -> str:
    """Blue where the interval is above zero, vermilion below, grey where it is open."""
    gain = one.aubc_gain
    if not gain.resolved:
        return _OPEN
    return _BETTER if gain.low > 0 else _WORSE


def _reach(one: Found) -> float:
    gain = one.aubc_gain
    return 100 * max(0.0, gain.high if np.isfinite(gain.high) else gain.mean)


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _interval(one: Found) -> str:
    gain = one.aubc_gain
    return f"[{_points(gain.low)}, {_points(gain.high)}]" if np.isfinite(gain.low) else ""


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s" if value >= 1 else f"{1000 * value:.0f} ms"


def _seeds(summary: Summary) -> str:
    return f"{len(summary.seeds)} seed{'s' if len(summary.seeds) > 1 else ''}"


def spoken(strategy: str) -> str:
    return strategy.replace("_", " ")


def title(axes: Axes, text: str, below: str) -> None:
    axes.set_title(text, loc="left", color=INK, weight="bold", fontsize=11.5, pad=20 if below else 8)
    axes.text(0, 1.015, below, transform=axes.transAxes, color=MUTED, fontsize=9, va="bottom")


def dress(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0, labelsize=8.5, which="both")
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    axes.set_axisbelow(True)
    axes.grid(color=GRID, lw=0.8)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
