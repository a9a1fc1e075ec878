"""Triton's counters under Triton's names and labels, so that its dashboards and autoscaling rules work as they are.

Names and meanings: Triton's docs/user_guide/metrics.md. Read from Statistics when Prometheus asks, at no cost a call.
"""

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from services.inference.statistics import REASONS, Duration, Statistics

_Value = Callable[[Statistics], float]


def _us(of: Callable[[Statistics], Duration]) -> _Value:
    return lambda statistics: of(statistics).ns / 1000


_COUNTERS: tuple[tuple[str, str, _Value], ...] = (
    ("nv_inference_request_success", "Requests that were answered.", lambda s: s.success.count),
    ("nv_inference_count", "Images that were answered.", lambda s: s.inference_count),
    ("nv_inference_exec_count", "Runs of the network.", lambda s: s.execution_count),
    ("nv_inference_request_duration_us", "Microseconds of answered requests.", _us(lambda s: s.success)),
    ("nv_inference_queue_duration_us", "Microseconds that requests waited for a run.", _us(lambda s: s.queue)),
    ("nv_inference_compute_input_duration_us", "Microseconds of joining inputs.", _us(lambda s: s.compute_input)),
    ("nv_inference_compute_infer_duration_us", "Microseconds of runs.", _us(lambda s: s.compute_infer)),
    ("nv_inference_compute_output_duration_us", "Microseconds of handing out.", _us(lambda s: s.compute_output)),
)


class TritonCounters(Collector):
    """One series for each model version in memory."""

    def __init__(self) -> None:
        self._statistics: dict[tuple[str, str], Statistics] = {}

    def add(self, model: str, version: str, statistics: Statistics) -> None:
        self._statistics[model, version] = statistics

    def remove(self, model: str, version: str) -> None:
        self._statistics.pop((model, version), None)

    def collect(self) -> Iterator[Metric]:
        # A copy: versions come and go on the event loop while the metrics thread reads.
        now = dict(self._statistics)
        for name, text, value in _COUNTERS:
            metric = _untyped(name, text)
            for (model, version), statistics in now.items():
                metric.add_sample(name, {"model": model, "version": version}, value(statistics))
            yield metric
        failures = _untyped("nv_inference_request_failure", "Requests that failed, by reason.")
        pending = Metric("nv_inference_pending_request_count", "Requests that wait for a run.", "gauge")
        for (model, version), statistics in now.items():
            labels = {"model": model, "version": version}
            for reason in REASONS:
                failures.add_sample(failures.name, {**labels, "reason": reason}, statistics.failures[reason])
            pending.add_sample(pending.name, labels, statistics.pending)
        yield from (failures, pending)


def _untyped(name: str, text: str) -> Metric:
    """The client library would add `_total` to the name of a counter, and Triton's names have none."""
    return Metric(name, text, "unknown")
