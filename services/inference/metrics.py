"""Every metric of the inference service, and when the series of a model version begin and end."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from services.common.manifest import Manifest
from services.inference.answering import AnsweringVersions
from services.inference.statistics import Statistics
from services.inference.triton_counters import TritonCounters

Purpose = Literal["predict", "score", "embed"]
PURPOSES: tuple[Purpose, ...] = ("predict", "score", "embed")

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_CALL_SECONDS = (*_SECONDS, 60, 300, 1800)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_VERSION = ("model", "version", "round")
_Labels = tuple[str, str, str]
DROPPED = ("caller_gone", "deadline")
# Why a version was not loaded, or not in the precision that was asked for.
LOAD_FAILURES = ("manifest", "checksum", "graph", "contract", "io", "memory", "missing", "current", "variant")
# Versions that have left memory and keep their series of feedback.
FEEDBACK_VERSIONS = 64


class Metrics:
    """One set of metric objects, in a registry of its own: two servers in one process do not mix.

    Counters of few reasons begin at 0, since increase() does not see a series' first count.
    """

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
        for reason in DROPPED:
            self.dropped.labels(reason)
        self.queue_depth = self._gauge("inference_queue_depth", "Images that wait for a run.", ())
        self.queue_limit = self._gauge(
            "inference_queue_limit", "Images of Predict that may be in the service at once, for each model.", ()
        )
        self.run_seconds = self._histogram(
            "inference_run_seconds", "Seconds of one run of a network.", ("model", "version"), _SECONDS
        )
        self.images = self._counter("inference_images", "Images answered, scored or embedded.", (*_VERSION, "purpose"))
        self.model_info = self._gauge(
            "inference_model_info", "1 for each model version in memory.", (*_VERSION, "provider", "precision")
        )
        self.model_accuracy = self._gauge(
            "inference_model_accuracy", "Accuracy on the test samples, as the trainer reported it.", _VERSION
        )
        self.load_failures = self._counter(
            "inference_model_load_failures", "Model versions that could not be loaded.", ("reason",)
        )
        for reason in LOAD_FAILURES:
            self.load_failures.labels(reason)
        self.provider_fallback = self._gauge(
            "inference_provider_fallback", "1 when a GPU was asked for and the CPU is used.", ()
        )
        self.feedback = self._counter(
            "inference_feedback", "Predictions whose true class was told, once each.", (*_VERSION, "correct")
        )
        self._feedback_series = _FeedbackSeries(self.feedback)
        self.confidence = self._histogram(
            "inference_prediction_confidence",
            "Probability of the most probable class.",
            ("model", "version"),
            _CONFIDENCES,
        )

    def follow(self, answering: Callable[[], Mapping[str, int]]) -> None:
        """Tell which version answers: `answering` gives model -> version. Once."""
        self.registry.register(AnsweringVersions(answering))

    def loaded(self, manifest: Manifest, provider: str, precision: str, statistics: Statistics) -> None:
        """Begin the series of a version."""
        version = _labels(manifest)
        self._triton.add(*version[:2], statistics)
        self.model_info.labels(*version, provider, precision).set(1)
        accuracy = manifest.metrics.get("test", {}).get("accuracy")
        if accuracy is not None:
            self.model_accuracy.labels(*version).set(accuracy)
        self._feedback_series.loaded(version)

    def unloaded(self, manifest: Manifest, provider: str, precision: str) -> None:
        """End the series of a version, so that a dashboard shows only what is there; those of feedback stay a while."""
        version = _labels(manifest)
        self._triton.remove(*version[:2])
        self.model_info.remove(*version, provider, precision)
        self.model_accuracy.remove(*version)
        self.run_seconds.remove(*version[:2])
        self.confidence.remove(*version[:2])
        for purpose in PURPOSES:
            self.images.remove(*version, purpose)
        self._feedback_series.unloaded(version)

    def count_images(self, manifest: Manifest, purpose: Purpose, count: int) -> None:
        self.images_of(manifest, purpose).inc(count)

    def images_of(self, manifest: Manifest, purpose: Purpose) -> Counter:
        """To keep where every call counts."""
        return self.images.labels(*_labels(manifest), purpose)

    def count_feedback(self, campaign: str, version: int, round_no: int, correct: bool) -> None:
        """Also of a version that is not in memory. Thread-safe."""
        self._feedback_series.count((campaign, str(version), str(round_no)), correct)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)


def _labels(manifest: Manifest) -> _Labels:
    return manifest.campaign, str(manifest.version), str(manifest.round)


class _FeedbackSeries:
    """Begin at 0 with a version and outlive it in memory, since feedback comes long after its prediction (ADR 8).

    Of the versions that left memory, those that left it or were told of last keep theirs. Thread-safe: versions come
    and go in the event loop, feedback is counted beside it.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._in_memory: set[_Labels] = set()
        self._away: OrderedDict[_Labels, None] = OrderedDict()
        self._lock = threading.Lock()

    def loaded(self, version: _Labels) -> None:
        with self._lock:
            self._in_memory.add(version)
            self._away.pop(version, None)
            # A series that begins at its first count hides that one from increase().
            for correct in ("true", "false"):
                self._counter.labels(*version, correct)

    def unloaded(self, version: _Labels) -> None:
        with self._lock:
            self._in_memory.discard(version)
            self._keep(version)

    def count(self, version: _Labels, correct: bool) -> None:
        with self._lock:
            self._counter.labels(*version, str(correct).lower()).inc()
            if version not in self._in_memory:
                self._keep(version)

    def _keep(self, version: _Labels) -> None:
        self._away[version] = None
        self._away.move_to_end(version)
        if len(self._away) > FEEDBACK_VERSIONS:
            oldest, _ = self._away.popitem(last=False)
            for correct in ("true", "false"):
                self._counter.remove(*oldest, correct)
