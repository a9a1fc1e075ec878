"""A study's files: its page, every picture as PNG, and the tables of all arms and of the grid search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from services.common.files import write_atomically
from services.trainer.comparison import plots
from services.trainer.comparison.cells import CellResult
from services.trainer.comparison.grid import GridConfig
from services.trainer.comparison.grid_write import grid_files, grid_pictures
from services.trainer.comparison.ranking import rank
from services.trainer.comparison.study import StudyConfig
from services.trainer.comparison.study_page import ArmPart, StudyPage, render_study_page
from services.trainer.comparison.study_plots import overview
from services.trainer.comparison.summary import Summary, summarise
from services.trainer.comparison.write import csv_of, parquet_of, run_rows, summary_rows
from services.trainer.report.pictures import Pictures
from services.trainer.report.plots.confusion import confusion_pair

_PICTURES = ("learning_curves", "aubc_gains")


@dataclass(frozen=True)
class StudyResults:
    arms: Mapping[str, Sequence[CellResult]]
    # The grid search as it could be begun, and its results; None where there is none.
    grid_plan: GridConfig | None
    grid: Sequence[CellResult] | None
    # What could not be run -> why, and how to get it.
    missing: Mapping[str, str]
    classes: tuple[str, ...]


def write_study(folder: Path, config: StudyConfig, results: StudyResults) -> list[Summary]:
    """Write or replace every file; gives what the page says of the arms."""
    arms = [_arm(config, arm, found, results.classes) for arm, found in results.arms.items()]
    summaries = [arm.summary for arm in arms if arm.summary is not None]
    drawn = Pictures.of({"overview": partial(overview, summaries)} if summaries else {})
    files = _tables([r for found in results.arms.values() for r in found], summaries)
    files.update({f"{arm.name}-{name}.png": png for arm in arms for name, png in arm.pictures.light.items()})
    files.update({f"{a.name}-confusion-{_file(n)}.png": png for a in arms for n, png in a.confusions.light.items()})
    files.update({f"{name}.png": png for name, png in drawn.light.items()})
    ranking, pictures = None, Pictures({}, {})
    if results.grid_plan is not None and results.grid is not None:
        ranking = rank(results.grid_plan, results.grid)
        pictures = grid_pictures(ranking)
        grid = grid_files(results.grid_plan, ranking, results.grid) | {f"{n}.png": p for n, p in pictures.light.items()}
        files.update({f"grid-{name}": content for name, content in grid.items()})
    page = StudyPage(config, arms, results.missing, drawn, results.grid_plan, ranking, pictures)
    # The page comes last: whoever sees it finds the rest beside it.
    files["study.html"] = render_study_page(page).encode()
    for name, content in files.items():
        write_atomically(folder / name, content)
    return summaries


def confusions(results: Sequence[CellResult]) -> dict[str, np.ndarray]:
    """What was asked with -> counts (C, C) of the test samples after the last round, summed over seeds."""
    found: dict[str, np.ndarray] = {}
    for result in results:
        if result.confusion:
            counts = np.array(result.confusion, np.int64)
            found[result.cell.strategy] = found.get(result.cell.strategy, np.zeros_like(counts)) + counts
    return found


def _arm(config: StudyConfig, arm: str, results: Sequence[CellResult], classes: Sequence[str]) -> ArmPart:
    plan = config.comparison(arm)
    summary = next(iter(summarise(results, plan.strategies)), None)
    curves = Pictures({}, {}) if summary is None else plots.draw(summary, _PICTURES)
    matrices = confusions(results)
    labels = {r.cell.strategy: r.points[-1].labels for r in results}
    ordered = [name for name in (*plan.strategies, *matrices) if name in matrices]
    drawn = {
        name: partial(confusion_pair, matrices[name], classes, f"{arm}, {_title(name)}: {labels[name]:,} labels")
        for name in dict.fromkeys(ordered)
    }
    return ArmPart(arm, summary, curves, Pictures.of(drawn), len(plan.cells()) - len(results))


def _tables(results: Sequence[CellResult], summaries: Sequence[Summary]) -> dict[str, bytes]:
    runs = run_rows(results)
    matrices = [
        {
            "backbone": r.cell.backbone,
            "head": r.cell.head,
            "strategy": r.cell.strategy,
            "seed": r.cell.seed,
            "true": true,
            "predicted": predicted,
            "samples": count,
        }
        for r in results
        for true, row in enumerate(r.confusion)
        for predicted, count in enumerate(row)
    ]
    return {
        "runs.csv": csv_of(runs),
        "runs.parquet": parquet_of(runs),
        "summary.csv": csv_of(summary_rows(summaries)),
        "confusion.csv": csv_of(matrices),
    }


def _title(strategy: str) -> str:
    return strategy.replace("_", " ")


def _file(strategy: str) -> str:
    return strategy.replace(" ", "-").replace("_", "-")
