"""Rules and alerts, by Prometheus's own tool and by what the tool cannot know."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.monitoring.files import PROMETHEUS, ROOT, RULE_FILES, alerts, metrics_in, read, recorded

CASES = sorted((Path(__file__).parent / "alerts").glob("*.yml"))
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_its_configuration_and_every_rule(debian):
    run(debian("promtool"), "check", "config", PROMETHEUS / "prometheus.yml")
    run(debian("promtool"), "check", "rules", *RULE_FILES)


def test_alertmanager_accepts_its_configuration(debian):
    run(debian("amtool"), "check-config", PROMETHEUS / "alertmanager.yml")


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_are_quiet_when_they_should(debian, cases):
    run(debian("promtool"), "test", "rules", cases)


def cases_of(alert: str) -> dict[str, list[dict]]:
    """fires, quiet, absent -> the cases of that kind."""
    kinds: dict[str, list[dict]] = {"fires": [], "quiet": [], "absent": []}
    for path in CASES:
        for case in read(path)["tests"]:
            named, kind = re.match(r"(\w+): (fires|quiet|absent)", case["name"]).groups()
            if named == alert:
                kinds[kind].append(case)
    return kinds


def metrics_given(case: dict) -> set[str]:
    return {re.match(r"\w+", series["series"])[0] for series in case["input_series"]}


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_has_a_case_in_which_it_fires_is_quiet_and_has_no_data(alert):
    kinds, read_by_alert = cases_of(alert), metrics_in(alerts()[alert]["expr"])
    assert all(kinds.values()), f"{alert} needs cases named `{alert}: fires`, `: quiet` and `: absent`"
    for kind, cases in kinds.items():
        for case in cases:
            *before, tested = case["alert_rule_test"]
            assert {check["alertname"] for check in case["alert_rule_test"]} == {alert}
            assert kind == "absent" or bool(tested["exp_alerts"]) == (kind == "fires"), case["name"]
            if kind == "fires" and "for" in alerts()[alert]:
                assert [check["exp_alerts"] for check in before] == [[]], (
                    f"{case['name']}: quiet at first, by its `for`"
                )
    # Quiet because all is well, not because nothing is known.
    assert any(metrics_given(case) >= read_by_alert for case in kinds["quiet"])


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_says_how_bad_it_is_and_what_to_do(alert):
    rule = alerts()[alert]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert len(rule["annotations"]["summary"]) < 140
    assert len(rule["annotations"]["description"]) > 60
    path, anchor = rule["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
    assert anchor == alert.lower()
    assert alert in headings, f"{path} has no section {alert}"


def test_windows_hold_at_least_four_scrapes():
    interval = int(read(PROMETHEUS / "prometheus.yml")["global"]["scrape_interval"].removesuffix("s"))
    queries = [*recorded().values(), *(rule["expr"] for rule in alerts().values())]
    windows = [match for query in queries for match in re.findall(r"\[(\d+)([smhd])\]", query)]
    assert windows
    assert all(int(number) * SECONDS[unit] >= 4 * interval for number, unit in windows)


def test_both_services_are_scraped_at_their_documented_ports():
    jobs = {job["job_name"]: job for job in read(PROMETHEUS / "prometheus.yml")["scrape_configs"]}
    assert jobs["trainer"]["static_configs"] == [{"targets": ["trainer:8003"]}]
    assert jobs["inference"]["static_configs"] == [{"targets": ["inference:8002"]}]
