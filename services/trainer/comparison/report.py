"""The report of whatever was worked on cell by cell."""

from collections.abc import Sequence
from pathlib import Path

from services.trainer.comparison.cells import CellResult
from services.trainer.comparison.grid import GridConfig
from services.trainer.comparison.grid_write import write_grid
from services.trainer.comparison.plans import Plan
from services.trainer.comparison.write import write_comparison


def write_report(folder: Path, plan: Plan, results: Sequence[CellResult]) -> None:
    """Write or replace a comparison's or a grid search's files."""
    match plan:
        case GridConfig():
            write_grid(folder, plan, results)
        case _:
            write_comparison(folder, plan, results)
