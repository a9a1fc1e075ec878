"""What a worker does beside its tasks: keep its lease, watch for a stop, look for what is due."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import structlog

from services.common.ending import leave
from services.common.errors import LeaseLost, Stopped, Unavailable
from services.trainer.campaign import Lease, Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.leases import LeaseStore

log = structlog.get_logger()

_GIVE_BACK_S = 1.0


def worker_name() -> str:
    """Unique to this process's life: a restarted worker must not be taken for its predecessor."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"


class LeaseKeeper:
    """Renews a lease from a side thread, and remembers why the work must end when it must."""

    def __init__(self, leases: LeaseStore, lease: Lease, seconds: float, stop: threading.Event) -> None:
        self._leases = leases
        self._lease = lease
        self._seconds = seconds
        self._stop = stop
        self._ended = threading.Event()
        self._trouble: Exception | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Renewed inside the block, given back after it."""
        thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self._leases.give_back(self._lease)

    def check(self) -> None:
        """Raises Stopped or LeaseLost when the work must end."""
        if self._stop.is_set():
            raise Stopped("the worker was asked to stop")
        if self._trouble is not None:
            raise self._trouble

    def _renew(self) -> None:
        # Well inside the lease's time, and often enough that a pause is felt at once.
        while not self._ended.wait(min(self._seconds / 3, 1.0)):
            try:
                state = self._leases.renew_lease(self._lease, self._seconds)
                if state != "running":
                    self._trouble = Stopped(f"the campaign is {state}")
            except LeaseLost as error:
                self._trouble = error
            # A database that is away for a moment: the next renewal may come in time, else the token tells.
            except Exception as error:
                log.warning("lease_not_renewed", campaign=self._lease.campaign, error=str(error))


class RoundWatch:
    """The Watch of a campaign's work: checks the lease and writes progress at most once a second."""

    def __init__(self, keeper: LeaseKeeper, store: CampaignStore, campaign: str, round_no: int) -> None:
        self._keeper = keeper
        self._store = store
        self._campaign = campaign
        self._round_no = round_no
        self._written_at = 0.0
        self._phase = ""

    def progress(self, phase: str, done: int, total: int, detail: str = "") -> None:
        self._keeper.check()
        now = time.monotonic()
        if phase == self._phase and done < total and now < self._written_at + 1.0:
            return
        if phase == self._phase and now < self._written_at + 0.1:
            return
        self._phase, self._written_at = phase, now
        try:
            self._store.save_progress(self._campaign, self._round_no, phase, done, total, detail)
        except Unavailable as error:
            # Nobody needs it but people who look: hours of training outlive a database that is away for a minute.
            log.warning("progress_not_saved", campaign=self._campaign, round=self._round_no, error=str(error))


@contextmanager
def left_to_the_due_loop(**task: object) -> Iterator[None]:
    """A database or a broker that is away ends the task; once it is back, what is due is enqueued again."""
    try:
        yield
    except Unavailable as error:
        log.warning("task_left", why=str(error), **task)


class Deadline:
    """Ends the process when the work that was asked to stop has not ended after some seconds.

    A training step of a large network, or a database that hangs, can take longer than whoever stops us waits. Nothing
    is lost with it: a round goes on after a kill at any line.
    """

    def __init__(self, seconds: float, give_back: Callable[[], None]) -> None:
        """`give_back`: lets another worker begin at once; may hang."""
        self._seconds = seconds
        self._give_back = give_back

    def begin(self) -> None:
        threading.Thread(target=self._run, name="deadline", daemon=True).start()

    def _run(self) -> None:
        time.sleep(self._seconds)
        log.warning("work_left_unfinished", grace_seconds=self._seconds)
        giving = threading.Thread(target=self._give_back, name="give-back", daemon=True)
        giving.start()
        giving.join(_GIVE_BACK_S)
        leave()


class DueLoop:
    """Derives the tasks that are due from the database and enqueues them, at start and every few seconds.

    The broker may be flushed or lost at any time: the next look puts back what is missing. `refresh` is called at
    each look too, for what must follow the database.
    """

    def __init__(
        self,
        leases: LeaseStore,
        enqueue: Callable[[Round], None],
        every_s: float,
        refresh: Callable[[], None] = lambda: None,
    ) -> None:
        self._leases = leases
        self._enqueue = enqueue
        self._every_s = every_s
        self._refresh = refresh
        self._ended = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._run, name="due", daemon=True).start()

    def stop(self) -> None:
        self._ended.set()

    def look(self, again_after_s: float) -> None:
        for due in self._leases.due_rounds(again_after_s):
            try:
                self._enqueue(due)
            except Exception:
                self._leases.mark_enqueued(due.campaign, enqueued=False)
                raise

    def _outlived(self, step: Callable[[], None]) -> bool:
        """Whether it went well: a broker or database that is away must not end the loop."""
        try:
            step()
        except Exception as error:
            log.warning("due_look_failed", error=str(error))
            return False
        return True

    def _run(self) -> None:
        # What a predecessor enqueued may be gone with it, so at start everything that is due counts.
        again_after_s = 0.0
        while True:
            # A broker that was away may have lost what was sent shortly before.
            again_after_s = 6 * self._every_s if self._outlived(partial(self.look, again_after_s)) else 0.0
            # Metrics must follow the database also while the broker is away.
            self._outlived(self._refresh)
            if self._ended.wait(self._every_s):
                return
