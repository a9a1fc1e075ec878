"""A study's overview: the curves of all arms on one scale."""

from collections.abc import Sequence

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from services.trainer.comparison.plots.look import DASHED, MARKERS, ceiling, spoken
from services.trainer.comparison.summary import Summary
from services.trainer.report.plots.canvas import Theme, dress, figure, png, title


def overview(summaries: Sequence[Summary], theme: Theme) -> bytes:
    """PNG: a panel for each arm with every strategy's mean curve; dotted, what all labels of the pool give."""
    drawn = figure(theme, 1.2 + 3.5 * len(summaries), 4.3)
    panels = drawn.subplots(1, len(summaries), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(f.strategy for summary in summaries for f in summary.found[1:]))
    looks = {name: (theme.lines[at % len(theme.lines)], MARKERS[at % len(MARKERS)]) for at, name in enumerate(names)}
    for axes, summary in zip(panels, summaries, strict=True):
        dress(axes, theme)
        for one in summary.found:
            colour, marker = looks.get(one.strategy, (theme.muted, "."))
            is_random = one is summary.baseline
            mean, low, high = one.band()
            if is_random:
                axes.fill_between(summary.labels, low, high, color=colour, alpha=0.12, lw=0)
            style = DASHED if is_random else "-"
            axes.plot(summary.labels, mean, color=colour, marker=marker, ms=4, lw=1.7, ls=style)
        ceiling(axes, summary, theme)
        title(axes, f"{summary.backbone} ({summary.head})", theme)
        axes.set_xlabel("labels")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    panels[0].set_ylabel("accuracy on the test samples")
    handles = [Line2D([], [], color=theme.muted, marker=".", ls=DASHED, label="random (95% band)")]
    handles += [Line2D([], [], color=c, marker=m, ms=4, label=spoken(name)) for name, (c, m) in looks.items()]
    drawn.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9, labelcolor=theme.ink
    )
    return png(drawn)
