"""Cells in a few processes, each finished curve kept on disk: whoever is interrupted goes on where he was."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from threadpoolctl import threadpool_limits

from services.common.files import digest, write_atomically
from services.common.observability import configure_logging
from services.trainer.comparison.cells import Cell, CellResult
from services.trainer.comparison.curve import learning_curve
from services.trainer.learning import SilentWatch
from services.trainer.settings import Settings
from services.trainer.strategies import Strategy, strategy
from tests.bench.al.worlds import WORLDS, Part, learner_of, study_of


@dataclass(frozen=True)
class Kept:
    """Finished curves, one file each, named by everything that decides them but the code."""

    folder: Path

    def path(self, part: Part, cell: Cell) -> Path:
        name = digest(part.campaign(cell).model_dump(mode="json"))[:16]
        return self.folder / f"{cell.key.replace('/', '_').replace(' ', '-')}-{name}.json"

    def read(self, part: Part, cell: Cell) -> CellResult | None:
        """None where there is no whole file."""
        try:
            return CellResult.of_json(json.loads(self.path(part, cell).read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, part: Part, result: CellResult) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(part, result.cell), json.dumps(result.as_json()).encode())

    def forget(self) -> None:
        for path in self.folder.glob("*.json"):
            path.unlink()

    def found(self, parts: Sequence[Part]) -> list[CellResult]:
        read = (self.read(part, cell) for part in parts for cell in part.cells())
        return [result for result in read if result is not None]

    def missing(self, parts: Sequence[Part]) -> list[tuple[Part, Cell]]:
        return [(part, cell) for part in parts for cell in part.cells() if self.read(part, cell) is None]


def named(name: str) -> Strategy:
    """Ours and peers'."""
    from tests.bench.al.peers import PEERS  # in here: the peers take seconds to import

    return PEERS[name] if name in PEERS else strategy(name)


def one_curve(part: Part, cell: Cell) -> CellResult:
    """In a process of the pool, which keeps the embeddings for the next cell."""
    settings = Settings()
    study = study_of(WORLDS[part.world], settings)
    # Sums in another order round differently: one thread gives the same curve everywhere.
    with threadpool_limits(limits=1):
        outcome = learning_curve(
            part.campaign(cell), study, learner_of(part, cell, study, settings), SilentWatch(), named
        )
    return CellResult.of(cell, outcome)


def work_off(
    parts: Sequence[Part],
    kept: Kept,
    processes: int,
    show: Callable[[int, int], None],
    run: Callable[[Part, Cell], CellResult] = one_curve,
) -> list[str]:
    """Run what is missing; `show` gets how many of how many are done. Gives what failed, in words."""
    due = kept.missing(parts)
    show(0, len(due))
    if not due:
        return []
    # Read by BLAS when a child loads it.
    os.environ.update({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})
    # Spawned, not forked: the threads of BLAS do not survive a fork.
    context = multiprocessing.get_context("spawn")
    failed = []
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_quietly) as pool:
        futures: dict[Future[CellResult], tuple[Part, Cell]] = {pool.submit(run, *job): job for job in due}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                part, cell = futures[future]
                if (error := future.exception()) is not None:
                    failed.append(f"{cell.key}: {type(error).__name__}: {error}")
                else:
                    kept.write(part, future.result())
                show(done, len(due))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _quietly() -> None:
    configure_logging("WARNING", "console")


def by_world(results: Iterable[CellResult]) -> dict[str, list[CellResult]]:
    worlds: dict[str, list[CellResult]] = {}
    for result in results:
        worlds.setdefault(result.cell.backbone, []).append(result)
    return worlds
