"""The table by round, for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from services.trainer.report.content import RoundRow, phases

# The table must fit 80 columns: phases below this share of the campaign's time, and all but the largest few,
# are told together.
_SMALL_SHARE = 0.03
_MOST_PHASES = 3


def rounds_table(rows: Sequence[RoundRow]) -> Table:
    """Labels, test metrics, seconds by phase, scoring rate and version of each round."""
    shown, rest = _phase_columns(rows)
    head = ["round", "labels", "accuracy", "macro\nF1", "ECE", *(f"{phase}\ns" for phase in shown)]
    head += ["rest\ns"] if rest else []
    head += ["total\ns", "scored\n/s", "model"]
    together = f"; rest = {', '.join(rest)}" if rest else ""
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
        caption=f"test samples; model = version, * = promoted{together}",
        caption_justify="left",
    )
    for title in head:
        table.add_column(title, justify="right", vertical="bottom")
    served = max((r.version for r in rows if r.promoted), default=None)
    for row in rows:
        table.add_row(*_cells(row, shown, rest), style="bold" if row.version == served else "")
    return table


def _cells(row: RoundRow, shown: Sequence[str], rest: Sequence[str]) -> list[str]:
    cells = [
        str(row.round_no),
        f"{row.labels:,}",
        percent(row.test("accuracy")),
        percent(row.test("macro_f1")),
        decimal(row.test("ece")),
    ]
    cells += [f"{row.seconds[p]:.1f}" if p in row.seconds else "" for p in shown]
    if rest:
        cells.append(f"{sum(row.seconds.get(p, 0.0) for p in rest):.1f}")
    cells.append(f"{row.total_seconds:.1f}")
    cells.append(f"{row.images_scored_per_second:,.0f}" if row.images_scored_per_second else "")
    cells.append(f"v{row.version}{'*' if row.promoted else ' '}")
    return cells


def _phase_columns(rows: Sequence[RoundRow]) -> tuple[list[str], list[str]]:
    """Phases with a column of their own, in order, and those that are told together."""
    spent = {p: sum(row.seconds.get(p, 0.0) for row in rows) for p in phases(rows)}
    total = sum(spent.values()) or 1.0
    large = sorted(spent, key=lambda p: -spent[p])[:_MOST_PHASES]
    shown = [p for p in spent if p in large and spent[p] / total >= _SMALL_SHARE]
    return shown, [p for p in spent if p not in shown]


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
