"""Cells without a broker: a few processes on this machine take them from the database, one after another."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.common.errors import Unavailable
from services.common.observability import configure_logging
from services.trainer.comparison.running import CellRunner, StoredStudies
from services.trainer.comparison.store import Comparison, ComparisonStore, Tally
from services.trainer.database import open_database
from services.trainer.settings import Settings
from services.trainer.worker import worker_name

_LOOK_EVERY_S = 0.5
_GRACE_S = 20.0


def run_local(
    comparisons: Sequence[Comparison],
    store: ComparisonStore,
    processes: int,
    threads: int,
    show: Callable[[Mapping[str, Tally]], None],
) -> None:
    """Until every cell has a result or has failed; `show` is given the tallies by name.

    Raises Unavailable when all processes have died.

    Interrupted, it leaves what is done in the database: the next call goes on there.
    """
    # Spawned, not forked: BLAS threads and database connections do not survive a fork.
    context = multiprocessing.get_context("spawn")
    each = max(1, threads // processes)
    names = [comparison.name for comparison in comparisons]
    children: list[Any] = [
        context.Process(target=work_off, args=(names, each), name=f"cells-{i}") for i in range(processes)
    ]
    for child in children:
        child.start()
    try:
        while True:
            tallies = store.tallies(comparisons)
            show(tallies)
            if all(tally.over for tally in tallies.values()):
                return
            if not any(child.is_alive() for child in children):
                raise Unavailable("every worker process has ended before the cells were done; run the command again")
            time.sleep(_LOOK_EVERY_S)
    finally:
        for child in children:
            if child.is_alive():
                child.terminate()
        for child in children:
            child.join(_GRACE_S)


def work_off(names: Sequence[str], threads: int) -> None:
    """One process: cells until none is left, of one name after the other.

    What a killed one has begun is due again when its claim has run out.
    """
    configure_logging("WARNING", "console")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    settings = Settings()
    store = ComparisonStore(open_database(settings.database_url))
    studies = StoredStudies(settings, threads)
    runner = CellRunner(store, studies, worker_name(), settings.lease_seconds, threads, stop)
    parent = os.getppid()
    while not stop.is_set() and os.getppid() == parent:  # whoever was killed leaves nobody behind
        due = next(((name, key) for name in names if (key := store.next_due(name)) is not None), None)
        if due is not None:
            runner.run(*due)
        elif all(store.tally(c).over or c.state != "running" for c in map(store.comparison, names)):
            return
        else:
            stop.wait(_LOOK_EVERY_S)  # somebody else's last cells; one of them may come back
