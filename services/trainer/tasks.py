"""Celery's edge: each task names a campaign and a round, or a comparison's cell, and may run twice.

The retry rule: a task that could not finish gives its lease back, and the due loop enqueues it again.
"""

from typing import Any

from celery import signals
from kombu.exceptions import OperationalError

from services.common.errors import Unavailable
from services.trainer import wiring, worker_wiring
from services.trainer.campaign import Round
from services.trainer.celery_app import app
from services.trainer.comparison.store import ComparisonStore
from services.trainer.task_runner import task_of
from services.trainer.worker import DueLoop, left_to_the_due_loop

PREFIX = "querent."
# Cells that wait in the broker at any time, and how long until one that nobody has taken is sent again.
_CELLS_WAITING = 8
_CELLS_AGAIN_AFTER_S = 60.0


def enqueue(task: str, campaign: str, round_no: int) -> None:
    """Raises Unavailable."""
    _send(task, campaign, round_no)


def _send(task: str, *arguments: str | int) -> None:
    try:
        app.send_task(PREFIX + task, args=arguments)
    except OperationalError as error:
        raise Unavailable(f"Redis cannot be reached ({error})") from error


def enqueue_due(due: Round) -> None:
    enqueue(task_of(due), due.campaign, due.round_no)


@app.task(name=PREFIX + "select_batch")  # type: ignore[untyped-decorator] # celery has no types
def select_batch(campaign: str, round_no: int) -> None:
    worker_wiring.task_runner().select_batch(campaign, round_no, enqueue)


@app.task(name=PREFIX + "train_round")  # type: ignore[untyped-decorator] # celery has no types
def train_round(campaign: str, round_no: int) -> None:
    worker_wiring.task_runner().train_round(campaign, round_no, enqueue)


@app.task(name=PREFIX + "advance_campaign")  # type: ignore[untyped-decorator] # celery has no types
def advance_campaign(campaign: str, round_no: int) -> None:
    worker_wiring.task_runner().advance_campaign(campaign, round_no, enqueue)


def enqueue_cells(store: ComparisonStore) -> None:
    """Keep a few cells of the running comparisons on their way; campaigns find room between them."""
    for comparison, key in store.due_cells(_CELLS_AGAIN_AFTER_S, _CELLS_WAITING):
        _send("run_cell", comparison, key)


@app.task(name=PREFIX + "run_cell")  # type: ignore[untyped-decorator] # celery has no types
def run_cell(comparison: str, key: str) -> None:
    with left_to_the_due_loop(task="run_cell", comparison=comparison, cell=key):
        runner = worker_wiring.cell_runner()
        with worker_wiring.task_runner().metrics.working():
            done = runner.run(comparison, key)
        if done:
            worker_wiring.report_when_over(runner.store, comparison)
        enqueue_cells(runner.store)


@signals.worker_ready.connect  # type: ignore[untyped-decorator] # celery has no types
def _begin(**_: Any) -> None:
    runner = worker_wiring.task_runner()

    def refresh() -> None:
        runner.refresh_metrics()
        enqueue_cells(worker_wiring.cell_runner().store)

    DueLoop(runner.leases, enqueue_due, wiring.settings().due_seconds, refresh).start()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator] # celery has no types
def _stop(**_: Any) -> None:
    # Fitting, scoring and export look at this at least once a second, give the lease back and end.
    worker_wiring.task_runner().stop.set()
