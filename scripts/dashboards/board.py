"""A dashboard: rows of panels, variables and annotations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.dashboards.panels import DATASOURCE, Json, Panel

# Of Grafana 11; later ones read it and migrate.
SCHEMA_VERSION = 39
_COLUMNS = 24


@dataclass(frozen=True)
class Row:
    """Panels side by side, all as wide and as high as each other."""

    title: str
    height: int
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Variable:
    """Values of a label, chosen at the top of the page; all of them at first."""

    name: str
    label: str
    query: str


@dataclass(frozen=True)
class Annotation:
    name: str
    expr: str
    title: str
    color: str


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()
    annotations: Sequence[Annotation] = ()
    since: str = "now-6h"

    def json(self) -> Json:
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": ["querent"],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,  # one crosshair for all panels
            "refresh": "30s",
            "time": {"from": self.since, "to": "now"},
            "timezone": "browser",
            "links": [_LINKS],
            "templating": {"list": [_DATASOURCES, *map(_variable, self.variables)]},
            "annotations": {"list": [_BUILT_IN, *map(_annotation, self.annotations)]},
            "panels": _placed(self.rows),
        }


def _placed(rows: Sequence[Row]) -> list[Json]:
    placed: list[Json] = []
    y = 0
    for row in rows:
        title = {"type": "row", "title": row.title, "collapsed": False, "panels": []}
        placed.append({"id": len(placed) + 1, **title, "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1}})
        y += 1
        width = _COLUMNS // len(row.panels)
        for i, panel in enumerate(row.panels):
            placed.append(panel.json(len(placed) + 1, i * width, y, width, row.height))
        y += row.height
    return placed


_DATASOURCES: Json = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "hide": 0,
    "refresh": 1,
    "regex": "",
    "multi": False,
    "includeAll": False,
    "options": [],
    "current": {},
}

_BUILT_IN: Json = {
    "builtIn": 1,
    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
    "enable": True,
    "hide": True,
    "iconColor": "rgba(0, 211, 255, 1)",
    "name": "Annotations & Alerts",
    "type": "dashboard",
}

# The other dashboards of ours, with what is chosen here.
_LINKS: Json = {
    "type": "dashboards",
    "title": "Querent",
    "tags": ["querent"],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "icon": "external link",
    "targetBlank": False,
    "tooltip": "",
    "url": "",
}


def _variable(variable: Variable) -> Json:
    everything: dict[str, Any] = {"selected": True, "text": ["All"], "value": ["$__all"]}
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": variable.query,
        "query": {"qryType": 1, "query": variable.query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,  # when the time range changes
        "regex": "",
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "hide": 0,
        "options": [],
        "current": everything,
    }


def _annotation(annotation: Annotation) -> Json:
    return {
        "name": annotation.name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": annotation.color,
        "expr": annotation.expr,
        "step": "60s",
        "titleFormat": annotation.title,
        "textFormat": "",
        "tagKeys": "",
        "useValueForTime": False,
    }
