"""Prometheus metrics of the trainer: gauges by round, restored from the database at start."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.trainer.campaign import Campaign, Round
from services.trainer.campaign_store import CampaignStore

_STATES = ("running", "paused", "finished", "cancelled", "failed")
_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000)


class TrainerMetrics:
    """Names are a contract with dashboards: see the design."""

    def __init__(self, registry: CollectorRegistry) -> None:
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
        self._tasks = gauge("al_tasks", "Campaigns with a task that is due or running", "state")
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
        self._waiting_since: dict[str, float] = {}

    def count_failure(self, campaign: str, reason: str) -> None:
        self._failures.labels(campaign, reason).inc()

    def observe_round(self, done: Round) -> None:
        """Once, by the worker that finished the round: a restart must not count it again."""
        for phase, seconds in done.seconds.items():
            self._phase_seconds.labels(done.campaign, phase).observe(seconds)

    def restore(self, store: CampaignStore) -> None:
        """Set every gauge from the database, so that dashboards by round survive a restart.

        Called again and again: finished rounds never change and are read once.
        """
        campaigns = store.campaigns()
        for campaign in campaigns:
            self._set_state(campaign)
            for round_no in store.finished_rounds(campaign.name):
                if (campaign.name, round_no) not in self._set:
                    self._set.add((campaign.name, round_no))
                    self._set_round(campaign, store.round(campaign.name, round_no))
        for name in self._known - {c.name for c in campaigns}:
            self._forget(name)
        self._known = {c.name for c in campaigns}
        self._tasks.labels("running").set(sum(c.state == "running" for c in campaigns))
        self._tasks.labels("waiting").set(sum(c.state == "running" and bool(c.reason) for c in campaigns))

    def _forget(self, campaign: str) -> None:
        """Drop every series of a deleted campaign."""
        for metric in self._gauges:
            if "campaign" in metric._labelnames:
                metric.remove_by_labels({"campaign": campaign})
        self._set = {key for key in self._set if key[0] != campaign}

    def _set_state(self, campaign: Campaign) -> None:
        for state in _STATES:
            self._state.labels(campaign.name, state).set(campaign.state == state)
        waits = campaign.state == "running" and campaign.reason.startswith("waiting")
        since = self._waiting_since.setdefault(campaign.name, time.time()) if waits else 0.0
        if not waits:
            self._waiting_since.pop(campaign.name, None)
        self._waiting.labels(campaign.name).set(since)

    def _set_round(self, campaign: Campaign, done: Round) -> None:
        name, number = campaign.name, str(done.round_no)
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
