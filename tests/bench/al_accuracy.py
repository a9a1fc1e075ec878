"""make bench-al, accuracy: our strategies and those of scikit-activeml and modAL on the same embeddings and head.

    python -m tests.bench.al_accuracy                                  everything; goes on where it was interrupted
    python -m tests.bench.al_accuracy --csv docs/benchmarks/al-accuracy.csv --plot docs/images/al-curves.png
    python -m tests.bench.al_accuracy --world vgg16 --only auto "modAL margin" --seeds 0-4       a look at a few
    python -m tests.bench.al_accuracy --table                          from the curves that are there; runs nothing

CIFAR-10 through frozen VGG16 (64 px, 12,000 images to choose from) and EfficientNet-Lite0 (96 px, 10,000), embedded
once by a real inference process. 100 random labels, the same for every strategy of a seed, batches of 100 to 1,500, a
logistic head with C = 0.01 for all of them, no random share; 10,000 test images that only report. The contender was
chosen on seeds 0 to 4; what is reported is seeds 100 to 114. Finished curves are kept under .querent/bench-al.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.common.errors import QuerentError
from services.common.observability import configure_logging
from services.trainer.comparison.cells import CellResult
from services.trainer.comparison.summary import Summary
from services.trainer.settings import Settings
from tests.bench.al.figures import Goal, Row, ece_goals, goals, rows, saving_goal, summary_of
from tests.bench.al.peers import PEERS
from tests.bench.al.picture import curves
from tests.bench.al.plan import CALIBRATED, CONTENDER, OURS, PIPELINES, SEEDS, accuracy_part, calibration_part
from tests.bench.al.runs import Kept, named, work_off
from tests.bench.al.worlds import WORLDS, Part, embed_world

FOLDER = Path(".querent/bench-al")


def main() -> None:
    given = _arguments()
    configure_logging("WARNING", "console")
    try:
        for name in given.only or ():
            named(name)
        _run(given)
    except QuerentError as error:
        raise SystemExit(f"bench-al: {error}") from error


def _run(given: argparse.Namespace) -> None:
    console, settings, kept = Console(), Settings(), Kept(FOLDER)
    if given.fresh:
        kept.forget()
    parts = _parts(given)
    if not given.table:
        for name in dict.fromkeys(part.world for part in parts):
            if kept.missing([part for part in parts if part.world == name]):
                embed_world(WORLDS[name], settings)
        for line in _with_a_bar(console, parts, kept, given.processes):
            console.print(f"[red]failed[/] {line}")
    summaries, table, reached = [], [], []
    for name in given.world:
        results = kept.found([part for part in parts if part.world == name and part.head == "logistic"])
        if not any(r.cell.strategy == "random" for r in results):
            console.print(f"{name}: no curves of random yet; run it without --table")
            continue
        summary = summary_of(results)
        summaries.append(summary)
        table += rows(summary, results, CONTENDER, PEERS)
        if {"auto", CONTENDER} <= {found.strategy for found in summary.found}:
            reached += goals(summary, results, CONTENDER, tuple(PEERS))
            reached += _of_extra_parts(name, summary, kept)
    _show(console, table, reached)
    _write(given, table, reached, summaries)


def _arguments() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--world", nargs="*", choices=tuple(WORLDS), default=list(accuracy_worlds()), metavar="NAME")
    arguments.add_argument("--only", nargs="*", metavar="STRATEGY", help="beside random, these alone and nothing else")
    arguments.add_argument("--seeds", type=_seeds, default=SEEDS, help="as 100-114, which are the reported ones")
    arguments.add_argument("--processes", type=int, default=2, help="side by side, one thread each (2)")
    arguments.add_argument("--fresh", action="store_true", help="forget every finished curve first")
    arguments.add_argument("--table", action="store_true", help="run nothing, report what is there")
    arguments.add_argument("--csv", type=Path, help="write the table to this file, the goals beside it")
    arguments.add_argument("--plot", type=Path, help="write the learning curves to this PNG")
    return arguments.parse_args()


def accuracy_worlds() -> tuple[str, ...]:
    return tuple(name for name, world in WORLDS.items() if world.compared)


def _seeds(text: str) -> tuple[int, ...]:
    first, _, last = text.partition("-")
    return tuple(range(int(first), int(last or first) + 1))


def _parts(given: argparse.Namespace) -> list[Part]:
    if given.only is not None:
        return [accuracy_part(world, given.only, given.seeds) for world in given.world]
    compared = [accuracy_part(world, (*OURS, *PEERS), given.seeds) for world in given.world]
    calibrated = [calibration_part(world, given.seeds) for world in given.world]
    return [*compared, *calibrated, *(p.part for p in PIPELINES if p.world in given.world)]


def _with_a_bar(console: Console, parts: Sequence[Part], kept: Kept, processes: int) -> list[str]:
    columns = (TextColumn("curves"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("curves")
        return work_off(parts, kept, processes, lambda done, of: bars.update(bar, completed=done, total=of))


def _of_extra_parts(world: str, summary: Summary, kept: Kept) -> list[Goal]:
    """Calibration and label saving, as far as their runs are there."""
    found: list[Goal] = []
    calibrated = kept.found([calibration_part(world, summary.seeds)])
    if len(calibrated) == len(CALIBRATED) * len(summary.seeds):
        found += ece_goals(calibrated, world, CALIBRATED)
    for pipeline in PIPELINES:
        runs: list[CellResult] = kept.found([pipeline.part])
        if pipeline.world == world and len(runs) == len(pipeline.part.cells()):
            found.append(saving_goal(runs, summary, pipeline.what))
    return found


def _show(console: Console, table: Sequence[Row], reached: Sequence[Goal]) -> None:
    for backbone in dict.fromkeys(row.backbone for row in table):
        shown = Table(
            "strategy", "AUBC", "minus random", f"{CONTENDER} minus it", "at the end", "worst class", "labels", "ECE",
            title=f"{backbone}: points on the test images",
        )  # fmt: skip
        for row in table:
            if row.backbone == backbone:
                shown.add_row(*_cells(row))
        console.print(shown)
    goals_table = Table("figure", "goal", "measured", "")
    for goal in reached:
        goals_table.add_row(goal.figure, goal.goal, goal.measured, "reached" if goal.reached else "[red]missed[/]")
    console.print(goals_table)


def _cells(row: Row) -> list[str]:
    behind = ""
    if row.contender_minus is not None:
        behind = f"{row.contender_minus:+.2f} [{row.contender_low:.2f}, {row.contender_high:.2f}]"
    return [
        row.strategy,
        f"{row.aubc:.2f}",
        f"{row.minus_random:+.2f} [{row.minus_random_low:.2f}, {row.minus_random_high:.2f}]",
        behind,
        f"{row.final_accuracy:.2f}",
        f"{row.worst_class_recall:.1f}",
        str(row.labels_to_random or "-"),
        f"{row.worst_ece:.3f}",
    ]


def _write(
    given: argparse.Namespace, table: Sequence[Row], reached: Sequence[Goal], summaries: Sequence[Summary]
) -> None:
    if given.csv and table:
        _csv(given.csv, [asdict(row) for row in table])
        if reached:
            _csv(given.csv.with_name(f"{given.csv.stem}-goals.csv"), [asdict(goal) for goal in reached])
    if given.plot and summaries:
        given.plot.write_bytes(curves(summaries, tuple(dict.fromkeys((CONTENDER, "auto"))), tuple(PEERS)))


def _csv(path: Path, lines: Sequence[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
