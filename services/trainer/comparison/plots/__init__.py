"""A comparison's pictures, each for light and for dark pages."""

from collections.abc import Callable, Sequence
from functools import partial

from services.trainer.comparison.plots.cost import query_cost
from services.trainer.comparison.plots.curves import gains, learning_curves
from services.trainer.comparison.plots.standing import aubc_gains, penalties
from services.trainer.comparison.summary import Summary
from services.trainer.report.pictures import Pictures
from services.trainer.report.plots.canvas import Theme

_DRAWN: dict[str, Callable[[Summary, Theme], bytes]] = {
    "learning_curves": learning_curves,
    "gains": gains,
    "aubc_gains": aubc_gains,
    "penalties": penalties,
    "query_cost": query_cost,
}


def draw(summary: Summary, wanted: Sequence[str] = tuple(_DRAWN)) -> Pictures:
    """By name; none where there is random alone, which has nothing to be compared with."""
    shown = wanted if len(summary.found) > 1 else ()
    return Pictures.of({name: partial(_DRAWN[name], summary) for name in shown})
