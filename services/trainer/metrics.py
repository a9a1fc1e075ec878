"""Prometheus metrics of the trainer: gauges by round, restored from the database at start."""

import time
from contextlib import AbstractContextManager

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from services.common.errors import QuerentError
from services.common.registry import Registry
from services.trainer.campaign import Campaign, Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.leases import Workload

_STATES = ("running", "paused", "finished", "cancelled", "failed")
log = structlog.get_logger()

_FAILURES = ("unavailable", "error", "campaign_failed")
# A campaign that waits is tried again and again: a try that is shorter does not end the wait.
_TRY_SECONDS = 60.0
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


class TrainerMetrics:
    """Names are a contract with dashboards: see the design."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # A `_created` series beside each counter says nothing that process_start_time_seconds does not.
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            made = Gauge(name, text, labels, registry=registry)
            self._gauges.append(made)
            return made

        self._gauges: list[Gauge] = []

        self._accuracy = gauge("al_round_accuracy", "Accuracy, 0 to 1", "campaign", "round", "split")
        self._macro_f1 = gauge("al_round_macro_f1", "Macro-averaged F1, 0 to 1", "campaign", "round", "split")
        self._calibration = gauge(
            "al_round_calibration_error", "Expected calibration error on test samples, 15 bins", "campaign", "round"
        )
        self._labelled = gauge("al_round_labelled_samples", "Labels that the round's model used", "campaign", "round")
        self._class_labels = gauge(
            "al_round_labels", "Labels bought up to the round by class", "campaign", "round", "class"
        )
        self._query_score = gauge(
            "al_round_query_score", "Mean acquisition score of what the strategy picked", "campaign", "round"
        )
        self._rate = gauge(
            "al_round_images_per_second", "Images a second in a phase of the round", "campaign", "round", "phase"
        )
        self._newest = gauge("al_campaign_round", "Newest round that is done", "campaign")
        self._promoted = gauge("al_promoted_version", "Version that inference ought to serve", "campaign")
        self._state = gauge("al_campaign_state", "1 for the state that the campaign is in", "campaign", "state")
        self._waiting = gauge(
            "al_campaign_waiting_since_seconds",
            "Unix time since when the campaign waits; 0: it does not",
            "campaign",
        )
        self._expected_gain = gauge(
            "al_expected_gain",
            "Accuracy, 0 to 1, that the next batch is expected to bring, by the learning curve of the random slice",
            "campaign",
        )
        self._tasks = gauge(
            "al_tasks",
            "Tasks of campaigns and comparisons, by the database: queued (a worker could begin them) and running",
            "state",
        )
        self._busy = Gauge("al_worker_busy", "1 while this worker is at work on a task", registry=registry)
        self._phase_seconds = Histogram(
            "al_round_phase_seconds",
            "Duration of a phase of a round, in seconds",
            ("campaign", "phase"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._failures = Counter(
            "al_round_failures", "Rounds that failed, by reason", ("campaign", "reason"), registry=registry
        )
        # Rounds whose gauges are set, and campaigns that have any.
        self._set: set[tuple[str, int]] = set()
        self._known: set[str] = set()
        # Since when a campaign waits, and how long that holds although nothing is seen of it.
        self._waits: dict[str, tuple[float, float]] = {}

    def working(self) -> AbstractContextManager[object]:
        """For as long as a task's work goes on."""
        return self._busy.track_inprogress()

    def count_failure(self, campaign: str, reason: str) -> None:
        self._failures.labels(campaign, reason).inc()

    def observe_round(self, done: Round) -> None:
        """Once, by the worker that finished the round: a restart must not count it again."""
        for phase, seconds in done.seconds.items():
            self._phase_seconds.labels(done.campaign, phase).observe(seconds)

    def restore(self, store: CampaignStore, registry: Registry, workload: Workload) -> None:
        """Set every gauge from the database and the registry, so that dashboards by round survive a restart.

        Called again and again: finished rounds never change and are read once.
        """
        campaigns = store.campaigns()
        for campaign in campaigns:
            self._set_state(campaign, store)
            self._set_promoted(campaign.name, registry)
            for round_no in store.finished_rounds(campaign.name):
                if (campaign.name, round_no) not in self._set:
                    self._set.add((campaign.name, round_no))
                    self._set_round(campaign, store.round(campaign.name, round_no))
        for name in self._known - {c.name for c in campaigns}:
            self._forget(name)
        self._known = {c.name for c in campaigns}
        self._tasks.labels("queued").set(workload.queued)
        self._tasks.labels("running").set(workload.running)

    def _forget(self, campaign: str) -> None:
        """Drop every series of a deleted campaign."""
        for metric in self._gauges:
            if "campaign" in metric._labelnames:
                metric.remove_by_labels({"campaign": campaign})
        for reason in _FAILURES:
            self._failures.remove(campaign, reason)
        self._set = {key for key in self._set if key[0] != campaign}
        self._waits.pop(campaign, None)

    def _set_state(self, campaign: Campaign, store: CampaignStore) -> None:
        for state in _STATES:
            self._state.labels(campaign.name, state).set(campaign.state == state)
        for reason in _FAILURES:
            self._failures.labels(campaign.name, reason)  # from 0: increase() does not see a series' first count
        self._waiting.labels(campaign.name).set(self._waits_since(campaign, store))

    def _waits_since(self, campaign: Campaign, store: CampaignStore) -> float:
        """Unix time; 0 for a campaign that does not wait."""
        now = time.time()
        since, until = self._waits.get(campaign.name, (now, 0.0))
        if campaign.reason.startswith("waiting"):
            until = now + _TRY_SECONDS
        elif until < now and campaign.state == "running" and store.newest_round(campaign.name).state == "labelling":
            until = now
        if campaign.state != "running" or until < now:
            self._waits.pop(campaign.name, None)
            return 0.0
        self._waits[campaign.name] = since, until
        return since

    def _set_promoted(self, campaign: str, registry: Registry) -> None:
        try:
            current = registry.current(campaign)
        except (QuerentError, OSError) as error:
            # Inference tells of the same trouble; the other gauges must not stand still for it.
            log.warning("promoted_version_unknown", campaign=campaign, error=str(error))
            return
        if current is not None:
            self._promoted.labels(campaign).set(current)

    def _set_round(self, campaign: Campaign, done: Round) -> None:
        name, number = campaign.name, str(done.round_no)
        self._newest.labels(name).set(done.round_no)
        self._labelled.labels(name, number).set(done.report["labels"])
        for label, count in done.report["class_counts"].items():
            self._class_labels.labels(name, number, label).set(count)
        for split, metrics in done.report["metrics"].items():
            self._accuracy.labels(name, number, split).set(metrics["accuracy"])
            if "macro_f1" in metrics:
                self._macro_f1.labels(name, number, split).set(metrics["macro_f1"])
            if "ece" in metrics:
                self._calibration.labels(name, number).set(metrics["ece"])
        gain = done.report.get("stopping", {}).get("expected_gain")
        if gain is not None:
            self._expected_gain.labels(name).set(gain)
        if done.query_score is not None:
            self._query_score.labels(name, number).set(done.query_score)
        if done.images_per_second is not None:
            self._rate.labels(name, number, "score").set(done.images_per_second)
