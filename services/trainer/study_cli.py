"""`al-trainer study`: several arms and a grid search as one command and one report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from services.trainer import wiring
from services.trainer.compare_cli import Follow, Local, Out, Stop
from services.trainer.comparing import Bench, bench, console, stop_all, tell_failures, work_through
from services.trainer.comparison.grid import GridConfig
from services.trainer.comparison.store import Comparison, ComparisonStore
from services.trainer.comparison.study import StudyConfig, load_study
from services.trainer.database import open_database

# Everything that could be run was, and something could not.
INCOMPLETE = 3


@dataclass
class _Begun:
    """What of a study can be run here, and why the rest cannot."""

    arms: dict[str, Comparison] = field(default_factory=dict)
    grid: Comparison | None = None
    # Arm (or backbone of the grid search) -> what was tried and how to get its weights.
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def comparisons(self) -> list[Comparison]:
        return [*self.arms.values(), *([self.grid] if self.grid is not None else [])]


def study(
    config: Annotated[Path, typer.Argument(help="The study's YAML file.")],
    out: Out = None,
    follow: Follow = False,
    local: Local = None,
    stop: Stop = False,
) -> None:
    """Run several arms (backbone and learner) and a grid search, and report on all of them in one page.

    An arm whose weights cannot be had is reported as missing, and the rest runs: the exit code is then 3. Run the
    command again to go on, or to report again.
    """
    settings, wanted, again = wiring.settings(), load_study(config), f"al-trainer study {config}"
    store = ComparisonStore(open_database(settings.database_url))
    if stop:
        names = [wanted.comparison(arm).name for arm in wanted.arms] + ([f"{wanted.name}-grid"] if wanted.grid else [])
        stop_all([name for name in names if store.has(name)], store, again)
        return
    with bench(wanted.source, store, settings, local is not None) as made:
        begun, classes = _begin(wanted, made), made.samples.source.classes
    for name, why in begun.missing.items():
        console.print(f"[yellow]{name} is left out:[/] {escape(why)}", highlight=False, soft_wrap=True)
    tallies = store.tallies(begun.comparisons)
    done, total = sum(t.done for t in tallies.values()), sum(t.total for t in tallies.values())
    console.print(f"{wanted.name}: {done} of {total} cells are done")
    work_through(begun.comparisons, store, settings, local, follow, again)
    _conclude(wanted, begun, store, classes, out or settings.reports_dir / "study" / wanted.name)
    tell_failures(begun.comparisons, store, again)
    if begun.missing:
        console.print(
            f"[yellow]finished without {', '.join(begun.missing)}[/]: the report says how to get the weights; then "
            f"only those cells are left for: {again}",
            soft_wrap=True,
        )
        raise typer.Exit(INCOMPLETE)


def _begin(wanted: StudyConfig, made: Bench) -> _Begun:
    from services.trainer.comparison.embedding import MissingWeights

    begun = _Begun()
    for arm in wanted.arms:
        try:
            begun.arms[arm] = made.begin(wanted.comparison(arm))
        except MissingWeights as error:
            begun.missing[arm] = str(error)
    grid = wanted.grid_search()
    if grid is not None:
        begun.grid = _begin_grid(grid, made, begun.missing)
    return begun


def _begin_grid(grid: GridConfig, made: Bench, missing: dict[str, str]) -> Comparison | None:
    """The grid with those of its backbones whose weights are there."""
    from services.trainer.comparison.embedding import MissingWeights

    try:
        return made.begin(grid)
    except MissingWeights as error:
        if grid.setting.backbone.name in error.reasons:
            missing["grid search"] = str(error)
            return None
        missing.update({f"{name} in the grid search": why for name, why in error.reasons.items()})
        return made.begin(grid.without(list(error.reasons)))


def _conclude(
    wanted: StudyConfig, begun: _Begun, store: ComparisonStore, classes: tuple[str, ...], folder: Path
) -> None:
    from services.trainer.comparison.study_write import StudyResults, write_study
    from services.trainer.comparison.write import summary_table

    results = StudyResults(
        arms={arm: store.results(comparison) for arm, comparison in begun.arms.items()},
        grid=None if begun.grid is None else store.results(begun.grid),
        grid_plan=begun.grid.config if begun.grid is not None and isinstance(begun.grid.config, GridConfig) else None,
        missing=begun.missing,
        classes=classes,
    )
    for summary in write_study(folder, wanted, results):
        console.print(summary_table(summary))
    console.print(f"report: {folder / 'study.html'}", highlight=False, soft_wrap=True)
