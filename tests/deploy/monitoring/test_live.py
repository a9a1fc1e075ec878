"""A real Prometheus scrapes both services during a campaign: every panel and rule gives numbers, and sensible ones."""

import math
import re
import time
from pathlib import Path

import pytest

from services.client.client import QuerentClient
from services.client.messages import Feedback
from services.common.errors import NotFound
from services.common.samples import SampleStore
from services.trainer.oracle import read_truth
from tests.deploy.monitoring.files import alerts, dashboards, metrics_in, panels, read, recorded
from tests.deploy.monitoring.live import LivePrometheus
from tests.e2e.stack import Stack, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXCEPTIONS = read(Path(__file__).parent / "exceptions.yml")
NAME = "watched-1"
TOLD = 100
SELECTOR = re.compile(r"(?<![\w:])((?:al|inference)_\w+|up)(\{[^}]*\})?(?![\w:])")


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(tmp_path_factory.mktemp("watched"))
    yield stack
    stack.end_all()


@pytest.fixture(scope="module")
def prometheus(debian, stack):
    return LivePrometheus(debian("prometheus"), stack)


@pytest.fixture(scope="module")
def services(stack, prometheus):
    """Redis, inference and the worker, which the last test ends."""
    return stack.start_redis(), stack.start_inference(), stack.start_worker()


@pytest.fixture(scope="module")
def campaign(stack, services):
    """Finished, asked for predictions and told of their truth. Six rounds: the learning curve needs four."""
    campaign = stack.start_digits(name="watched", rounds={"count": 5, "batch": 20}, random_share=0.3)
    assert campaign.name == NAME
    samples = SampleStore.open(stack.folder / "sources", stack.folder / "data", campaign.source_id)
    truth = read_truth(stack.folder / "sources", samples.source)
    ids = samples.ids("test")[:TOLD]
    with QuerentClient(f"127.0.0.1:{stack.grpc_port}") as client:
        wait_for(lambda: stack.registry.current(NAME), "the first version to be promoted")
        while stack.store.campaign(NAME).state == "running":
            ask(client, samples.encoded(ids[:16]))
            time.sleep(0.2)
        ended = stack.wait_until_at_rest(NAME)
        assert ended.state == "finished", ended.reason
        wait_for(lambda: served(client) == stack.registry.current(NAME), "the last promoted version")
        for _ in range(8):
            ask(client, samples.encoded(ids[:50]))
            time.sleep(1.1)  # a scrape between them
        answer = client.predict(samples.encoded(ids), model=NAME, with_feedback_id=True)
        told = zip(ids, answer.predictions, strict=True)
        client.feedback(Feedback(prediction.prediction_id, truth[sample], "ann") for sample, prediction in told)
        with pytest.raises(NotFound):
            client.predict(samples.encoded(ids[:1]), model="nobody")
    right = sum(p.classes[0].index == truth[sample] for sample, p in zip(ids, answer.predictions, strict=True))
    return campaign, right / TOLD


def ask(client, images):
    wait_for(lambda: any(model.name == NAME for model in client.list_models()), "inference to see the campaign")
    client.predict(images, model=NAME)


def served(client):
    return next(model.current_version for model in client.list_models() if model.name == NAME)


@pytest.fixture(scope="module")
def settled(prometheus, campaign):
    """Prometheus, once it has seen the campaign's end, and what was told after it, and the rules have run."""

    def seen():
        told = prometheus.query(f'sum(increase(inference_feedback_total{{model="{NAME}"}}[1d]))')
        return told and told[0][1] > TOLD - 1 and prometheus.query("model_version:confidence_drift:ks1h")

    wait_for(seen, "Prometheus to see all of it")
    time.sleep(3)
    return prometheus


def all_queries():
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}", panel, target
    for series, expr in recorded().items():
        yield series, None, {"expr": expr}


def test_every_panel_and_every_recorded_series_gives_numbers(settled):
    empty = set()
    for name, _, target in all_queries():
        rows = settled.query(target["expr"])
        if not rows:
            empty.add(name)
        for labels, value in rows:
            assert math.isfinite(value), (name, labels, value)
        for labels, value in rows[:1]:
            shown = ", ".join(f"{key}={value}" for key, value in labels.items() if key != "__name__")
            print(f"{name:55} {value:<12.5g} {shown}")
    assert empty == set(EXCEPTIONS["no_data"])


def test_legends_and_columns_name_labels_that_are_there(settled):
    for name, panel, target in all_queries():
        if panel is None:
            continue
        wanted = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        if panel["type"] == "xychart":
            wanted = {"campaign", panel["options"]["series"][0]["x"]["matcher"]["options"]}
        if panel["type"] == "barchart":
            (matrix,) = (it["options"] for it in panel["transformations"] if it["id"] == "groupingToMatrix")
            wanted = {matrix["rowField"], matrix["columnField"]}
        for labels, _ in settled.query(target["expr"]):
            assert wanted <= set(labels), name
            # The name of a recorded series is a column too, and rows that differ in it are never merged.
            assert target["format"] != "table" or "__name__" not in labels, name


