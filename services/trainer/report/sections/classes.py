"""By class: precision, recall, F1, and what was bought; then the pairs that are mixed up most."""

import math
from collections.abc import Sequence
from html import escape

from services.trainer.report.classes import ClassRow, class_rows, mix_ups
from services.trainer.report.content import CampaignReport
from services.trainer.report.parts import table
from services.trainer.report.plots.confusion import MOST_NAMES, MOST_NUMBERS

# Of more classes than this the page shows the worst, and folds the rest away.
_MOST_OPEN = 20


def classes_table(report: CampaignReport) -> str:
    """The worst F1 first."""
    rows = sorted(class_rows(report), key=lambda row: (math.isnan(row.f1), row.f1))
    numbered = len(rows) > MOST_NAMES
    shown, rest = _card(rows[:_MOST_OPEN], numbered), rows[_MOST_OPEN:]
    if rest:
        folded = _card(rest, numbered)
        shown += f"<details><summary>{len(rest)} classes with a higher F1</summary>{folded}</details>"
    return shown


def _card(rows: Sequence[ClassRow], numbered: bool) -> str:
    """`numbered`: with the numbers that a large matrix is marked with."""
    head = ["class", *(["no."] if numbered else []), "precision", "recall", "F1", "test images", "bought"]
    head += ["of all bought", *(["of the pool"] if rows and rows[0].pool_share is not None else [])]
    body = [("", _cells(row, numbered)) for row in rows]
    return f'<div class="card sticky">{table(head, body, text_columns={0})}</div>'


def _cells(row: ClassRow, numbered: bool) -> list[str]:
    cells = [
        escape(row.name),
        *([str(row.number)] if numbered else []),
        *(_share(value) for value in (row.precision, row.recall, row.f1)),
        f"{row.support:,}",
        f"{row.bought:,}",
        f"{100 * row.share:.1f}%",
    ]
    return cells if row.pool_share is None else [*cells, f"{100 * row.pool_share:.1f}%"]


def _share(value: float) -> str:
    return '<span class="muted">none</span>' if math.isnan(value) else f"{100 * value:.1f}%"


def mix_ups_table(report: CampaignReport) -> str:
    """Open where the matrix has no numbers to read."""
    found = mix_ups(report.confusion, report.classes)
    if not found:
        return ""
    body = [("", [escape(it.true), escape(it.predicted), f"{it.count:,}", f"{100 * it.share:.1f}%"]) for it in found]
    head = ["true class", "taken for", "test images", "of its class"]
    is_open = " open" if len(report.classes) > MOST_NUMBERS else ""
    return (
        f"<details{is_open}><summary>The pairs that are mixed up most</summary>"
        f'<div class="card">{table(head, body, text_columns={0, 1})}</div></details>'
    )
