"""Learning curves of ours, the best peers and random, one panel a backbone."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from services.trainer.comparison.summary import Found, Summary
from services.trainer.report.plots.canvas import LIGHT

_BEST_PEERS = 3
_GREY = "#4b5563"
_OURS = ("#0072b2", "#009e73")
_PEERS = ("#d55e00", "#cc79a7", "#e69f00")


def curves(summaries: Sequence[Summary], ours: Sequence[str], peers: Sequence[str]) -> bytes:
    """PNG: mean accuracy on the test images by labels with its 95% interval over seeds."""
    figure = Figure(figsize=(11, 4.8), dpi=110, layout="constrained", facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(1, len(summaries)))
    for axes, summary in zip(panels, summaries, strict=True):
        for found, colour, style in _shown(summary, ours, peers):
            mean, low, high = found.band()
            axes.fill_between(summary.labels, low, high, color=colour, alpha=0.13, lw=0)
            axes.plot(summary.labels, mean, style, color=colour, lw=1.8, label=_legend(found))
        axes.set_title(summary.backbone, loc="left", color=LIGHT.ink, fontsize=11, weight="bold")
        axes.set_xlabel("labels", color=LIGHT.muted)
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        axes.grid(color=LIGHT.grid, lw=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, fontsize=8.5, loc="lower right", title="AUBC against random, points")
    panels[0].set_ylabel("accuracy on the test images", color=LIGHT.muted)
    seeds = summaries[0].seeds
    figure.suptitle(
        f"CIFAR-10, frozen backbones, one logistic head for all: mean of {len(seeds)} paired seeds, 95% interval",
        x=0.01,
        ha="left",
        color=LIGHT.ink,
        fontsize=11,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    return buffer.getvalue()


def _shown(summary: Summary, ours: Sequence[str], peers: Sequence[str]) -> list[tuple[Found, str, str]]:
    """Random, ours, and the peers with the largest areas: each with its colour and style."""
    by_area = sorted(summary.found, key=lambda found: -found.aubc.mean())
    best = [found for found in by_area if found.strategy in peers][:_BEST_PEERS]
    of_us = [found for found in by_area if found.strategy in ours][: len(_OURS)]
    return [
        (summary.baseline, _GREY, ":"),
        *((found, colour, "--") for found, colour in zip(best, _PEERS, strict=False)),
        *((found, colour, "-") for found, colour in zip(of_us, _OURS, strict=False)),
    ]


def _legend(found: Found) -> str:
    name = found.strategy.replace("_", " ")
    return name if found.strategy == "random" else f"{name} {100 * found.aubc_gain.mean:+.2f}"
