"""`al-trainer compare`: strategies, backbones, heads and seeds, paired, and a report of what may be said."""

from pathlib import Path
from typing import Annotated

import typer

from services.trainer import wiring
from services.trainer.comparing import bench, console, stop_all, tell_failures, work_through
from services.trainer.comparison.config import ComparisonConfig, load_comparison
from services.trainer.comparison.store import Comparison, ComparisonStore
from services.trainer.database import open_database

Out = Annotated[Path | None, typer.Option(help="Folder for the report; default: reports/KIND/NAME.")]
Follow = Annotated[bool, typer.Option("--follow", help="Show progress until every cell is done.")]
Local = Annotated[
    int | None, typer.Option(min=1, help="Run in so many processes here, without Redis, workers and inference.")
]
Stop = Annotated[bool, typer.Option("--stop", help="Stop it; run the command again to go on.")]


def compare(
    config: Annotated[Path, typer.Argument(help="The comparison's YAML file.")],
    out: Out = None,
    follow: Follow = False,
    local: Local = None,
    stop: Stop = False,
) -> None:
    """Compare strategies, backbones and heads over paired seeds. Run it again to go on or to report again."""
    settings, wanted, again = wiring.settings(), load_comparison(config), f"al-trainer compare {config}"
    store = ComparisonStore(open_database(settings.database_url))
    if stop:
        stop_all([wanted.name], store, again)
        return
    with bench(wanted.source, store, settings, local is not None) as made:
        comparison = made.begin(wanted)
    tally = store.tally(comparison)
    console.print(f"{comparison.name}: {tally.done} of {tally.total} cells are done")
    work_through([comparison], store, settings, local, follow, again)
    _conclude(wanted, comparison, store, out or settings.reports_dir / wanted.kind / wanted.name)
    tell_failures([comparison], store, again)


def _conclude(wanted: ComparisonConfig, comparison: Comparison, store: ComparisonStore, folder: Path) -> None:
    from services.trainer.comparison.write import summary_table, write_comparison

    results = store.results(comparison)
    if results:
        for summary in write_comparison(folder, wanted, results):
            console.print(summary_table(summary))
        console.print(f"report: {folder / 'comparison.html'}", highlight=False, soft_wrap=True)
