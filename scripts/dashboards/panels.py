"""Grafana's panels as plain dictionaries, with what every panel of ours has: a unit, a description, a no-data text.

Written for the models of Grafana 11.6 and later. Plain dictionaries: the tests read them with Grafana's own types for
11.6 (grafana-foundation-sdk), which its builders would make of them too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
# Grafana converts the XY charts of plugins before 11.1 to the present model, and so would break these.
PLUGIN_VERSION = "11.6.0"
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"


@dataclass(frozen=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """Without its place, which the layout gives it."""

    type: str
    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    no_data: str
    # One value for each series now, as a table; else values over time.
    instant: bool = False
    custom: Json = field(default_factory=dict)
    options: Json = field(default_factory=dict)
    # Value -> colour from there on; the first counts from below everything.
    thresholds: Mapping[float | None, str] = field(default_factory=lambda: {None: GREEN})
    color: str = "palette-classic"
    minimum: float | None = None
    maximum: float | None = None
    decimals: int | None = None
    mappings: Sequence[Json] = ()
    overrides: Sequence[Json] = ()
    transformations: Sequence[Json] = ()

    def json(self, panel_id: int, x: int, y: int, width: int, height: int) -> Json:
        return {
            "id": panel_id,
            "type": self.type,
            "title": self.title,
            "description": self.description,
            "gridPos": {"x": x, "y": y, "w": width, "h": height},
            "datasource": DATASOURCE,
            "pluginVersion": PLUGIN_VERSION,
            "targets": [self._target(*numbered) for numbered in enumerate(self.queries)],
            "fieldConfig": {"defaults": self._defaults(), "overrides": list(self.overrides)},
            "options": self.options,
            "transformations": list(self.transformations),
        }

    def _target(self, position: int, query: Query) -> Json:
        return {
            "refId": chr(ord("A") + position),
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "format": "table" if self.instant else "time_series",
            "instant": self.instant,
            "range": not self.instant,
        }

    def _defaults(self) -> Json:
        steps = [{"value": value, "color": color} for value, color in self.thresholds.items()]
        defaults: Json = {
            "unit": self.unit,
            "noValue": self.no_data,
            "color": {"mode": self.color},
            "thresholds": {"mode": "absolute", "steps": steps},
            "mappings": list(self.mappings),
            "custom": self.custom,
        }
        for name, value in (("min", self.minimum), ("max", self.maximum), ("decimals", self.decimals)):
            if value is not None:
                defaults[name] = value
        return defaults


# ---- kinds -------------------------------------------------------------------------------------------


def lines(title: str, description: str, queries: Sequence[Query], unit: str, no_data: str, **more: Any) -> Panel:
    """Values over time. `steps`: a value that holds until the next one. `stacked`: parts of a sum."""
    steps, stacked = more.pop("steps", False), more.pop("stacked", False)
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if steps else "linear",
        "lineWidth": 2,
        "fillOpacity": 30 if stacked else 0,
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if "thresholds" in more else "off"},
    }
    options = {"legend": _legend(["lastNotNull"]), "tooltip": {"mode": "multi", "sort": "desc"}}
    return Panel("timeseries", title, description, queries, unit, no_data, custom=custom, options=options, **more)


def stat(title: str, description: str, query: Query, unit: str, no_data: str, **more: Any) -> Panel:
    """One number for each series, now."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": more.pop("graph", "none"),
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "value_and_name" if query.legend else "auto",
    }
    more.setdefault("color", "thresholds")
    return Panel("stat", title, description, [query], unit, no_data, options=options, **more)


def by_round(title: str, description: str, query: Query, unit: str, no_data: str, **more: Any) -> Panel:
    """A line for each campaign over the number of the round."""
    return _xy(title, description, query, "round", "Round", unit, no_data, more)


def against_labels(title: str, description: str, query: Query, unit: str, no_data: str, **more: Any) -> Panel:
    """A line for each campaign over the label `labels` of the query: how many labels its rounds had."""
    return _xy(title, description, query, "labels", "Labels", unit, no_data, more)


def _xy(title: str, description: str, query: Query, x: str, x_label: str, unit: str, no_data: str, more: Json) -> Panel:
    custom = {
        "show": "points+lines",
        "pointSize": {"fixed": 6},
        "lineWidth": 2,
        "axisLabel": title,
        "axisPlacement": "auto",
    }
    options = {
        "mapping": "auto",
        # The answer's own names. A renamed field would call every line the same up to Grafana 12.1, and be found under
        # no name from 12.2 on; a plain `Value` is called by what the rows were parted by.
        "series": [{"x": {"matcher": _by_name(x)}, "y": {"matcher": _by_name("Value")}}],
        "legend": _legend([]),
        "tooltip": {"mode": "single", "sort": "none"},
    }
    axis = {
        "matcher": _by_name(x),
        "properties": [
            {"id": "unit", "value": "none"},
            {"id": "decimals", "value": 0},
            {"id": "custom.axisLabel", "value": x_label},
        ],
    }
    transformations = [
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": {}}},
        # Labels are strings, and "10" comes before "9".
        {"id": "convertFieldType", "options": {"conversions": [{"targetField": x, "destinationType": "number"}]}},
        {"id": "sortBy", "options": {"sort": [{"field": x, "desc": False}]}},
        {
            "id": "partitionByValues",
            "options": {"fields": ["campaign"], "keepFields": False, "naming": {"asLabels": True}},
        },
    ]
    kept = {"custom": custom, "options": options, "overrides": [axis], "transformations": transformations}
    return Panel("xychart", title, description, [query], unit, no_data, instant=True, **kept, **more)


def bars(title: str, description: str, query: Query, rows: str, columns: str, unit: str, no_data: str) -> Panel:
    """A bar for each value of the label `rows`, in a colour for each value of `columns`."""
    options = {
        "orientation": "auto",
        "xField": f"{rows}\\{columns}",  # as the transformation names it
        "stacking": "none",
        "showValue": "auto",
        "legend": _legend([]),
        "tooltip": {"mode": "multi", "sort": "none"},
    }
    matrix = {"columnField": columns, "rowField": rows, "valueField": "Value", "emptyValue": "zero"}
    return Panel(
        "barchart",
        title,
        description,
        [query],
        unit,
        no_data,
        instant=True,
        custom={"fillOpacity": 80, "lineWidth": 1},
        options=options,
        transformations=[{"id": "groupingToMatrix", "options": matrix}],
        minimum=0,
    )


def table(
    title: str, description: str, columns: Mapping[str, tuple[Query, str]], no_data: str, drop: Sequence[str] = ()
) -> Panel:
    """A row for each set of labels; `columns`: name -> query and unit. `drop`: labels that say nothing here."""
    queries = [query for query, _ in columns.values()]
    renamed = (
        {f"Value #{chr(ord('A') + i)}": name for i, name in enumerate(columns)}
        if len(columns) > 1
        else {"Value": next(iter(columns))}
    )
    units = [
        {"matcher": _by_name(name), "properties": [{"id": "unit", "value": unit}]}
        for name, (_, unit) in columns.items()
    ]
    hidden = dict.fromkeys(("Time", *drop), True)
    transformations = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "indexByName": {}, "renameByName": renamed}},
    ]
    options = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": [], "fields": ""}}
    custom = {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True}
    kept = {"custom": custom, "options": options, "overrides": units, "transformations": transformations}
    return Panel("table", title, description, queries, "none", no_data, instant=True, color="thresholds", **kept)


def _by_name(name: str) -> Json:
    return {"id": "byName", "options": name}


def _legend(calculations: Sequence[str]) -> Json:
    return {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": list(calculations)}
