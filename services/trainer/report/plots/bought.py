"""Which classes the budget went to."""

import numpy as np
from matplotlib.ticker import PercentFormatter

from services.trainer.report.classes import Shares
from services.trainer.report.plots.canvas import Theme, as_label, axes_of, figure, legend, png, title

# Rounds that a narrow picture has room to number.
_MOST_NUMBERED = 14
_LETTERS_IN_A_LINE = 64
_LETTERS_OF_A_MARK = 7


def bought_by_round(shares: Shares, theme: Theme) -> bytes:
    """PNG: class shares of each round's labels, of all of them and, where it is known, of the pool."""
    drawn = figure(theme)
    axes = axes_of(drawn, theme)
    rounds = sum(column.isdecimal() for column in shares.columns)
    # A gap between single rounds and what they are held against.
    places = np.array([i if i < rounds else i + 0.6 for i in range(len(shares.columns))], float)
    below = np.zeros(len(places))
    for i, (name, share) in enumerate(zip(shares.names, shares.shares, strict=True)):
        axes.bar(places, share, bottom=below, color=theme.of(i), width=0.82, label=as_label(name))
        below += share
    title(axes, "Classes of what each round bought", theme)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    step = 1 + rounds // _MOST_NUMBERED
    kept = [i for i in range(len(places)) if i >= rounds or i % step == 0]
    axes.set_xticks(places[kept], [shares.columns[i] for i in kept])
    axes.set_xlabel("round")
    axes.grid(visible=False)
    axes.margins(x=0.02)
    axes.set_ylim(0, 1)
    longest = max(len(as_label(name)) for name in shares.names)
    # A legend that is wider than the picture would make the axes narrow.
    columns = max(2, min(5, _LETTERS_IN_A_LINE // (longest + _LETTERS_OF_A_MARK)))
    legend(axes, theme, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=columns)
    return png(drawn)
