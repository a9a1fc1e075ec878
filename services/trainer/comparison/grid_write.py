"""A grid search's files: every trial of every seed as CSV and parquet, the ranking, the picture, the best, the page."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from services.common.files import write_atomically
from services.trainer.comparison import grid_plots
from services.trainer.comparison.cells import CellResult
from services.trainer.comparison.grid import GridConfig
from services.trainer.comparison.grid_page import fragment, render_grid_page
from services.trainer.comparison.ranking import Ranking, Trial, rank
from services.trainer.comparison.write import csv_of, parquet_of
from services.trainer.report.pictures import Pictures

BEST = """\
# The best of {trials} settings in {name}: {validation:.1f}% by {folds}-fold cross-validation inside {labels} labelled
# samples, mean of {seeds} seeds; {level} others are not shown to be worse. Paste it into a campaign's file.
"""
_SHOWN = 12


def write_grid(folder: Path, config: GridConfig, results: Sequence[CellResult]) -> Ranking | None:
    """Write or replace every file; gives what the page says."""
    ranking = rank(config, results)
    pictures = grid_pictures(ranking)
    files = grid_files(config, ranking, results)
    files.update({f"{name}.png": png for name, png in pictures.light.items()})
    # The page comes last: whoever sees it finds the rest beside it.
    missing = len(config.cells()) - len(results)
    files["grid.html"] = render_grid_page(config, ranking, pictures, missing).encode()
    for name, content in files.items():
        write_atomically(folder / name, content)
    return ranking


def grid_pictures(ranking: Ranking | None) -> Pictures:
    return Pictures.of({} if ranking is None else {"trials": partial(grid_plots.trials, ranking)})


def grid_files(config: GridConfig, ranking: Ranking | None, results: Sequence[CellResult]) -> dict[str, bytes]:
    """The tables and the best setting."""
    rows = trial_rows(config, results)
    files = {"trials.csv": csv_of(rows), "trials.parquet": parquet_of(rows)}
    if ranking is not None:
        files["ranking.csv"] = csv_of([_ranked(at + 1, trial) for at, trial in enumerate(ranking.trials)])
        files["best.yaml"] = best_yaml(config, ranking).encode()
    return files


def best_yaml(config: GridConfig, ranking: Ranking) -> str:
    told = BEST.format(
        trials=len(ranking.trials),
        name=config.name,
        validation=100 * ranking.best.validation.mean(),
        folds=config.setting.learner.folds,
        labels=config.labels,
        seeds=len(ranking.best.seeds),
        level=ranking.level_with_best,
    )
    return told + fragment(ranking.best)


def trial_rows(config: GridConfig, results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """One row for each setting and seed; shares, not points."""
    settings = {(it.backbone_name, it.learner_name): it for it in config.settings}
    rows = []
    for r in results:
        if r.validation is None:
            continue
        values = settings[r.cell.backbone, r.cell.head].values
        rows.append(
            {
                "backbone_setting": r.cell.backbone,
                "learner_setting": r.cell.head,
                "seed": r.cell.seed,
                "labels": config.labels,
                **{f"axis_{axis}": None if axis not in values else str(values[axis]) for axis in config.axes},
                "validation_accuracy": r.validation.accuracy,
                "validation_log_loss": r.validation.log_loss,
                "validation_cpu_seconds": r.validation.cpu_seconds,
                "test_accuracy": r.points[-1].accuracy,
                "test_macro_f1": r.points[-1].macro_f1,
                "test_ece": r.points[-1].ece,
                "fit_cpu_seconds": r.points[-1].fit_cpu_seconds,
            }
        )
    return rows


def _ranked(place: int, trial: Trial) -> dict[str, Any]:
    low, high = trial.interval()
    return {
        "place": place,
        "backbone_setting": trial.setting.backbone_name,
        "learner_setting": trial.setting.learner_name,
        "is_default": trial.is_default,
        "seeds": len(trial.seeds),
        "validation_accuracy": float(trial.validation.mean()),
        "validation_low": low,
        "validation_high": high,
        "less_default": None if trial.gain is None else trial.gain.mean,
        "less_default_low": None if trial.gain is None else trial.gain.low,
        "less_default_high": None if trial.gain is None else trial.gain.high,
        "validation_log_loss": float(trial.log_loss.mean()),
        "test_accuracy": float(trial.test.mean()),
        "cpu_seconds": trial.cpu_seconds,
    }


def ranking_table(ranking: Ranking) -> Table:
    """For the terminal: the best dozen."""
    out = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"the best of {len(ranking.trials)} settings",
        title_justify="left",
        caption="validation inside the labelled set ranks; test decided nothing",
        caption_justify="left",
    )
    out.add_column("setting")
    for name in ("validation", "less\ndefault", "test", "CPU s"):
        out.add_column(name, justify="right", vertical="bottom")
    for trial in ranking.trials[:_SHOWN]:
        gain = "default" if trial.is_default else "" if trial.gain is None else f"{100 * trial.gain.mean:+.1f}"
        shares = (f"{100 * trial.validation.mean():.1f}%", gain, f"{100 * trial.test.mean():.1f}%")
        out.add_row(trial.name, *shares, f"{trial.cpu_seconds:.1f}", style="bold" if trial is ranking.best else "")
    return out
