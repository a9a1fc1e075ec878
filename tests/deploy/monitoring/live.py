"""A real Prometheus with the committed rules, beside the real services of tests/e2e."""

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import yaml

from tests.deploy.monitoring.files import PROMETHEUS, RULE_FILES, read
from tests.e2e.stack import Stack, free_port, wait_for

# What Grafana would make of a page's queries: everything chosen, and a window that holds the whole test.
CHOSEN = {"$__rate_interval": "5m", "$campaign": ".+", "$model": ".+"}


class LivePrometheus:
    """Scrapes every second, so that a test of two minutes has what a day would have."""

    def __init__(self, program: str, stack: Stack) -> None:
        self._address = f"127.0.0.1:{free_port()}"
        path = stack.folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(self._configuration(stack)))
        storage = stack.folder / "tsdb"
        stack.start(
            "prometheus",
            program,
            f"--config.file={path}",
            f"--storage.tsdb.path={storage}",
            f"--web.listen-address={self._address}",
        )
        wait_for(self._ready, "Prometheus")

    def _configuration(self, stack: Stack) -> dict[str, Any]:
        """The committed one, with addresses of here."""
        configuration = read(PROMETHEUS / "prometheus.yml")
        addresses = {
            "trainer": f"127.0.0.1:{stack.trainer_metrics_port}",
            "inference": f"127.0.0.1:{stack.inference_metrics_port}",
            "prometheus": self._address,
        }
        for job in configuration["scrape_configs"]:
            job["static_configs"] = [{"targets": [addresses[job["job_name"]]]}]
        configuration["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        configuration["rule_files"] = [str(path) for path in RULE_FILES]
        del configuration["alerting"]
        return configuration

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=2):
                return True
        except (OSError, urllib.error.HTTPError):
            return False

    def get(self, path: str, **parameters: object) -> Any:
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series, now."""
        for name, value in CHOSEN.items():
            expr = expr.replace(name, value)
        return [(series["metric"], float(series["value"][1])) for series in self.get("query", query=expr)["result"]]

    def value(self, expr: str) -> float:
        ((_, value),) = self.query(expr)
        return value

    def alerts(self) -> set[str]:
        """Names of those that are pending or firing."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"]}
