"""Every metric of the inference service, and when the series of a model version end."""

from collections import OrderedDict
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from services.common.manifest import Manifest
from services.inference.statistics import Statistics
from services.inference.triton_counters import TritonCounters

Purpose = Literal["predict", "score", "embed"]
PURPOSES: tuple[Purpose, ...] = ("predict", "score", "embed")

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_CALL_SECONDS = (*_SECONDS, 60, 300, 1800)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_VERSION = ("model", "version", "round")
# Versions with series of feedback, whether in memory or not.
FEEDBACK_VERSIONS = 64


class Metrics:
    """One set of metric objects, in a registry of its own: two servers in one process do not mix."""

    def __init__(self) -> None:
        # A `_created` series beside each counter says nothing that process_start_time_seconds does not.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._triton = TritonCounters()
        self.registry.register(self._triton)
        self.rpcs = self._counter("inference_rpcs", "Finished calls by status code.", ("method", "code"))
        self.rpc_seconds = self._histogram(
            "inference_rpc_seconds", "Seconds from a call's start to its end.", ("method",), _CALL_SECONDS
        )
        self.batch_size = self._histogram("inference_batch_size", "Images in one run of a network.", (), _BATCH_SIZES)
        self.queue_seconds = self._histogram(
            "inference_queue_seconds", "Seconds that images waited for their run.", (), _SECONDS
        )
        self.dropped = self._counter(
            "inference_dropped_requests", "Requests dropped before they were computed.", ("reason",)
        )
        self.queue_depth = self._gauge("inference_queue_depth", "Images that wait for a run.", ())
        self.run_seconds = self._histogram(
            "inference_run_seconds", "Seconds of one run of a network.", ("model", "version"), _SECONDS
        )
        self.images = self._counter("inference_images", "Images answered, scored or embedded.", (*_VERSION, "purpose"))
        self.model_info = self._gauge(
            "inference_model_info", "1 for each model version in memory.", (*_VERSION, "provider")
        )
        self.model_accuracy = self._gauge(
            "inference_model_accuracy", "Accuracy on the test samples, as the trainer reported it.", _VERSION
        )
        self.load_failures = self._counter(
            "inference_model_load_failures", "Model versions that could not be loaded.", ("reason",)
        )
        self.provider_fallback = self._gauge(
            "inference_provider_fallback", "1 when a GPU was asked for and the CPU is used.", ()
        )
        self.feedback = self._counter(
            "inference_feedback", "Predictions whose true class was told, once each.", (*_VERSION, "correct")
        )
        self._told_of: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self.confidence = self._histogram(
            "inference_prediction_confidence",
            "Probability of the most probable class.",
            ("model", "version"),
            _CONFIDENCES,
        )

    def loaded(self, manifest: Manifest, provider: str, statistics: Statistics) -> None:
        """Begin the series of a version."""
        version = _labels(manifest)
        self._triton.add(*version[:2], statistics)
        self.model_info.labels(*version, provider).set(1)
        accuracy = manifest.metrics.get("test", {}).get("accuracy")
        if accuracy is not None:
            self.model_accuracy.labels(*version).set(accuracy)

    def unloaded(self, manifest: Manifest, provider: str) -> None:
        """End the series of a version, so that a dashboard shows only what is there."""
        version = _labels(manifest)
        self._triton.remove(*version[:2])
        self.model_info.remove(*version, provider)
        self.model_accuracy.remove(*version)
        self.run_seconds.remove(*version[:2])
        self.confidence.remove(*version[:2])
        for purpose in PURPOSES:
            self.images.remove(*version, purpose)

    def count_images(self, manifest: Manifest, purpose: Purpose, count: int) -> None:
        self.images.labels(*_labels(manifest), purpose).inc(count)

    def count_feedback(self, campaign: str, version: int, round_no: int, correct: bool) -> None:
        """Feedback comes long after its prediction: these series outlive the version in memory.

        Those of the versions that were told of last are kept. Call it from one thread only.
        """
        told_of = campaign, str(version), str(round_no)
        self._told_of[told_of] = None
        self._told_of.move_to_end(told_of)
        self.feedback.labels(*told_of, str(correct).lower()).inc()
        if len(self._told_of) > FEEDBACK_VERSIONS:
            oldest, _ = self._told_of.popitem(last=False)
            for value in ("true", "false"):
                self.feedback.remove(*oldest, value)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)


def _labels(manifest: Manifest) -> tuple[str, str, str]:
    return manifest.campaign, str(manifest.version), str(manifest.round)
