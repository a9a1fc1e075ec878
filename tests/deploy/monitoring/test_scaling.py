"""How many pods KEDA wants, by what Prometheus answers to the queries of the ScaledObjects."""

import re
import subprocess

import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.inference.metrics import Metrics
from services.trainer.metrics import TrainerMetrics
from tests.deploy.manifests import of_kind, overlay

INFERENCE = 'namespace="querent", pod="inference-1"'
SECOND = 'namespace="querent", pod="inference-2"'
WORKER = 'namespace="querent", pod="trainer-1"'
CAMPAIGNS = 'namespace="querent", pod="campaigns-1"'


def scaled(name: str) -> dict:
    (found,) = (it["spec"] for it in of_kind(overlay("gpu"), "ScaledObject") if it["metadata"]["name"] == name)
    return found


def metadata(name: str) -> dict:
    """Of the trigger, which has this name in one of the ScaledObjects."""
    (found,) = (
        trigger["metadata"]
        for it in of_kind(overlay("gpu"), "ScaledObject")
        for trigger in it["spec"]["triggers"]
        if trigger["name"] == name
    )
    return found


def tasks(pod: str, queued: str, running: str) -> dict[str, str]:
    return {f'al_tasks{{{pod}, state="queued"}}': queued, f'al_tasks{{{pod}, state="running"}}': running}


def queue(pod: str, seconds: str, images: str) -> dict[str, str]:
    return {f"inference_queue_seconds_sum{{{pod}}}": seconds, f"inference_queue_seconds_count{{{pod}}}": images}


# Trigger, what Prometheus has scraped every 15 s, and the value after ten minutes; None: nothing is known.
CASES = {
    "nothing to do": ("tasks", tasks(CAMPAIGNS, "0x40", "0x40"), 0),
    "work, and no worker yet": ("tasks", tasks(CAMPAIGNS, "1x40", "0x40"), 1),
    "a running round, and nothing in the queue": (
        "tasks",
        tasks(CAMPAIGNS, "0x40", "1x40") | tasks(WORKER, "0x40", "1x40"),
        1,
    ),
    "a task that has just been begun is one task": (
        "tasks",
        tasks(CAMPAIGNS, "1x40", "0x40") | tasks(WORKER, "0x40", "1x40"),
        1,
    ),
    "two campaigns and five cells": ("tasks", tasks(CAMPAIGNS, "5x40", "2x40"), 7),
    "pods that are not to be seen": ("tasks", tasks(CAMPAIGNS, "0x4 stale", "1x4 stale"), None),
    "images that wait for two replicas": (
        "pending",
        {f"inference_queue_depth{{{INFERENCE}}}": "100x40", f"inference_queue_depth{{{SECOND}}}": "60x40"},
        160,
    ),
    "no replica is to be seen": ("pending", {}, None),
    "a quarter of a second in the queue": ("queue-seconds", queue(INFERENCE, "0+0.25x40", "0+1x40"), 0.25),
    "no calls": ("queue-seconds", queue(INFERENCE, "7x40", "35x40"), 0),
    "no replica is to be asked": ("queue-seconds", {}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_queries_say_how_much_there_is_to_do_and_nothing_when_nothing_is_known(debian, tmp_path, case):
    trigger, series, value = CASES[case]
    expected = [] if value is None else [{"labels": "{}", "value": value}]
    test = {
        "interval": "15s",
        # `up` of somebody else: promtool wants a series.
        "input_series": [{"series": k, "values": v} for k, v in {"up": "1x40", **series}.items()],
        "promql_expr_test": [{"expr": metadata(trigger)["query"], "eval_time": "10m", "exp_samples": expected}],
    }
    file = tmp_path / "case.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run([debian("promtool"), "test", "rules", file], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_where_prometheus_knows_nothing_nothing_is_scaled():
    """Without the option no answer counts as 0, and a fallback would be a number of pods of its own."""
    for it in of_kind(overlay("gpu"), "ScaledObject"):
        assert "fallback" not in it["spec"]
        for trigger in it["spec"]["triggers"]:
            assert trigger["metadata"]["ignoreNullValues"] == "false"
            assert "vector(" not in trigger["metadata"]["query"]


def test_a_running_round_is_never_scaled_away():
    trainer = scaled("querent-trainer")
    behaviour = trainer["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behaviour["scaleDown"] == {"selectPolicy": "Disabled"}
    assert trainer["minReplicaCount"] == 0
    assert trainer["cooldownPeriod"] >= 300
    # For each task a worker, so that one is there for as long as one task is.
    assert metadata("tasks")["threshold"] == "1"
    assert metadata("tasks")["activationThreshold"] == "0"


def test_who_is_scaled_has_no_number_of_its_own():
    scaled_ones = {it["spec"]["scaleTargetRef"]["name"] for it in of_kind(overlay("gpu"), "ScaledObject")}
    assert scaled_ones == {"querent-inference", "querent-trainer"}
    for it in of_kind(overlay("gpu"), "Deployment"):
        assert ("replicas" in it["spec"]) is (it["metadata"]["name"] not in scaled_ones)


def test_scalers_ask_for_metrics_that_the_services_export():
    registry = CollectorRegistry()
    TrainerMetrics(registry)
    exported = {s for collector in (registry, Metrics().registry) for m in collector.collect() for s in _series(m)}
    asked = {
        name
        for trigger in ("tasks", "pending", "queue-seconds")
        for name in re.findall(r"\b(?:inference|al)_\w+", metadata(trigger)["query"])
    }
    assert len(asked) == 4
    assert asked <= exported


def _series(metric):
    histogram = {f"{metric.name}_sum", f"{metric.name}_count", f"{metric.name}_bucket"}
    return {"histogram": histogram, "counter": {f"{metric.name}_total"}}.get(metric.type, {metric.name})
