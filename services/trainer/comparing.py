"""What `compare`, `grid` and `study` share: sources and embeddings made ready, cells worked off, progress shown."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from services.common.errors import Unavailable
from services.common.registry import Registry
from services.common.samples import SampleStore
from services.trainer import wiring
from services.trainer.comparison.plans import Plan
from services.trainer.comparison.store import Comparison, ComparisonStore, Tally
from services.trainer.config import SourceConfig
from services.trainer.follow import phase_in_words, progress_bars
from services.trainer.pool_scorer import GrpcPoolScorer, PoolScorer
from services.trainer.settings import Settings

console = Console()
_LOOK_EVERY_S = 0.5
_NO_WORKER_AFTER_S = 30.0


class Bars:
    """A Watch that shows a bar for each phase."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def progress(self, phase: str, done: int, total: int, _detail: str = "") -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase_in_words(phase))
        self._bars.update(self._tasks[phase], completed=done, total=total or None)


@dataclass(frozen=True)
class Bench:
    """What plans are begun with."""

    settings: Settings
    store: ComparisonStore
    samples: SampleStore
    registry: Registry
    scorer: PoolScorer
    watch: Bars

    def begin(self, plan: Plan) -> Comparison:
        """Embeddings and cells, each made where it is not there yet. Raises MissingWeights."""
        from services.trainer.comparison.embedding import check_source, embed_all

        check_source(plan, self.samples)
        embedded = embed_all(plan, self.samples, self.settings, self.registry, self.scorer, self.watch)
        return self.store.begin(plan, self.samples.source.source_id, embedded)


@contextmanager
def bench(source: SourceConfig, store: ComparisonStore, settings: Settings, local: bool) -> Iterator[Bench]:
    """`local`: what must be embedded is embedded by an inference service that ends with the block."""
    from services.trainer.comparison.local_inference import LocalScorer
    from services.trainer.datasets import ensure_dataset
    from services.trainer.oracle import read_truth
    from services.trainer.sources import make_source

    if source.kind in ("cifar10", "digits"):
        ensure_dataset(source.kind, settings.data_dir, settings.data_dir, console.print)
    with _ended_by_sigterm(), progress_bars(console) as bars:
        watch = Bars(bars)
        made = make_source(source, settings.data_dir, settings.sources_dir, watch.progress)
        samples = SampleStore.open(settings.sources_dir, settings.data_dir, made.source_id)
        read_truth(settings.sources_dir, made)
        scorer = LocalScorer(settings, _say) if local else _configured(settings)
        try:
            yield Bench(settings, store, samples, wiring.open_stores(settings).registry, scorer, watch)
        finally:
            scorer.close()


def _configured(settings: Settings) -> GrpcPoolScorer:
    return GrpcPoolScorer(
        settings.inference_address, settings.embeddings_dir, settings.scoring_parallelism, settings.inference_access
    )


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM leaves `with` blocks in order, so that nothing that was started stays behind."""

    def end(signum: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def work_through(
    comparisons: Sequence[Comparison],
    store: ComparisonStore,
    settings: Settings,
    local: int | None,
    follow: bool,
    again: str,
) -> None:
    """Until all cells are over. `again`: the command that goes on."""
    if all(tally.over for tally in store.tallies(comparisons).values()):
        return
    if local is not None:
        _run_here(comparisons, store, local, settings)
    else:
        _run_in_workers(comparisons, store, follow, again)


class _CellBars:
    """A bar for each comparison."""

    def __init__(self, bars: Progress, comparisons: Sequence[Comparison]) -> None:
        self._bars = bars
        alone = len(comparisons) == 1
        self._tasks = {c.name: bars.add_task("cells" if alone else c.name) for c in comparisons}

    def show(self, tallies: Mapping[str, Tally]) -> None:
        for name, tally in tallies.items():
            self._bars.update(self._tasks[name], completed=tally.done + len(tally.failed), total=tally.total)


def _run_here(comparisons: Sequence[Comparison], store: ComparisonStore, processes: int, settings: Settings) -> None:
    from services.trainer.comparison.local import run_local

    with progress_bars(console) as bars:
        try:
            with _ended_by_sigterm():
                run_local(comparisons, store, processes, settings.thread_count, _CellBars(bars, comparisons).show)
        except KeyboardInterrupt:
            console.print("stopped; what is done stays done: run the same command to go on")
            raise typer.Exit(130) from None


def _run_in_workers(comparisons: Sequence[Comparison], store: ComparisonStore, follow: bool, again: str) -> None:
    from services.trainer.tasks import enqueue_cells

    try:
        enqueue_cells(store)
    except Unavailable as error:
        console.print(
            f"[yellow]{escape(str(error))}.[/] The cells are recorded and a worker will find them; without workers, "
            "run them here with --local 2"
        )
    if not follow:
        console.print(f"its workers write the report; watch with: {again} --follow")
        raise typer.Exit(0)
    try:
        _follow(comparisons, store)
    except KeyboardInterrupt:
        console.print(f"\nthe cells go on in the workers; end them with: {again} --stop")
        raise typer.Exit(130) from None


def _follow(comparisons: Sequence[Comparison], store: ComparisonStore) -> None:
    started, warned = time.monotonic(), False
    with progress_bars(console) as bars:
        cells = _CellBars(bars, comparisons)
        while True:
            tallies = store.tallies(comparisons)
            cells.show(tallies)
            if all(tally.over for tally in tallies.values()):
                return
            idle = all(tally.running == 0 and tally.done == 0 for tally in tallies.values())
            if idle and not warned and time.monotonic() - started > _NO_WORKER_AFTER_S:
                warned = True
                console.print("[yellow]No worker has taken a cell yet; start one with[/] al-trainer worker")
            for comparison in comparisons:
                if store.comparison(comparison.name).state != "running":
                    console.print(f"{comparison.name} was stopped")
                    raise typer.Exit(1)
            time.sleep(_LOOK_EVERY_S)


def tell_failures(comparisons: Sequence[Comparison], store: ComparisonStore, again: str) -> None:
    """Every failed cell with its reason; leaves with 1 when there is one."""
    failed = {key: why for tally in store.tallies(comparisons).values() for key, why in tally.failed.items()}
    for key, reason in failed.items():
        console.print(f"[red]{key} failed:[/] {escape(reason)}", highlight=False, soft_wrap=True)
    if failed:
        console.print(f"the failed cells are tried again by: {again}")
        raise typer.Exit(1)


def stop_all(names: Sequence[str], store: ComparisonStore, again: str) -> None:
    for name in names:
        store.stop(name)
    console.print(f"{', '.join(names)}: stopped; go on with: {again}", highlight=False, soft_wrap=True)


def _say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)
