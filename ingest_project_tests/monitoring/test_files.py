"""The committed dashboards, rules and table of metrics are current, and use metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ingest_project.operations.metrics import ALL_METRICS
from ingest_project_tests.monitoring.__main__ import ROOT, generated_files
from ingest_project_tests.monitoring.alerts import ALERTS
from ingest_project_tests.monitoring.conftest import Programs
from ingest_project_tests.monitoring.dashboards import DASHBOARDS

NAME = re.compile(r"\b(?:ingest|poller)_\w+")
MATCHER = re.compile(r"(\w+)(?:=~|!~|!=|=)\"")
GROUPED = re.compile(r"by \(([^)]*)\)")
LABELS_OF = {sample: set(metric.labels) for metric in ALL_METRICS for sample in metric.samples}


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every expression of the committed files, with where it is."""
    for path in sorted((ROOT / "deploy" / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel["targets"]:
                yield f"{path.name}: {panel['title']}", target["expr"]
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text("utf-8"))
    for rule in rules["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize("path", sorted(generated_files()), ids=lambda path: path.name)
def test_the_committed_file_equals_the_generated_one(path: Path) -> None:
    assert path.read_text("utf-8") == generated_files()[path], "Run: make monitoring-files"


@pytest.mark.parametrize(("where", "expr"), sorted(expressions()))
def test_dashboards_and_rules_use_series_and_labels_that_exist(where: str, expr: str) -> None:
    names = NAME.findall(expr)
    assert set(names) <= LABELS_OF.keys(), where
    known = {"le", "job", "instance"}.union(*(LABELS_OF[name] for name in names))
    assert set(MATCHER.findall(expr)) <= known, where
    grouped = {label.strip() for labels in GROUPED.findall(expr) for label in labels.split(",") if label.strip()}
    assert grouped <= known, where


def test_every_metric_is_on_a_dashboard() -> None:
    shown = " ".join(expr for where, expr in expressions() if ".json" in where)
    missing = [
        metric.name for metric in ALL_METRICS if not any(re.search(rf"\b{name}\b", shown) for name in metric.samples)
    ]
    assert missing == []


def test_every_metric_has_a_unit_and_one_definition() -> None:
    assert all(metric.unit and metric.meaning.endswith(".") for metric in ALL_METRICS)
    assert len({metric.name for metric in ALL_METRICS}) == len(ALL_METRICS)
    for metric in ALL_METRICS:
        if metric.name.endswith(("_seconds", "_bytes")):
            assert metric.unit == metric.name.rpartition("_")[2]


def test_panels_do_not_overlap_and_every_dashboard_has_an_address_of_its_own() -> None:
    uids = set()
    for name in DASHBOARDS:
        dashboard: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / f"{name}.json").read_text("utf-8"))
        uids.add(dashboard["uid"])
        cells = [
            (x, y)
            for panel in dashboard["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24
    assert len(uids) == len(DASHBOARDS)


def test_the_page_that_a_rule_names_exists() -> None:
    for alert in ALERTS:
        path, _, anchor = alert.rule["annotations"]["runbook"].partition("#")
        assert (ROOT / path).is_file(), alert.name
        assert not anchor or f"## {anchor}" in (ROOT / path).read_text("utf-8").lower()


def test_the_configurations_of_prometheus_differ_in_the_place_of_the_token_alone() -> None:
    example, compose = (
        yaml.safe_load((ROOT / "deploy" / folder / "prometheus.yml").read_text("utf-8"))
        for folder in ("prometheus", "compose")
    )
    for configuration in (example, compose):
        token = configuration["scrape_configs"][0]["authorization"].pop("credentials_file")
        assert token.startswith("/")
    assert example == compose


def test_promtool_accepts_rules_and_each_alert_fires_when_it_should_and_not_otherwise(prometheus: Programs) -> None:
    folder = ROOT / "deploy" / "prometheus"
    for command in (("check", "rules", "rules.yml"), ("test", "rules", "rules_test.yml")):
        done = subprocess.run([prometheus.promtool, *command], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    tested = yaml.safe_load((folder / "rules_test.yml").read_text("utf-8"))["tests"]
    expected = {alert.name: {True, False} for alert in ALERTS}
    assert expected == {
        name: {
            bool(rule["exp_alerts"]) for test in tested for rule in test["alert_rule_test"] if rule["alertname"] == name
        }
        for name in expected
    }
