"""The report's pictures, in files by topic."""

from collections.abc import Callable
from functools import partial

import numpy as np

from services.trainer.report.classes import class_shares
from services.trainer.report.content import CampaignReport
from services.trainer.report.plots.bought import bought_by_round
from services.trainer.report.plots.canvas import Theme
from services.trainer.report.plots.confusion import confusion_counts, confusion_shares
from services.trainer.report.plots.learning import learning_curve
from services.trainer.report.plots.reliability import calibration_by_labels, reliability_diagram
from services.trainer.report.plots.timing import images_per_second, seconds_by_phase

Draw = Callable[[Theme], bytes]


def drawn(report: CampaignReport) -> dict[str, Draw]:
    """By name, what draws each picture that the report has something to show for."""
    wanted: dict[str, Draw] = {}
    if any(r.test("accuracy") is not None for r in report.rows):
        wanted["learning_curve"] = partial(learning_curve, report)
        wanted["calibration"] = partial(calibration_by_labels, report)
    if report.rows:
        wanted["timing"] = partial(seconds_by_phase, report)
    if any(r.images_scored_per_second for r in report.rows):
        wanted["scoring_rate"] = partial(images_per_second, report)
    if len(report.confusion):
        counts = np.array(report.confusion, np.int64)
        wanted["confusion_matrix"] = partial(confusion_shares, counts, report.classes)
        wanted["confusion_counts"] = partial(confusion_counts, counts, report.classes)
    if report.reliability is not None:
        wanted["reliability"] = partial(reliability_diagram, report.reliability)
    shares = class_shares(report)
    if shares is not None:
        wanted["bought_classes"] = partial(bought_by_round, shares)
    return wanted
