"""What lies in deploy/ about monitoring, read."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
GRAFANA = ROOT / "deploy" / "grafana"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
# Of metrics, as they stand in queries; the rest of a query is functions and labels.
METRIC = re.compile(r"(?<![\w:])(?:(?:al|inference|nv_inference|process|python|DCGM_FI_DEV)_\w+|up)(?![\w:])")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@lru_cache(maxsize=1)
def _rules() -> list[dict[str, Any]]:
    return [rule for path in RULE_FILES for group in read(path)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in _rules() if "alert" in rule}


def recorded() -> dict[str, str]:
    """Name of the series -> its query."""
    return {rule["record"]: rule["expr"] for rule in _rules() if "record" in rule}


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Without the rows that only hold titles."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def metrics_in(query: str) -> set[str]:
    """Names of the metrics that a query reads, by way of recorded series too."""
    names = set(METRIC.findall(_without_strings_and_labels(query)))
    for series, expr in recorded().items():
        if series in query:
            names |= metrics_in(expr)
    return names


def _without_strings_and_labels(query: str) -> str:
    bare = re.sub(r'"[^"]*"', '""', query)
    return re.sub(r"\{[^}]*\}|\b(?:by|on|ignoring|group_left)\s*\([^)]*\)", "", bare)
