"""Triton's counters as Prometheus reads them."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from services.inference.statistics import Statistics
from services.inference.triton_counters import TritonCounters

# Triton's docs/user_guide/metrics.md; the failures have a label `reason` besides.
NAMES = {
    "nv_inference_request_success",
    "nv_inference_request_failure",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_request_duration_us",
    "nv_inference_queue_duration_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_output_duration_us",
    "nv_inference_pending_request_count",
}


def exposed(counters: TritonCounters) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    registry = CollectorRegistry()
    registry.register(counters)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def test_every_name_stands_there_as_triton_writes_it() -> None:
    counters = TritonCounters()
    counters.add("cats", "3", Statistics())
    assert {name for name, _ in exposed(counters)} == NAMES


def test_values_are_those_of_the_statistics_in_triton_s_units() -> None:
    counters, statistics = TritonCounters(), Statistics()
    counters.add("cats", "3", statistics)
    statistics.ran(images=6, requests=2, input_ns=1_000, infer_ns=5_000_000, output_ns=2_000)
    statistics.ended(1_000, None)
    statistics.failures["REJECTED"] += 1
    values = exposed(counters)
    version = (("model", "cats"), ("version", "3"))
    assert values["nv_inference_count", version] == 6
    assert values["nv_inference_exec_count", version] == 1
    assert values["nv_inference_compute_infer_duration_us", version] == 2 * 5_000
    assert values["nv_inference_request_success", version] == 1
    assert values["nv_inference_request_failure", (("model", "cats"), ("reason", "REJECTED"), version[1])] == 1


def test_the_series_of_a_version_end_with_it() -> None:
    counters = TritonCounters()
    counters.add("cats", "3", Statistics())
    counters.add("cats", "4", Statistics())
    counters.remove("cats", "3")
    assert {dict(labels)["version"] for _, labels in exposed(counters)} == {"4"}
