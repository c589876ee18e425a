"""`make demo`: one command, and every file's fate is on the screen."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from examples.demo.attachments import serving
from examples.demo.report import DemoAttachment, DemoFile, DemoReport, expected_files, summaries
from examples.demo.run import SOURCE, ingest_samples, run
from examples.demo.server import FileServer
from examples.demo.streams import streaming
from ingest_project.core.settings import load_settings
from ingest_project.devstack import dagster_processes as graphql
from ingest_project.devstack.runtime_settings import child_environment
from ingest_project.devstack.supervisor import running_stack
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.warehouse import DeviceMetric
from ingest_project_tests.cli.running import wait_until_nothing_is_left

REPOSITORY = Path(__file__).parents[2]
DEMO_SECONDS = 240
DEMO = (sys.executable, "-m", "examples.demo")

FATES = {
    "lab_readings.xlsx": "ingested",
    "legacy_logger.xls": "ingested",
    "missing_column.csv": "quarantined",
    "mostly_bad_rows.csv": "quarantined",
    "not_a_workbook.xlsx": "quarantined",
    "sample_data_2.csv": "ingested",
    "sample_data_3.csv": "ingested",
    "some_bad_rows.csv": "ingested",
}
# Two files of the same content: the one that is ingested first stands for it, and Kafka keeps no order between keys.
TWINS = ("sample_data_1.csv", "the_same_as_sample_data_1.csv")
FILES = sorted((*FATES, *TWINS))

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
HOURS = {"2026-01-15T09:00:00Z": 86, "2026-01-15T10:00:00Z": 72, "2026-01-15T11:00:00Z": 82}
# Table to messages and rows: two of the records come in several versions.
CRM = {"opportunities": (5, 3), "projects": (4, 3), "unidentified_messages": (1, 1)}
EVALUATIONS = """{ assetNodes { assetChecksOrError { ... on AssetChecks { checks {
    name executionForLatestMaterialization { status } } } } } }"""


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Tests that run in parallel have a terminal's width set; output is to be as in a pipe.
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("INGEST_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KAFKA_REQUEST_TIMEOUT_SECONDS", "10")


def environment(state_dir: Path) -> dict[str, str]:
    return {**os.environ, "INGEST_STATE_DIR": str(state_dir), "INGEST_WEBSERVER_PORT": "0"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ingest_project.cli.main", *arguments]


def ask(state_dir: Path, *arguments: str) -> Any:  # noqa: ANN401 - JSON
    """What another command says of the running system."""
    answer = subprocess.run(
        command(*arguments, "--json"), cwd=REPOSITORY, env=environment(state_dir), capture_output=True, check=True
    )
    return json.loads(answer.stdout)


def evaluations(state_dir: Path) -> dict[str, str]:
    """What the UI shows of each check that was evaluated."""
    address = load_settings({"INGEST_STATE_DIR": str(state_dir)}).settings.dagster.webserver_url
    nodes = graphql.ask(urlsplit(address).port or 0, EVALUATIONS)["assetNodes"]
    checks = [check for node in nodes for check in node["assetChecksOrError"].get("checks", [])]
    return {
        check["name"]: check["executionForLatestMaterialization"]["status"]
        for check in checks
        if check["executionForLatestMaterialization"]
    }


@pytest.mark.timeout(2 * DEMO_SECONDS)
def test_the_demo_takes_every_file_to_its_end_and_a_second_one_finds_them_there(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    first = subprocess.run(
        [*DEMO, "--json"],
        cwd=REPOSITORY,
        env=environment(state_dir),
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    fates = {file["file_name"]: file["state"] for file in report["files"]}
    assert sorted(fates.pop(twin) for twin in TWINS) == ["duplicate", "ingested"]
    assert fates == FATES
    assert next(f for f in report["files"] if f["file_name"] == "some_bad_rows.csv")["rows_quarantined"] > 0
    assert report["metrics"]
    attachments = {one["file_name"]: one for one in report["attachments"]}
    assert {name: (one["attempts"], one["replays"]) for name, one in attachments.items()} == ATTACHMENTS
    for name, one in attachments.items():
        assert Path(one["stored_path"]).read_bytes() == (REPOSITORY / "dummy_data/attachments" / name).read_bytes()
    assert "404" in attachments["signed_contract.pdf"]["failure"]
    _assert_streams(report["streams"], earlier=False)
    assert wait_until_nothing_is_left(state_dir) == {}

    with subprocess.Popen(
        [*DEMO, "--keep"],
        cwd=REPOSITORY,
        env=environment(state_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as second:
        try:
            _read_until("Ctrl-C stops", second)
            assert ask(state_dir, "status")["idle"] is True
            # Beside them `contract_holds`, as it was for whichever file came last.
            assert evaluations(state_dir).items() >= CHECKS.items()
            assert len(ask(state_dir, "files", "list")["files"]) == len(FILES)
            # Those of the first demo, and as many of this one: its events have traces of their own.
            stored = ask(state_dir, "attachments", "list", "--state", "stored")["attachments"]
            assert len({one["attachment_key"] for one in stored}) == 2 * len(ATTACHMENTS)
            assert ask(state_dir, "dlq", "list")["attachments"] == []
            assert len(ask(state_dir, "quarantine", "list")["files"]) == list(FATES.values()).count("quarantined")
            assert len(ask(state_dir, "crm", "unidentified", "list")["messages"]) == 1
            counted = ask(state_dir, "activity", "hour", "2026-01-15-09:00")["types"]
            assert sum(one["events"] for one in counted) == HOURS["2026-01-15T09:00:00Z"]
            second.send_signal(signal.SIGINT)
            shown, said = second.communicate(timeout=DEMO_SECONDS)
        finally:
            second.kill()
    assert second.returncode == 0, said
    assert "already ingested" in shown
    assert "already quarantined" in shown
    assert shown.count("(already stored)") == 2
    assert "The events of users and the CRM messages had been stored by an earlier demo" in shown
    assert "http://127.0.0.1:" in shown
    assert wait_until_nothing_is_left(state_dir) == {}


def _assert_streams(report: Any, *, earlier: bool) -> None:  # noqa: ANN401 - JSON
    activity, crm = report["user_activity"], report["crm"]
    assert (activity["earlier"], crm["earlier"]) == (earlier, earlier)
    by_hour = dict.fromkeys(HOURS, 0)
    for one in activity["hours"]:
        by_hour[one["hour"]] += one["events"]
    assert by_hour == HOURS
    assert sum(by_hour.values()) == EVENTS
    assert sum(one["deliveries"] for one in activity["hours"]) == DELIVERIES
    assert activity["dead_letters"] == 1
    assert {one["table"]: (one["messages"], one["rows"]) for one in crm["tables"]} == CRM


def _read_until(text: str, process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"it ended without saying {text!r}")


def test_what_is_not_finished_in_time_is_named_and_not_as_hoped(
    own_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del own_folder
    monkeypatch.setenv("INGEST_DUMMY_ROOT", str(REPOSITORY / "dummy_data"))
    # Broker and database only: nobody reads what is sent.
    with running_stack(load_settings(), lambda _step, _state: None, dagster=False) as stack:
        streams = streaming(load_settings())[1]
        report = ingest_samples(stack, expected_files(SOURCE, stack.settings), 1.0, streams=streams)
    assert "1 message waiting on polling-queue" in report.going_on
    assert "10 messages waiting on sales_events" in report.going_on
    assert report.missing[: len(FILES)] == FILES
    assert "48 of 48 events page_view of 2026-01-15-09:00" in report.missing
    assert report.missing[-3:] == [f"{rows} of {rows} rows of {table}" for table, (_, rows) in CRM.items()]
    assert not report.as_hoped
    assert "10 files to be found" in capsys.readouterr().err
    assert wait_until_nothing_is_left(tmp_path / "state") == {}


def test_the_web_server_of_the_demo_serves_its_folder_and_withholds_what_is_not_published(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.txt").write_text("s")
    for name in ("a b.pdf", "late.pdf"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    with FileServer(tmp_path / "in", ["late.pdf"]) as server:
        assert requests.get(server.url("a b.pdf"), timeout=5).content == b"a b.pdf"
        for name in ("late.pdf", "", "nothing.pdf", "../secret.txt", "..%2fsecret.txt"):
            assert requests.get(server.url(name), timeout=5).status_code == 404, name
        server.publish("late.pdf")
        assert requests.get(server.url("late.pdf"), timeout=5).content == b"late.pdf"


def test_the_settings_of_the_demo_allow_its_own_web_server_and_nothing_else_of_this_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with serving(load_settings({"INGEST_ALLOWED_INTERNAL_HOSTS": "10.0.0.1"})) as (loaded, attachments):
        assert attachments is not None
        kept, added = loaded.settings.downloads.allowed_internal_hosts
        assert kept == "10.0.0.1"
        assert re.fullmatch(r"127\.0\.0\.1:\d+", added)
        assert child_environment(loaded, {})["INGEST_ALLOWED_INTERNAL_HOSTS"] == f"{kept},{added}"


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("INGEST_ALLOWED_HOSTS", "files.example", "INGEST_ALLOWED_HOSTS"),
        ("INGEST_DENIED_HOSTS", "127.0.0.0/8", "INGEST_DENIED_HOSTS"),
        ("EVENT_SOURCE", "eventhub", "EVENT_SOURCE=eventhub"),
        ("INGEST_DUMMY_ROOT", "nowhere", "no folder nowhere/attachments"),
    ],
)
def test_where_settings_forbid_the_demos_attachments_it_says_so_and_leaves_them_out(
    setting: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(load_settings({setting: value})) as (_, attachments):
        assert attachments is None
    told = capsys.readouterr().err
    assert told.startswith("Attachments are left out: ")
    assert said in told


def test_without_the_samples_of_streams_it_says_so_and_leaves_them_out(capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_settings({"INGEST_DUMMY_ROOT": "nowhere"})
    assert streaming(loaded) == (loaded, None)
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("Streams are left out: there is no file nowhere/streams/user_activity_events.jsonl")


def test_hours_are_counted_at_once_in_a_demo_unless_a_person_has_set_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    loaded, streams = streaming(load_settings({}))
    assert streams is not None
    assert child_environment(loaded, {})["INGEST_USER_ACTIVITY_HOURLY_REFRESH_SECONDS"] == "0"
    chosen, _ = streaming(load_settings({"INGEST_USER_ACTIVITY_HOURLY_REFRESH_SECONDS": "7"}))
    assert chosen.settings.user_activity.hourly_refresh_seconds == 7


def test_without_the_sample_files_it_says_where_to_run_it(own_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    del own_folder
    assert run([]) == 1
    errors = capsys.readouterr().err
    assert "INGEST_DUMMY_ROOT" in errors
    assert errors.count("\n") == 1


def test_it_starts_by_its_path_as_well_and_the_package_does_not_need_it(tmp_path: Path) -> None:
    by_path = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "demo"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert by_path.returncode == 0, by_path.stderr
    assert "--keep" in by_path.stdout
    assert not [p for p in (REPOSITORY / "ingest_project").rglob("*.py") if "import examples" in p.read_text()]
    assert not [p for p in (REPOSITORY / "ingest_project").rglob("*.py") if "from examples" in p.read_text()]


def test_the_files_that_must_come_are_those_that_can_be_ingested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    expected = expected_files(SOURCE, load_settings({}).settings)
    assert list(expected.values()) == FILES
    assert all(key.startswith(f"{name}~") for key, name in expected.items())


def test_what_is_missing_or_failed_is_not_as_hoped() -> None:
    good = DemoFile(file_name="a", file_key="a~1", state=FileState.QUARANTINED)
    assert DemoReport(files=(good,)).as_hoped
    assert not DemoReport(files=()).as_hoped
    assert not DemoReport(files=(good,), going_on=("1 run queued",)).as_hoped
    for state in (None, FileState.FAILED, FileState.PENDING):
        report = DemoReport(files=(good, DemoFile(file_name="b", file_key="b~1", state=state)))
        assert report.missing == ["b"]
        assert not report.as_hoped
    lost = DemoReport(files=(good,), attachments=(DemoAttachment(file_name="c", attachment_key="c~1"),))
    assert lost.missing == ["c"]


def test_a_mean_over_files_is_the_mean_of_all_readings() -> None:
    (summary,) = summaries(
        [DeviceMetric("d1", "t", 1.0, 3.0, 2.0, 3, None), DeviceMetric("d2", "t", -1.0, 10.0, 6.0, 1, None)]
    )
    assert (summary.devices, summary.readings) == (2, 4)
    assert (summary.min, summary.mean, summary.max) == (-1.0, 3.0, 10.0)
