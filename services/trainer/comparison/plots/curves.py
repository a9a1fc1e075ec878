"""Accuracy by labels, and what each strategy gains over random on the way."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from services.trainer.comparison.plots.look import MARKERS, ceiling, curve, heading, of_seeds, spoken, verdict
from services.trainer.comparison.statistics import t_quantile
from services.trainer.comparison.summary import Found, Summary
from services.trainer.report.plots.canvas import Theme, axes_of, dress, figure, headline, label_ticks, png

# More lines than this cannot be told apart in one picture.
_MOST_LINES = 6


def learning_curves(summary: Summary, theme: Theme) -> bytes:
    """PNG: mean test accuracy by labels with 95% bands, each line named at its end."""
    found = summary.found
    if len(found) - 1 > _MOST_LINES:
        return _curves_apart(summary, theme)
    drawn = figure(theme, 8.6, 5.0)
    axes = axes_of(drawn, theme)
    looks = [(theme.muted, "."), *zip(theme.lines, MARKERS, strict=True)]
    ends = []
    for one, (colour, marker) in zip(found, looks, strict=False):
        mean = curve(axes, summary.labels, one, colour, marker, one is summary.baseline)
        ends.append((float(mean[-1]), one.strategy, colour))
    ceiling(axes, summary, theme)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.margins(x=0.02, y=0.06)
    label_ticks(axes, summary.labels.tolist())
    axes.set_xlabel("labels")
    axes.set_ylabel("accuracy on the test samples")
    told = f"mean of {of_seeds(summary)}, 95% interval shaded"
    heading(axes, f"{summary.title}: accuracy by labels", told, theme)
    _name_ends(axes, float(summary.labels[-1]), ends)
    return png(drawn)


def gains(summary: Summary, theme: Theme) -> bytes:
    """PNG: paired difference to random at each budget, one small picture a strategy on one scale."""
    drawn, panels = _panels(summary.found[1:], theme)
    for axes, one in panels:
        d = 100 * (one.accuracy - summary.baseline.accuracy)  # (n, L)
        mean, colour = d.mean(axis=0), verdict(one, theme)
        if len(d) > 1:
            half = t_quantile(len(d)) * d.std(axis=0, ddof=1) / np.sqrt(len(d))
            axes.fill_between(summary.labels, mean - half, mean + half, color=colour, alpha=0.18, lw=0)
        axes.axhline(0, color=theme.muted, lw=1.2, zorder=2)
        axes.plot(summary.labels, mean, color=colour, lw=2, zorder=3)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:+g}" if v else "0"))
        axes.set_title(spoken(one.strategy), loc="left", color=colour, fontsize=10, weight="bold")
    headline(drawn, f"{summary.title}: gain over random, paired over {of_seeds(summary)}, 95% interval", theme)
    _name_axes(drawn, "points of accuracy", theme)
    return png(drawn)


def _curves_apart(summary: Summary, theme: Theme) -> bytes:
    """One small picture a strategy, each with random behind it."""
    drawn, panels = _panels(summary.found[1:], theme)
    for axes, one in panels:
        colour = verdict(one, theme)
        curve(axes, summary.labels, summary.baseline, theme.muted, "", is_random=True)
        curve(axes, summary.labels, one, colour, "", is_random=False)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.set_title(spoken(one.strategy), loc="left", color=colour, fontsize=10, weight="bold")
    headline(drawn, f"{summary.title}: against random (dashed), mean of {of_seeds(summary)}", theme)
    _name_axes(drawn, "accuracy on the test samples", theme)
    return png(drawn)


def _panels(found: Sequence[Found], theme: Theme) -> tuple[Figure, list[tuple[Axes, Found]]]:
    """A small picture for each on one scale; numbers below the lowest of each column."""
    count = len(found)
    columns = 4 if count > 6 else 3 if count > 4 else min(count, 4)
    rows = -(-count // columns)
    drawn = figure(theme, max(2.75 * columns, 5.5), 0.95 + 2.2 * rows)
    grid = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(grid.flat):
        axes.set_visible(place < count)
        axes.tick_params(labelbottom=place + columns >= count)
        dress(axes, theme)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return drawn, list(zip(grid.flat, found, strict=False))


def _name_axes(drawn: Figure, unit: str, theme: Theme) -> None:
    drawn.supxlabel("labels", fontsize=9, color=theme.muted)
    drawn.supylabel(unit, fontsize=9, color=theme.muted)


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
