"""A study's overview: the curves of all arms on one scale."""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from services.trainer.comparison.plots import BASELINE_INK, COLOURS, DPI, INK, MARKERS, MUTED, PAPER, dress, png, spoken
from services.trainer.comparison.summary import Summary


def overview(summaries: Sequence[Summary]) -> bytes:
    """PNG: a panel for each arm with every strategy's mean curve; dotted, what all labels of the pool give."""
    figure = Figure(figsize=(1.2 + 3.5 * len(summaries), 4.3), dpi=DPI, layout="constrained", facecolor=PAPER)
    panels = figure.subplots(1, len(summaries), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(f.strategy for summary in summaries for f in summary.found[1:]))
    looks = {name: (COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]) for at, name in enumerate(names)}
    for axes, summary in zip(panels, summaries, strict=True):
        dress(axes)
        for one in summary.found:
            colour, marker = looks.get(one.strategy, (BASELINE_INK, "."))
            style = (0, (4, 2)) if one is summary.baseline else "-"
            mean, low, high = one.band()
            if one is summary.baseline:
                axes.fill_between(summary.labels, low, high, color=colour, alpha=0.12, lw=0)
            axes.plot(summary.labels, mean, color=colour, marker=marker, ms=4, lw=1.7, ls=style)
        if summary.ceiling is not None:
            accuracy, labels = summary.ceiling
            axes.axhline(accuracy, color=MUTED, lw=1, ls=(0, (1, 2)))
            text = f"all {labels:,} labels: {100 * accuracy:.1f}%"
            axes.annotate(text, (float(summary.labels[0]), accuracy), xytext=(0, 4), textcoords="offset points")
            axes.texts[-1].set(color=MUTED, fontsize=8.5)
        axes.set_title(f"{summary.backbone} ({summary.head})", loc="left", color=INK, fontsize=10, weight="bold")
        axes.set_xlabel("labels")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    panels[0].set_ylabel("accuracy on the test samples")
    handles = [Line2D([], [], color=BASELINE_INK, marker=".", ls=(0, (4, 2)), label="random (95% band)")]
    handles += [Line2D([], [], color=c, marker=m, ms=4, label=spoken(name)) for name, (c, m) in looks.items()]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9, labelcolor=INK
    )
    return png(figure)
