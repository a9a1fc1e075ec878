"""Where each round's seconds went, and how fast the pool was scored."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from services.trainer.report.content import CampaignReport, phases
from services.trainer.report.plots.canvas import Theme, axes_of, figure, legend, png, title


def seconds_by_phase(report: CampaignReport, theme: Theme) -> bytes:
    """PNG: seconds of each phase, stacked, by round."""
    drawn = figure(theme)
    axes = axes_of(drawn, theme)
    rounds = [r.round_no for r in report.rows]
    below = np.zeros(len(rounds))
    names = phases(report.rows)
    for i, phase in enumerate(names):
        seconds = np.array([r.seconds.get(phase, 0.0) for r in report.rows])
        axes.bar(rounds, seconds, bottom=below, color=theme.of(i), width=0.7, label=phase)
        below += seconds
    title(axes, "Seconds by phase", theme)
    _by_round(axes)
    # Below the axes: beside them it would take a third of a narrow picture.
    legend(axes, theme, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    return png(drawn)


def images_per_second(report: CampaignReport, theme: Theme) -> bytes:
    """PNG: images of the pool scored a second, by round."""
    drawn = figure(theme)
    axes = axes_of(drawn, theme)
    known = [r for r in report.rows if r.images_scored_per_second]
    rates = [r.images_scored_per_second or 0.0 for r in known]
    axes.bar([r.round_no for r in known], rates, color=theme.blue, width=0.7)
    title(axes, "Images scored a second", theme)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _by_round(axes)
    return png(drawn)


def _by_round(axes: Axes) -> None:
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))
    axes.grid(axis="x", visible=False)
