"""A grid search's picture: each trial's validation accuracy with its interval, best on top."""

import numpy as np
from matplotlib.ticker import PercentFormatter

from services.trainer.comparison.ranking import Ranking, Trial
from services.trainer.report.plots.canvas import Theme, axes_of, figure, headline, png

_MOST_TRIALS = 24


def trials(ranking: Ranking, theme: Theme) -> bytes:
    """PNG: the best two dozen and the default; hollow marks are test accuracy, which decided nothing."""
    shown = list(ranking.trials[:_MOST_TRIALS])
    if ranking.default is not None and ranking.default not in shown:
        shown.append(ranking.default)
    shown.reverse()
    drawn = figure(theme, 9.2, 1.2 + 0.27 * len(shown))
    axes = axes_of(drawn, theme)
    for row, trial in enumerate(shown):
        colour = theme.lines[1] if trial.is_default else theme.lines[0]
        axes.plot(trial.interval(), [row, row], color=colour, lw=2.2, alpha=0.45, solid_capstyle="round")
        axes.plot(trial.test.mean(), row, "D", mfc="none", mec=theme.muted, ms=5, zorder=2)
        axes.plot(trial.validation.mean(), row, "o", color=colour, ms=6, zorder=3)
    axes.set_yticks(range(len(shown)), [_label(t) for t in shown], color=theme.ink, fontsize=8.5)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    # One wide interval of a poor trial must not press the others together.
    low = min(float(np.minimum(t.validation, t.test).min()) for t in shown)
    high = max(float(np.maximum(t.validation, t.test).max()) for t in shown)
    axes.set_xlim(max(0.0, low - 0.03), min(1.0, high + 0.03))
    left_out = len(ranking.trials) - len(shown)
    more = f" ({left_out} more in the table)" if left_out > 0 else ""
    headline(drawn, f"Grid search, best on top{more}", theme)
    axes.set_xlabel(
        "accuracy; dot: validation in the labelled set, 95% interval over seeds; diamond: test, decided nothing",
        x=1.0,
        fontsize=9,
        ha="right",
    )
    return png(drawn)


def _label(trial: Trial) -> str:
    return trial.name + ("  (default)" if trial.is_default else "")
