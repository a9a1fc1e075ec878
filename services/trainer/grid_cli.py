"""`al-trainer grid`: settings tried against each other inside one labelled set, and the best one as YAML."""

from pathlib import Path
from typing import Annotated

import typer

from services.trainer import wiring
from services.trainer.compare_cli import Follow, Local, Out, Stop
from services.trainer.comparing import bench, console, stop_all, tell_failures, work_through
from services.trainer.comparison.grid import GridConfig, load_grid
from services.trainer.comparison.store import Comparison, ComparisonStore
from services.trainer.database import open_database


def grid(
    config: Annotated[Path, typer.Argument(help="The grid search's YAML file.")],
    out: Out = None,
    follow: Follow = False,
    local: Local = None,
    stop: Stop = False,
) -> None:
    """Search a grid of heads, regularisation, backbones, resolutions and augmentation inside one labelled set.

    Every trial is judged by cross-validation; the test samples only report. Run it again to go on or to report again.
    """
    settings, wanted, again = wiring.settings(), load_grid(config), f"al-trainer grid {config}"
    store = ComparisonStore(open_database(settings.database_url))
    if stop:
        stop_all([wanted.name], store, again)
        return
    with bench(wanted.source, store, settings, local is not None) as made:
        comparison = made.begin(wanted)
    tally = store.tally(comparison)
    console.print(
        f"{wanted.name}: {len(wanted.settings)} settings x {len(wanted.seeds)} seeds, "
        f"{tally.done} of {tally.total} trials are done"
    )
    work_through([comparison], store, settings, local, follow, again)
    _conclude(wanted, comparison, store, out or settings.reports_dir / wanted.kind / wanted.name)
    tell_failures([comparison], store, again)


def _conclude(wanted: GridConfig, comparison: Comparison, store: ComparisonStore, folder: Path) -> None:
    from services.trainer.comparison.grid_write import ranking_table, write_grid

    ranking = write_grid(folder, wanted, store.results(comparison))
    if ranking is not None:
        console.print(ranking_table(ranking))
        console.print(f"the best, for a campaign's file: {folder / 'best.yaml'}", highlight=False, soft_wrap=True)
    console.print(f"report: {folder / 'grid.html'}", highlight=False, soft_wrap=True)
