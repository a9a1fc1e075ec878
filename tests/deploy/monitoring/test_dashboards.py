"""Dashboards against Grafana's model of them, as far as that can be told without a Grafana."""

import json
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard as GrafanaDashboard

from scripts.dashboards.__main__ import DASHBOARDS, outdated, text
from scripts.dashboards.panels import PLUGIN_VERSION
from tests.deploy.monitoring.files import GRAFANA, PROMETHEUS, ROOT, dashboards, panels, read, recorded

NAMES = sorted(dashboards())
KINDS = {"barchart", "stat", "table", "timeseries", "xychart"}
# From @grafana/data's valueFormats: a unit that Grafana does not know is written behind the number.
UNITS = {"none", "short", "percent", "percentunit", "s", "bytes", "mbytes", "reqps"}
TRANSFORMATIONS = {"merge", "organize", "convertFieldType", "sortBy", "partitionByValues", "groupingToMatrix"}
# Fields that Grafana 11.6 reads and its schema leaves out: of the Prometheus data source's annotations, and what the
# variable's editor shows.
NOT_IN_THE_SCHEMA = {
    "annotations.list.step",
    "annotations.list.titleFormat",
    "annotations.list.textFormat",
    "annotations.list.tagKeys",
    "annotations.list.useValueForTime",
    "templating.list.definition",
}


def all_panels():
    return [
        pytest.param(name, panel, id=f"{name}: {panel['title']}")
        for name, dashboard in dashboards().items()
        for panel in panels(dashboard)
    ]


def test_what_is_committed_is_what_the_generator_writes():
    assert sorted(DASHBOARDS) == NAMES
    assert not outdated(), "run: python -m scripts.dashboards"


def test_the_generator_writes_the_same_in_every_process():
    program = "from scripts.dashboards.__main__ import *; print(''.join(map(text, DASHBOARDS.values())), end='')"
    again = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert again.stdout == "".join(map(text, DASHBOARDS.values()))


@pytest.mark.parametrize("name", NAMES)
def test_grafanas_own_types_keep_all_of_it(name):
    """What its types for 11.6 do not know they leave out, and a value of another kind they change."""
    plugins.register_default_plugins()
    kept = json.loads(JSONEncoder().encode(GrafanaDashboard.from_json(dashboards()[name])))
    assert set(changed(dashboards()[name], kept)) <= NOT_IN_THE_SCHEMA


def changed(ours, kept, path=()):
    """Where something of ours is gone or is another value."""
    if isinstance(ours, dict) and isinstance(kept, dict):
        for key, value in ours.items():
            yield from changed(value, kept[key], (*path, key)) if key in kept else [".".join((*path, key))]
    elif isinstance(ours, list) and isinstance(kept, list) and len(ours) == len(kept):
        for value, other in zip(ours, kept, strict=True):
            yield from changed(value, other, path)
    elif ours != kept:
        yield ".".join(path)


def test_grafanas_own_types_are_of_the_version_that_compose_runs():
    image = read(ROOT / "docker-compose.yml")["services"]["grafana"]["image"]
    assert version("grafana-foundation-sdk").partition("!")[2].startswith("11.6.")
    assert image.startswith("grafana/grafana:11.6.")
    assert PLUGIN_VERSION.startswith("11.6.")


def test_a_chart_by_round_names_its_axes_as_the_answer_does():
    """Renamed fields have one name for all lines up to Grafana 12.1, and none that is found from 12.2 on."""
    charts = [panel for board in dashboards().values() for panel in panels(board) if panel["type"] == "xychart"]
    assert charts
    for panel in charts:
        (series,) = panel["options"]["series"]
        assert series["y"]["matcher"] == {"id": "byName", "options": "Value"}
        (target,) = panel["targets"]  # of several queries each value has a name of its own
        assert series["x"]["matcher"]["options"] in target["expr"]
        assert not any(it["options"].get("renameByName") for it in panel["transformations"])


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_has_what_grafana_needs_to_take_it(name):
    dashboard = dashboards()[name]
    assert dashboard["uid"] == f"querent-{name}"
    assert len(dashboard["uid"]) <= 40
    assert "id" not in dashboard  # Grafana gives it; another one's would be overwritten
    assert dashboard["schemaVersion"] >= 36  # from then on data sources are objects
    assert dashboard["templating"]["list"][0]["name"] == "datasource"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(dashboard)]
    assert len(set(titles)) == len(titles)


def test_uids_and_titles_of_dashboards_differ():
    for key in ("uid", "title"):
        assert len({dashboard[key] for dashboard in dashboards().values()}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_panels_lie_in_the_grid_and_on_no_other_panel(name):
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboards()[name]["panels"]:
        place = panel["gridPos"]
        assert place["w"] > 0
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_every_query_asks_the_chosen_data_source(name):
    dashboard = dashboards()[name]
    asked = [panel["datasource"] for panel in panels(dashboard)]
    asked += [target["datasource"] for panel in panels(dashboard) for target in panel["targets"]]
    asked += [v["datasource"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    asked += [a["datasource"] for a in dashboard["annotations"]["list"] if not a.get("builtIn")]
    assert asked
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in asked)


@pytest.mark.parametrize(("name", "panel"), all_panels())
def test_a_panel_says_what_it_shows_in_which_unit_and_what_an_empty_one_means(name, panel):
    assert panel["type"] in KINDS
    assert len(panel["description"]) > 10
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] in UNITS
    assert defaults["noValue"]
    steps = defaults["thresholds"]["steps"]
    assert steps[0]["value"] is None  # Grafana's "from below everything"
    values = [step["value"] for step in steps[1:]]
    assert values == sorted(values)
    assert {it["id"] for it in panel["transformations"]} <= TRANSFORMATIONS
    refs = [target["refId"] for target in panel["targets"]]
    assert refs == [chr(ord("A") + i) for i in range(len(refs))]
    assert all(target["instant"] != target["range"] for target in panel["targets"])
    # Panels that draw a table ask for one, and only they.
    as_table = panel["type"] in {"barchart", "table", "xychart"}
    assert all((target["format"] == "table") == as_table for target in panel["targets"])


@pytest.mark.parametrize("name", NAMES)
def test_variables_in_queries_are_variables_of_the_dashboard(name):
    known = {variable["name"] for variable in dashboards()[name]["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboards()[name])))
    assert used - known <= {"__rate_interval", "__all", "1"}  # "$1": of label_replace
    assert known <= used


def test_windows_hold_at_least_four_scrapes():
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                for window in re.findall(r"\[([^\]]+)\]", target["expr"]):
                    assert window in {"$__rate_interval", "15m", "1h", "1d"}, (name, panel["title"], window)
    # $__rate_interval is four times what the data source says the scrape interval is.
    source = read(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"][0]
    scraped = read(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def test_prometheus_can_parse_every_query(debian, tmp_path):
    queries = [
        target["expr"].replace("$__rate_interval", "1m")
        for dashboard in dashboards().values()
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]
    queries += [a["expr"] for d in dashboards().values() for a in d["annotations"]["list"] if "expr" in a]
    rules = [{"record": f"panel:{i}", "expr": query} for i, query in enumerate(queries)]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([debian("promtool"), "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_recorded_series_in_queries_are_recorded():
    used = set(re.findall(r"\b[a-z_]+:[a-z_]+:[a-z0-9_]+", json.dumps(dashboards())))
    assert used
    assert used <= set(recorded())


def test_provisioning_names_the_data_source_and_reads_a_folder():
    (source,) = read(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = read(GRAFANA / "provisioning" / "dashboards" / "querent.yml")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
