"""Can the probabilities be believed? The reliability diagram of the last round, and ECE round by round."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from services.trainer.report.content import Bins, CampaignReport
from services.trainer.report.plots.canvas import (
    Theme,
    axes_of,
    dress,
    figure,
    label_ticks,
    legend,
    line,
    png,
    title,
)


def reliability_diagram(bins: Bins, theme: Theme) -> bytes:
    """PNG: accuracy against confidence by bin, and below how many samples each bin holds."""
    drawn = figure(theme, height=4.6)
    above, below = drawn.subplots(2, 1, height_ratios=(3, 1.15), sharex=True)
    for axes in (above, below):
        dress(axes, theme)
        axes.grid(axis="x", visible=False)
    _accuracies(above, bins, theme)
    _counts(below, bins, theme)
    title(above, f"Reliability: ECE {bins.ece:.3f}, {sum(bins.counts):,} samples", theme)
    return png(drawn)


def _accuracies(axes: Axes, bins: Bins, theme: Theme) -> None:
    filled = np.array(bins.counts) > 0
    accuracy, confidence = np.array(bins.accuracy)[filled], np.array(bins.confidence)[filled]
    width = 1 / len(bins.counts)
    left = (np.arange(len(bins.counts)) * width)[filled]
    axes.plot([0, 1], [0, 1], color=theme.muted, lw=1, ls="--", label="perfect")
    axes.bar(left, accuracy, width * 0.92, align="edge", color=theme.blue, alpha=0.85, label="accuracy", zorder=2)
    # From what the model claimed to what was true.
    axes.vlines(left + 0.46 * width, accuracy, confidence, color=theme.red, lw=2.4, label="gap", zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    legend(axes, theme, loc="upper left")


def _counts(axes: Axes, bins: Bins, theme: Theme) -> None:
    width = 1 / len(bins.counts)
    left = np.arange(len(bins.counts)) * width
    axes.bar(left, bins.counts, width * 0.92, align="edge", color=theme.muted, zorder=2)
    for x, count in zip(left, bins.counts, strict=True):
        if count:
            axes.annotate(
                f"{count}",
                (x + 0.46 * width, count),
                textcoords="offset points",
                xytext=(0, 1.5),
                ha="center",
                fontsize=6.5,
                color=theme.muted,
            )
    axes.set(xlabel="confidence of the prediction", ylabel="samples")
    axes.margins(y=0.28)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def calibration_by_labels(report: CampaignReport, theme: Theme) -> bytes:
    """PNG: expected calibration error on the test samples against labels."""
    drawn = figure(theme, height=4.6)
    axes = axes_of(drawn, theme)
    rows = [r for r in report.rows if r.test("ece") is not None]
    labels = [r.labels for r in rows]
    line(axes, labels, [r.test("ece") for r in rows], theme.green, "ECE")
    title(axes, "ECE by labels (lower is better)", theme)
    axes.set_xlabel("labels")
    label_ticks(axes, labels)
    axes.margins(x=0.06, y=0.14)
    axes.set_ylim(bottom=0)
    return png(drawn)
