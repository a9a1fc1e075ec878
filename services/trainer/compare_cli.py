"""`al-trainer compare`: strategies, backbones, heads and seeds, paired, and a report of what may be said."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from services.common.samples import SampleStore
from services.trainer import wiring
from services.trainer.comparison.config import ComparisonConfig, load_comparison
from services.trainer.comparison.store import Comparison, ComparisonStore, Tally
from services.trainer.database import open_database
from services.trainer.follow import progress_bars
from services.trainer.settings import Settings

console = Console()
_LOOK_EVERY_S = 0.5
_NO_WORKER_AFTER_S = 30.0
_PHASES = {
    "index": "listing images",
    "check": "checking images",
    "export": "exporting to ONNX",
    "parity": "checking the exported graph",
    "embed": "embedding images",
}


def compare(
    config: Annotated[Path, typer.Argument(help="The comparison's YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; default: reports/compare/NAME.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show progress until every cell is done.")] = False,
    local: Annotated[
        int | None, typer.Option(min=1, help="Run in so many processes here, without Redis and workers.")
    ] = None,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the comparison; run it again to go on.")] = False,
) -> None:
    """Compare strategies, backbones and heads over paired seeds. Run it again to go on or to report again."""
    settings, wanted = wiring.settings(), load_comparison(config)
    store = ComparisonStore(open_database(settings.database_url))
    if stop:
        store.stop(wanted.name)
        console.print(f"{wanted.name} is stopped; go on with: al-trainer compare {config}")
        return
    comparison = _begun(wanted, store, settings)
    folder = out or settings.reports_dir / "compare" / wanted.name
    tally = store.tally(comparison)
    console.print(f"{comparison.name}: {tally.done} of {tally.total} cells are done")
    if not tally.over:
        if local is not None:
            _run_here(comparison, store, local, settings)
        else:
            _run_in_workers(comparison, store, follow, config)
    _conclude(comparison, store, folder, config)


def _begun(wanted: ComparisonConfig, store: ComparisonStore, settings: Settings) -> Comparison:
    """Source, embeddings and cells, each made where it is not there yet."""
    from services.trainer.comparison.embedding import check_source, embed_all
    from services.trainer.datasets import ensure_dataset
    from services.trainer.oracle import read_truth
    from services.trainer.pool_scorer import GrpcPoolScorer
    from services.trainer.sources import make_source

    if wanted.source.kind in ("cifar10", "digits"):
        ensure_dataset(wanted.source.kind, settings.data_dir, settings.data_dir, console.print)
    with progress_bars(console) as bars:
        watch = _Bars(bars)
        source = make_source(wanted.source, settings.data_dir, settings.sources_dir, watch.progress)
        samples = SampleStore.open(settings.sources_dir, settings.data_dir, source.source_id)
        check_source(wanted, samples)
        read_truth(settings.sources_dir, source)
        scorer = GrpcPoolScorer(
            settings.inference_address, settings.embeddings_dir, settings.scoring_parallelism, settings.inference_access
        )
        registry = wiring.open_stores(settings).registry
        try:
            embedding_ids = embed_all(wanted, samples, settings, registry, scorer, watch)
        finally:
            scorer.close()
    return store.begin(wanted, source.source_id, embedding_ids)


class _Bars:
    """A Watch that shows a bar for each phase."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def progress(self, phase: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(_PHASES.get(phase, phase))
        self._bars.update(self._tasks[phase], completed=done, total=total or None)


def _run_here(comparison: Comparison, store: ComparisonStore, processes: int, settings: Settings) -> None:
    from services.trainer.comparison.local import run_local

    with progress_bars(console) as bars:
        bar = bars.add_task("cells")

        def show(tally: Tally) -> None:
            bars.update(bar, completed=tally.done + len(tally.failed), total=tally.total)

        try:
            run_local(comparison, store, processes, settings.thread_count, show)
        except KeyboardInterrupt:
            console.print("stopped; what is done stays done: run the same command to go on")
            raise typer.Exit(130) from None


def _run_in_workers(comparison: Comparison, store: ComparisonStore, follow: bool, config: Path) -> None:
    from kombu.exceptions import OperationalError

    from services.trainer.tasks import enqueue_cells

    try:
        enqueue_cells(store)
    except OperationalError as error:
        console.print(
            f"[yellow]Redis cannot be reached ({escape(str(error))}).[/] The cells are recorded and a worker will find "
            "them; without workers, run them here with --local 2"
        )
    if not follow:
        console.print(f"its workers write the report; watch with: al-trainer compare {config} --follow")
        raise typer.Exit(0)
    try:
        _follow(comparison, store)
    except KeyboardInterrupt:
        console.print(f"\n{comparison.name} goes on in its workers; end it with: al-trainer compare {config} --stop")
        raise typer.Exit(130) from None


def _follow(comparison: Comparison, store: ComparisonStore) -> None:
    started, warned = time.monotonic(), False
    with progress_bars(console) as bars:
        bar = bars.add_task("cells")
        while not (tally := store.tally(comparison)).over:
            bars.update(bar, completed=tally.done + len(tally.failed), total=tally.total)
            idle = tally.running == 0 and tally.done == 0
            if idle and not warned and time.monotonic() - started > _NO_WORKER_AFTER_S:
                warned = True
                console.print("[yellow]No worker has taken a cell yet; start one with[/] al-trainer worker")
            if store.comparison(comparison.name).state != "running":
                console.print(f"{comparison.name} was stopped")
                raise typer.Exit(1)
            time.sleep(_LOOK_EVERY_S)


def _conclude(comparison: Comparison, store: ComparisonStore, folder: Path, config: Path) -> None:
    from services.trainer.comparison.write import summary_table, write_comparison

    tally, results = store.tally(comparison), store.results(comparison)
    for key, reason in tally.failed.items():
        console.print(f"[red]{key} failed:[/] {escape(reason)}", highlight=False, soft_wrap=True)
    if results:
        summaries = write_comparison(folder, comparison.config, results)
        for summary in summaries:
            console.print(summary_table(summary))
        console.print(f"report: {folder / 'comparison.html'}", highlight=False, soft_wrap=True)
    if tally.failed:
        console.print(f"the failed cells are tried again by: al-trainer compare {config}")
        raise typer.Exit(1)
