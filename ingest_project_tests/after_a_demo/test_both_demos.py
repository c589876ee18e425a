"""`make demo`: one command takes every sample to its end, and a second demo finds them there.

These tests come before those that change what is stored.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import urlsplit

import pytest

from ingest_project.cli.main import run
from ingest_project.devstack.dagster_processes import query_webserver
from ingest_project_tests.after_a_demo.finished_demo import REPOSITORY, Demo, whole_demo
from ingest_project_tests.examples.test_demo import CRM, FATES, FILES, TWINS

pytestmark = pytest.mark.timeout(900)

# Three of the ten files are refused, which is more than the fifth that is allowed by default.
CHECKS = {
    "nothing_waits_too_long": "SUCCEEDED",
    "rows_add_up": "SUCCEEDED",
    "quarantine_share_acceptable": "FAILED",
    "every_event_accounted": "SUCCEEDED",
    "stored_results_match": "SUCCEEDED",
    "nothing_overdue": "SUCCEEDED",
    "dead_share_acceptable": "SUCCEEDED",
    "no_gap_in_offsets": "SUCCEEDED",
    "no_duplicate_offsets": "SUCCEEDED",
    "event_time_plausible": "SUCCEEDED",
    "amounts_and_probabilities_in_range": "SUCCEEDED",
    "budgets_in_range": "SUCCEEDED",
}
# Name to attempts and replays: the server does not have the last one at first.
ATTACHMENTS = {
    "damage_report.pdf": (1, 0),
    "photo.png": (1, 0),
    "invoice_lines.csv": (1, 0),
    "signed_contract.pdf": (2, 1),
}
# Of 242 messages one is no event and one was delivered twice; a late one is counted in its hour.
EVENTS, DELIVERIES = 240, 241
HOURS = {"2026-01-15T09": 86, "2026-01-15T10": 72, "2026-01-15T11": 82}
EVALUATION_SECONDS = 60.0
EVALUATIONS = """{ assetNodes { assetChecksOrError { ... on AssetChecks { checks {
    name executionForLatestMaterialization { status } } } } } }"""

Ask = Callable[..., Any]


@pytest.fixture
def ask(demo: Demo, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Ask a command about the running system; its JSON."""

    def answer(*arguments: str) -> Any:  # noqa: ANN401 - JSON
        capsys.readouterr()
        with mock.patch.dict(os.environ, demo.environment):
            assert run([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return answer


def test_the_demo_takes_every_file_and_every_attachment_to_its_end(demo: Demo) -> None:
    report = demo.report
    fates = {file.file_name: file.state for file in report.files}
    assert sorted(str(fates.pop(twin)) for twin in TWINS) == ["duplicate", "ingested"]
    assert fates == FATES
    assert demo.file("some_bad_rows.csv").rows_quarantined > 0
    assert report.metrics
    assert {one.file_name: (one.attempts, one.replays) for one in report.attachments} == ATTACHMENTS
    for one in report.attachments:
        assert one.stored_path is not None
        sample = REPOSITORY / "dummy_data/attachments" / one.file_name
        assert Path(one.stored_path).read_bytes() == sample.read_bytes()
    assert "404" in str(demo.attachment("signed_contract.pdf").failure)


def test_the_demo_stores_both_streams(demo: Demo) -> None:
    streams = demo.report.streams
    assert streams is not None
    activity, crm = streams.user_activity, streams.crm
    assert (activity.earlier, crm.earlier) == (False, False)
    by_hour = dict.fromkeys(HOURS, 0)
    for one in activity.hours:
        by_hour[f"{one.hour:%Y-%m-%dT%H}"] += one.events
    assert by_hour == HOURS
    assert sum(by_hour.values()) == EVENTS
    assert sum(one.deliveries for one in activity.hours) == DELIVERIES
    assert activity.dead_letters == 1
    assert {one.table: (one.messages, one.rows) for one in crm.tables} == CRM


def test_a_second_demo_finds_everything_there(demo: Demo, ask: Ask) -> None:
    assert ask("status")["idle"] is True
    # Among them `contract_holds`, as it was for whichever file came last.
    assert evaluations(demo.site).items() >= CHECKS.items()
    assert len(ask("files", "list")["files"]) == len(FILES)
    # Those of the first demo, and as many of this one: its events have traces of their own.
    stored = ask("attachments", "list", "--state", "stored")["attachments"]
    assert len({one["attachment_key"] for one in stored}) == 2 * len(ATTACHMENTS)
    assert ask("dlq", "list")["attachments"] == []
    assert len(ask("quarantine", "list")["files"]) == list(FATES.values()).count("quarantined")
    assert len(ask("crm", "unidentified", "list")["messages"]) == 1
    counted = ask("activity", "hour", "2026-01-15-09:00")["types"]
    assert sum(one["events"] for one in counted) == HOURS["2026-01-15T09"]


def test_a_second_demo_says_what_it_finds_and_where_to_look(demo: Demo) -> None:
    shown = demo.shown
    assert "already ingested" in shown
    assert "already quarantined" in shown
    assert shown.count("(already stored)") == 2
    assert "The events of users and the CRM messages had been stored by an earlier demo" in shown
    assert re.search(rf"\b{re.escape(demo.site)}\b", shown)


@pytest.mark.long
def test_a_demo_that_starts_after_the_end_of_another_finds_everything_there(tmp_path: Path) -> None:
    first, second = whole_demo(tmp_path), whole_demo(tmp_path)
    assert not any(file.earlier for file in first.files)
    assert all(file.earlier for file in second.files)
    assert [(file.file_key, file.state) for file in second.files] == [(one.file_key, one.state) for one in first.files]
    assert second.streams is not None
    assert (second.streams.user_activity.earlier, second.streams.crm.earlier) == (True, True)


def evaluations(site: str) -> dict[str, str]:
    """Return what the UI shows of each check that was evaluated, once no scheduled evaluation is going on."""
    give_up_at = time.monotonic() + EVALUATION_SECONDS
    while "IN_PROGRESS" in (found := _evaluations(site)).values() and time.monotonic() < give_up_at:
        time.sleep(0.5)
    return found


def _evaluations(site: str) -> dict[str, str]:
    nodes = query_webserver(urlsplit(site).port or 0, EVALUATIONS)["assetNodes"]
    checks = [check for node in nodes for check in node["assetChecksOrError"].get("checks", [])]
    return {
        check["name"]: check["executionForLatestMaterialization"]["status"]
        for check in checks
        if check["executionForLatestMaterialization"]
    }
