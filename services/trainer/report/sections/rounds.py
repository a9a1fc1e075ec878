"""Tables by round: what each round reached, how its batch was chosen, and where its seconds went."""

from collections.abc import Sequence
from html import escape

from services.trainer.report.content import RoundRow, phases
from services.trainer.report.parts import table
from services.trainer.report.table import decimal, percent


def rounds_table(rows: Sequence[RoundRow]) -> str:
    head = ["round", "strategy", "labels", "accuracy", "macro F1", "ECE", "random slice", "version", "promoted"]
    served = max((r.version for r in rows if r.promoted), default=None)
    body = [("served" if row.version == served else "", _cells(row)) for row in rows]
    return f'<div class="card">{table(head, body, text_columns={1})}</div>'


def _cells(row: RoundRow) -> list[str]:
    cells = [
        str(row.round_no),
        row.strategy.replace("_", " "),
        f"{row.labels:,}",
        percent(row.test("accuracy")),
        percent(row.test("macro_f1")),
        decimal(row.test("ece")),
        percent(row.metrics.get("random_slice", {}).get("accuracy")),
        str(row.version),
    ]
    return [*map(escape, cells), '<span class="yes">yes</span>' if row.promoted else "no"]


def selection_table(rows: Sequence[RoundRow]) -> str:
    """How batches were chosen, in the strategies' own words; nothing where none had anything to say."""
    body = [("", [str(row.round_no), escape(told)]) for row in rows for told in row.selection]
    if not body:
        return ""
    return f'<div class="card prose after">{table(["round", "how the batch was chosen"], body, text_columns={1})}</div>'


def seconds_table(rows: Sequence[RoundRow]) -> str:
    names = phases(rows)
    body = []
    for row in rows:
        spent = [f"{row.seconds[p]:.1f}" if p in row.seconds else "" for p in names]
        rate = f"{row.images_scored_per_second:,.0f}" if row.images_scored_per_second else ""
        body.append(("", [str(row.round_no), *spent, f"{row.total_seconds:.1f}", rate]))
    head = ["round", *(f"{p} s" for p in names), "total s", "images scored/s"]
    return f'<div class="card">{table(head, body, text_columns=set())}</div>'