def test_every_series_that_an_alert_looks_for_is_exported(settled):
    excepted = set(EXCEPTIONS["only_when_wrong"])
    missing = {
        name + labels
        for rule in alerts().values()
        for name, labels in SELECTOR.findall(rule["expr"])
        if not settled.query(f"last_over_time({name}{labels}[1h])")
    }
    assert missing == excepted
    for rule in alerts().values():
        for series in re.findall(r"\b[a-z_]+:[a-z_]+:[a-z0-9_]+", rule["expr"]):
            assert settled.query(series), series


def test_every_metric_is_shown_or_alerted_on_or_listed_as_internal(settled):
    exported = {
        base(name)
        for name in settled.get("label/__name__/values", **{"match[]": '{job=~"trainer|inference"}'})
        if not name.startswith(("scrape_", "ALERTS"))
    }
    read_somewhere = {base(name) for _, _, target in all_queries() for name in metrics_in(target["expr"])}
    read_somewhere |= {base(name) for rule in alerts().values() for name in metrics_in(rule["expr"])}
    internal = {base(name) for name in EXCEPTIONS["internal"]}
    assert exported - read_somewhere == internal, "show it, alert on it, or list it in exceptions.yml with the reason"
    unknown = {name for name in read_somewhere - exported if not name.startswith("DCGM_")}
    assert not unknown, "queries read metrics that no service exports"
    # Families that have no series yet, since what they count has not happened.
    families = {
        family(told["metric"])
        for job in ("trainer", "inference")
        for told in settled.get("targets/metadata", match_target=f'{{job="{job}"}}')
    }
    assert len(families) > 40
    assert families <= {family(name) for name in read_somewhere | internal}


def base(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


def family(name: str) -> str:
    """As Prometheus's metadata names it, whatever format was spoken."""
    return base(name).removesuffix("_total")


def test_the_numbers_are_those_of_the_campaign(settled, stack, campaign):
    _, live_accuracy = campaign
    rounds = {r.round_no: r.report for r in stack.store.rounds(NAME)}
    newest = max(rounds)
    accuracy = {r: rounds[r]["metrics"]["test"]["accuracy"] for r in rounds if r}
    assert settled.value("campaign:round:latest") == newest
    assert settled.value("campaign:labels:latest") == rounds[newest]["labels"] == 130
    assert settled.value("campaign:accuracy:latest") == pytest.approx(accuracy[newest])
    assert settled.value("campaign:accuracy:change") == pytest.approx(accuracy[newest] - accuracy[newest - 1])
    current = stack.registry.current(NAME)
    ((labels, value),) = settled.query("model:accuracy:serving")
    assert labels["version"] == str(current)
    assert value == pytest.approx(accuracy[current - 1])  # version N is of round N - 1
    assert settled.value("model_version:feedback_accuracy:ratio1d") == pytest.approx(live_accuracy, abs=0.03)
    ((_, _, target),) = (it for it in all_queries() if it[0] == "campaign: Accuracy")
    assert {int(labels["round"]): value for labels, value in settled.query(target["expr"])} == pytest.approx(accuracy)


def test_every_swap_is_marked_once(settled, stack):
    (swaps,) = (a for a in dashboards()["serving"]["annotations"]["list"] if a["name"] == "Swaps")
    now = time.time()
    expr = swaps["expr"].replace("$model", ".+")
    marked = settled.get("query_range", query=expr, start=now - 300, end=now, step="1")["result"]
    versions = [int(series["metric"]["version"]) for series in marked]
    # On a slow machine a version may come and go between two scrapes.
    told = settled.get("query_range", query="inference_current_version", start=now - 300, end=now, step="1")["result"]
    seen = {int(float(value)) for series in told for _, value in series["values"]}
    assert max(r.version for r in stack.store.rounds(NAME) if r.promoted) in seen
    assert set(versions) - {0} == seen - {0}
    assert len(set(versions)) == len(versions)
    # Each for the minute after its swap, so that a step of a minute meets it once.
    for series in marked:
        times = [at for at, _ in series["values"]]
        assert max(times) - min(times) <= 61, series["metric"]


def test_a_healthy_system_alerts_nobody(settled):
    # AccuracyDropped is the campaign's own luck: a few dozen labels more or less.
    assert settled.alerts() <= {"AccuracyDropped"}


def test_outages_are_seen(settled, stack, services):
    """Last: it ends the services."""
    redis, inference, worker = services
    assert stack.end(inference) == 0
    wait_for(lambda: {"InferenceGone", "TargetDown"} <= settled.alerts(), "the alert InferenceGone")
    stack.end(redis)
    wait_for(lambda: "RedisDown" in settled.alerts(), "the alert RedisDown")
    stack.store.set_state(NAME, "running", "")
    wait_for(lambda: settled.query("max(al_tasks) == 1"), "the worker to tell that there is work")
    stack.end(worker)
    wait_for(lambda: "WorkerGone" in settled.alerts(), "the alert WorkerGone")
