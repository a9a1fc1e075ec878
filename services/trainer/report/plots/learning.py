"""Accuracy against labels: measured on test samples, and forecast from the random slice."""

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from services.trainer.report.content import CampaignReport, ForecastCurve
from services.trainer.report.plots.canvas import Theme, axes_of, figure, label_ticks, legend, line, png, title


def learning_curve(report: CampaignReport, theme: Theme) -> bytes:
    """PNG: accuracy and macro F1 on the test samples; the random slice with its fitted curve where there is one."""
    drawn = figure(theme)
    axes = axes_of(drawn, theme)
    rows = [r for r in report.rows if r.test("accuracy") is not None]
    labels = [r.labels for r in rows]
    line(axes, labels, [r.test("accuracy") for r in rows], theme.blue, "test accuracy")
    line(axes, labels, [r.test("macro_f1") for r in rows], theme.amber, "test macro F1", "s")
    curve = report.outlook.curve if report.outlook else None
    if curve is not None:
        _forecast(axes, curve, theme)
    if rows:
        last = rows[-1].test("accuracy") or 0.0
        axes.annotate(
            f"{100 * last:.1f}%",
            (labels[-1], last),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
            color=theme.blue,
            weight="bold",
            fontsize=9,
        )
        legend(axes, theme, loc="lower right")
    title(axes, "Accuracy by labels", theme)
    axes.set_xlabel("labels")
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    if curve is None:
        label_ticks(axes, labels)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.margins(x=0.06, y=0.14)
    return png(drawn)


def _forecast(axes: Axes, curve: ForecastCurve, theme: Theme) -> None:
    axes.fill_between(curve.labels, curve.low, curve.high, color=theme.violet, alpha=0.16, lw=0, label="95% interval")
    axes.plot(curve.labels, curve.fit, color=theme.violet, lw=1.4, ls="--", label="forecast on the random slice")
    labels, accuracy = zip(*curve.measured, strict=True)
    axes.scatter(labels, accuracy, color=theme.violet, s=16, zorder=3, marker="D")
