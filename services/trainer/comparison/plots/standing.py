"""Who is better than random over the whole budget, and who beats whom."""

import numpy as np

from services.trainer.comparison.plots.look import heading, name_rows, of_seeds, spoken, verdict
from services.trainer.comparison.summary import Found, Summary
from services.trainer.report.plots.canvas import Theme, axes_of, figure, headline, png


def aubc_gains(summary: Summary, theme: Theme) -> bytes:
    """PNG: paired difference of AUBC to random with its 95% interval, the best on top."""
    others = sorted(summary.found[1:], key=lambda f: f.aubc_gain.mean)
    drawn = figure(theme, 8.6, 1.5 + 0.42 * len(others))
    axes = axes_of(drawn, theme)
    axes.axvline(0, color=theme.muted, lw=1.2, zorder=1)
    right = max((_reach(f) for f in others), default=0.0)
    for row, one in enumerate(others):
        gain, colour = one.aubc_gain, verdict(one, theme)
        if np.isfinite(gain.low):
            axes.plot([100 * gain.low, 100 * gain.high], [row, row], color=colour, lw=2.4, solid_capstyle="round")
        axes.plot(100 * gain.mean, row, "o", color=colour, ms=8, zorder=3)
        axes.text(right, row, f"   {_points(gain.mean)} {_interval(one)}", va="center", color=colour, fontsize=9)
    name_rows(axes, [spoken(f.strategy) for f in others], theme)
    axes.set_xlabel("AUBC less random's, in points of accuracy")
    told = f"paired over {of_seeds(summary)}, 95% t interval"
    heading(axes, f"{summary.title}: area under the budget curve", told, theme)
    return png(drawn)


def penalties(summary: Summary, theme: Theme) -> bytes:
    """PNG: how often the strategy of a row beats that of a column, with how often each is beaten below."""
    names = [spoken(f.strategy) for f in summary.found]
    count = len(names)
    beaten = summary.penalties.sum(axis=0) / max(count - 1, 1)
    side = 0.56 * count
    drawn = figure(theme, max(side + 1.7, 5.4), side + 2.2)
    axes = axes_of(drawn, theme, grid=False)
    table = np.vstack([summary.penalties, beaten])
    axes.imshow(table, cmap=theme.heat, vmin=0, vmax=1)
    axes.axhline(count - 0.5, color=theme.paper, lw=6)
    for row, column in np.ndindex(table.shape):
        value = table[row, column]
        if row == column and row < count:
            axes.text(column, row, "·", ha="center", va="center", color=theme.muted)
            continue
        colour = theme.paper if value > 0.5 else theme.ink
        text = f"{value:.2f}".lstrip("0") if 0 < value < 1 else f"{value:.0f}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8.5)
    axes.set_xticks(range(count), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count + 1), [*names, "beaten, mean"])
    axes.tick_params(colors=theme.ink, labelsize=9)
    headline(drawn, "Share of budgets at which the row beats the column", theme)
    return png(drawn)


def _reach(one: Found) -> float:
    gain = one.aubc_gain
    return 100 * max(0.0, gain.high if np.isfinite(gain.high) else gain.mean)


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _interval(one: Found) -> str:
    gain = one.aubc_gain
    return f"[{_points(gain.low)}, {_points(gain.high)}]" if np.isfinite(gain.low) else ""
