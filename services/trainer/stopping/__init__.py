"""When to stop buying labels, decided on the randomly drawn labelled rows only: never on the test samples, nor on rows
that were chosen for being uncertain.
"""

from services.trainer.stopping.curve import Forecast, LearningCurve, fit_curve, forecast, next_marks
from services.trainer.stopping.rules import RULES, Standing, judge, record
from services.trainer.stopping.slices import Slice, slice_cost

__all__ = [
    "RULES",
    "Forecast",
    "LearningCurve",
    "Slice",
    "Standing",
    "fit_curve",
    "forecast",
    "judge",
    "next_marks",
    "record",
    "slice_cost",
]
