"""Running a task: take the lease, run its steps, and decide what a failure means."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from services.common.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    LeaseLost,
    NotFound,
    QuerentError,
    Stopped,
    Unauthenticated,
    Unavailable,
)
from services.common.registry import Registry
from services.trainer.campaign import Campaign, Lease, Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.config import CampaignConfig
from services.trainer.learning import Watch
from services.trainer.leases import LeaseStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.rounds import OnStep, RoundRunner, Tools
from services.trainer.watched import watched
from services.trainer.worker import LeaseKeeper, RoundWatch, left_to_the_due_loop

log = structlog.get_logger()

# Not the campaign's fault: a replica that is away, a token that is being rotated.
_WAITED_FOR = (Unavailable, Unauthenticated, Forbidden)
# Errors that the same input would meet again: trying once more only wastes time.
_PERMANENT = (BadRequest, NotFound, Conflict)
_MAX_FAILURES = 3

MakeTools = Callable[[Campaign, Watch], Tools]
Enqueue = Callable[[str, str, int], None]
OnFinished = Callable[[Campaign, str], None]


@dataclass(frozen=True)
class _Owned:
    """A campaign while this worker holds its lease."""

    campaign: Campaign
    lease: Lease
    watch: Watch


class TaskRunner:
    """The three tasks. Each may be delivered twice, late or to several workers at once."""

    def __init__(
        self,
        store: CampaignStore,
        leases: LeaseStore,
        registry: Registry,
        make_tools: MakeTools,
        metrics: TrainerMetrics,
        owner: str,
        lease_seconds: float,
        on_finished: OnFinished,
        on_step: OnStep,
    ) -> None:
        self.store = store
        self.leases = leases
        self.metrics = metrics
        self.stop = threading.Event()
        self._held: Lease | None = None
        self._registry = registry
        self._make_tools = make_tools
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._on_finished = on_finished
        self._on_step = on_step

    def select_batch(self, name: str, round_no: int, enqueue: Enqueue) -> None:
        def work(owned: _Owned) -> bool:
            self._rounds(owned).select_batch(round_no)
            return True

        with left_to_the_due_loop(task="select_batch", campaign=name, round=round_no):
            if self._under_lease("select_batch", name, round_no, work):
                self._follow_up("train_round", name, round_no, enqueue)

    def train_round(self, name: str, round_no: int, enqueue: Enqueue) -> None:
        def work(owned: _Owned) -> bool:
            done = self._rounds(owned).train_round(round_no)
            if done:
                self.metrics.observe_round(self.store.round(name, round_no))
            return done

        with left_to_the_due_loop(task="train_round", campaign=name, round=round_no):
            if self._under_lease("train_round", name, round_no, work):
                self._follow_up("advance_campaign", name, round_no, enqueue)

    def advance_campaign(self, name: str, round_no: int, enqueue: Enqueue) -> None:
        """Begin the next round, or finish when the budget is spent or a stopping rule says enough."""
        with left_to_the_due_loop(task="advance_campaign", campaign=name, round=round_no):
            if self._under_lease("advance_campaign", name, round_no, self._advance):
                self._follow_up("select_batch", name, round_no + 1, enqueue)
            self.refresh_metrics()

    def give_back(self) -> None:
        """The process is about to end in the middle of its work: let another worker begin at once."""
        if self._held is not None:
            with suppress(Unavailable):
                self.leases.give_back(self._held)

    def refresh_metrics(self) -> None:
        """Gauges follow the database and the registry, whoever changed them."""
        self.metrics.restore(self.store, self._registry, self.leases.workload())

    def _follow_up(self, task: str, name: str, round_no: int, enqueue: Enqueue) -> None:
        enqueue(task, name, round_no)
        self.leases.mark_enqueued(name)

    def _rounds(self, owned: "_Owned") -> RoundRunner:
        tools = self._make_tools(owned.campaign, owned.watch)
        return RoundRunner(self.store, self._registry, owned.campaign, tools, owned.lease, owned.watch, self._on_step)

    def _advance(self, owned: "_Owned") -> bool:
        campaign, newest = owned.campaign, self.store.newest_round(owned.campaign.name)
        reason = _why_finished(campaign.config, newest)
        # Labels that were imported since the newest round are owed one, whatever a rule says.
        if reason and not self.store.untrained(campaign.name, newest.round_no):
            self._write_report(owned, reason)
            if self.store.finish(owned.lease, reason, newest.round_no):
                return False
        following = newest.round_no + 1
        self.store.begin_round(owned.lease, following, campaign.config.strategy_of(following))
        return True

    def _write_report(self, owned: "_Owned", reason: str) -> None:
        try:
            watched(lambda: self._on_finished(owned.campaign, reason), "report", owned.watch)
        except (Stopped, LeaseLost):
            raise
        # The report can be written again at any time; the campaign must not fail for the want of a picture.
        except Exception as error:
            log.error("report_not_written", campaign=owned.campaign.name, exc_info=error)

    def _under_lease(self, task: str, name: str, round_no: int, work: Callable[["_Owned"], bool]) -> bool:
        """What `work` says, False when it was not done: without the lease somebody else does it, or nobody."""
        lease = self.leases.take_lease(name, self._owner, self._lease_seconds)
        if lease is None:
            return False
        self._held = lease
        keeper = LeaseKeeper(self.leases, lease, self._lease_seconds, self.stop)
        with keeper.kept(), self.metrics.working():
            newest = self.store.newest_round(name)
            if (newest.round_no, task_of(newest)) != (round_no, task):
                # The message is late, delivered twice or of another database: what is due stands in ours.
                log.info("task_not_due", task=task, campaign=name, round=round_no)
                return False
            try:
                campaign = self.store.campaign(name)
                if campaign.reason:
                    self.store.set_reason(lease, "")
                return work(_Owned(campaign, lease, RoundWatch(keeper, self.store, name, round_no)))
            except (Stopped, LeaseLost) as error:
                log.info("work_given_back", campaign=name, round=round_no, why=str(error))
            except Exception as error:
                self._failed(lease, round_no, error)
        return False

    def _failed(self, lease: Lease, round_no: int, error: Exception) -> None:
        """Decide what an error means, unless the campaign has been taken, paused or deleted meanwhile."""
        try:
            if isinstance(error, _WAITED_FOR):
                # The lease goes back and the next look at what is due tries again.
                self._waits(lease, round_no, error)
            elif isinstance(error, _PERMANENT):
                self._fails(lease, round_no, error)
            else:
                self._failed_once(lease, round_no, error)
        except (LeaseLost, Conflict) as gone:
            log.info("work_given_back", campaign=lease.campaign, round=round_no, why=str(gone), after=str(error))

    def _waits(self, lease: Lease, round_no: int, error: Exception) -> None:
        log.warning("campaign_waits", campaign=lease.campaign, round=round_no, why=str(error))
        self.metrics.count_failure(lease.campaign, "unavailable")
        self.store.set_reason(lease, f"waiting: {error}")

    def _failed_once(self, lease: Lease, round_no: int, error: Exception) -> None:
        failures = self.store.count_failure(lease, round_no)
        log.error("round_failed", campaign=lease.campaign, round=round_no, failures=failures, exc_info=error)
        self.metrics.count_failure(lease.campaign, "error")
        if failures >= _MAX_FAILURES:
            self._fails(lease, round_no, error)

    def _fails(self, lease: Lease, round_no: int, error: Exception) -> None:
        told = str(error) if isinstance(error, QuerentError) else f"{type(error).__name__}: {error}"
        log.error("campaign_failed", campaign=lease.campaign, round=round_no, why=told)
        self.metrics.count_failure(lease.campaign, "campaign_failed")
        self.store.set_state(lease.campaign, "failed", f"round {round_no}: {told}", only_from=("running",), lease=lease)


def _why_finished(config: CampaignConfig, newest: Round) -> str:
    """Empty when another round is to come."""
    labels = newest.report["labels"]
    if labels >= config.budget:
        return f"the budget is spent: {labels} labels bought"
    if newest.round_no >= config.last_round:
        return f"all rounds are done: {labels} of {config.budget} labels bought"
    enough = newest.report.get("stopping", {}).get("enough", "")
    return enough and f"{enough}; {labels} of {config.budget} labels bought"


def task_of(due: Round) -> str:
    """The name of the task that a round is due for."""
    return {"selecting": "select_batch", "done": "advance_campaign"}.get(due.state, "train_round")
