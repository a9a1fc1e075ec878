"""What a query costs: CPU seconds and memory, strategy by strategy."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from services.trainer.comparison.plots.look import heading, name_rows, spoken
from services.trainer.comparison.summary import Found, Summary
from services.trainer.report.plots.canvas import Theme, dress, figure, headline, png

_SMALLEST_S = 1e-3


def query_cost(summary: Summary, theme: Theme) -> bytes:
    """PNG: CPU seconds of one query on a logarithmic scale, and beside them the memory that it took at most."""
    found = sorted(summary.found, key=lambda f: -f.query_cpu_seconds)
    drawn = figure(theme, 8.6, 1.8 + 0.4 * len(found))
    seconds, gap, memory = drawn.subplots(1, 3, sharey=True, width_ratios=(1.5, 0.04, 1))
    gap.set_axis_off()
    for axes in (seconds, memory):
        dress(axes, theme)
    _seconds_by_strategy(seconds, found, theme)
    _memory_by_strategy(memory, found, theme)
    name_rows(seconds, [spoken(f.strategy) for f in found], theme)
    headline(drawn, f"{summary.title}: what a query costs", theme)
    return png(drawn)


def _seconds_by_strategy(axes: Axes, found: Sequence[Found], theme: Theme) -> None:
    for row, one in enumerate(found):
        mean, slowest = max(one.query_cpu_seconds, _SMALLEST_S), max(one.slowest_query, _SMALLEST_S)
        axes.plot([mean, slowest], [row, row], color=theme.lines[5], lw=1.6, zorder=2)
        axes.plot(slowest, row, "|", color=theme.lines[5], ms=9, mew=1.6)
        axes.plot(mean, row, "o", color=theme.lines[0], ms=7, zorder=3)
        _tell(axes, slowest, row, _seconds(one.query_cpu_seconds), theme)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _seconds(v)))
    axes.set_xlim(right=axes.get_xlim()[1] * 4)
    axes.set_xlabel("CPU seconds: mean of the rounds (dot), slowest (bar)")
    heading(axes, "time", "", theme)


def _memory_by_strategy(axes: Axes, found: Sequence[Found], theme: Theme) -> None:
    """Empty where the system does not tell."""
    known = [(row, one.query_peak_mb) for row, one in enumerate(found) if one.query_peak_mb is not None]
    axes.barh([row for row, _ in known], [mb for _, mb in known], height=0.5, color=theme.lines[0])
    for row, mb in known:
        _tell(axes, mb, row, f"{mb:,.0f} MB", theme)
    largest = max((mb for _, mb in known), default=0.0)
    axes.set_xlim(0, 1.45 * max(largest, 1.0))
    axes.grid(axis="y", visible=False)
    axes.tick_params(labelleft=False)
    axes.set_xlabel("MB above what the process held before" if known else "memory: not told by this system")
    heading(axes, "largest memory", "", theme)


def _tell(axes: Axes, x: float, row: int, text: str, theme: Theme) -> None:
    axes.annotate(text, (x, row), xytext=(5, 0), textcoords="offset points", va="center", color=theme.ink, fontsize=8.5)


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s" if value >= 1 else f"{1000 * value:.0f} ms"
