"""The parts of the demo; whole demos are in `after_a_demo`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from examples.demo.attachments import FileServer, serving
from examples.demo.commands import require_running, running_system, settings
from examples.demo.report import DemoAttachment, DemoFile, DemoReport, expected_files, summaries
from examples.demo.run import ingest_samples, run
from examples.demo.streams import HOURLY_PAUSE, streaming
from ingest_project_tests.cli.running import wait_until_nothing_is_left

REPOSITORY = Path(__file__).parents[2]

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

# Table to messages and rows: two of the records come in several versions.
CRM = {"opportunities": (5, 3), "projects": (4, 3), "unidentified_messages": (1, 1)}


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Tests that run in parallel have a terminal's width set; output is to be as in a pipe.
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("INGEST_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KAFKA_REQUEST_TIMEOUT_SECONDS", "10")


def test_a_demo_that_runs_out_of_time_names_the_unfinished_work_and_fails(
    own_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del own_folder
    monkeypatch.setenv("INGEST_DUMMY_ROOT", str(REPOSITORY / "dummy_data"))
    names = expected_files(REPOSITORY / "dummy_data")
    streams = streaming(settings(), chosen=False)[1]
    # Broker and database only: nobody reads what is sent.
    with running_system({}, "--services-only") as process:
        report = ingest_samples(lambda: require_running(process), names, 1.0, streams=streams)
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
    monkeypatch.setenv("INGEST_ALLOWED_INTERNAL_HOSTS", "10.0.0.1,10.0.0.2")
    with serving(settings()) as (variables, attachments):
        assert attachments is not None
        (allowed,) = variables.values()
        assert re.fullmatch(r"10\.0\.0\.1,10\.0\.0\.2,127\.0\.0\.1:\d+", allowed)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("INGEST_ALLOWED_HOSTS", "files.example", "INGEST_ALLOWED_HOSTS"),
        ("INGEST_DENIED_HOSTS", "127.0.0.0/8", "INGEST_DENIED_HOSTS"),
        ("EVENT_SOURCE", "eventhub", "EVENT_SOURCE=eventhub"),
        ("INGEST_DUMMY_ROOT", "nowhere", "no folder nowhere/attachments"),
    ],
)
def test_the_demo_skips_attachments_that_settings_may_forbid_and_says_so(
    setting: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv(setting, value)
    with serving(settings()) as (_, attachments):
        assert attachments is None
    errors = capsys.readouterr().err
    assert errors.startswith("Attachments are left out: ")
    assert said in errors


def test_without_the_samples_of_streams_it_says_so_and_leaves_them_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert streaming({"polling.dummy_root": "nowhere"}, chosen=False) == ({}, None)
    errors = " ".join(capsys.readouterr().err.split())
    assert errors.startswith("Streams are left out: there is no file nowhere/streams/user_activity_events.jsonl")


def test_hours_are_counted_at_once_in_a_demo_unless_a_person_has_set_a_pause() -> None:
    configured = {"polling.dummy_root": str(REPOSITORY / "dummy_data")}
    assert streaming(configured, chosen=False)[0] == {HOURLY_PAUSE: "0"}
    assert streaming(configured, chosen=True)[0] == {}


def test_without_the_sample_files_it_says_where_to_run_it(own_folder: None, capsys: pytest.CaptureFixture[str]) -> None:
    del own_folder
    assert run([]) == 1
    errors = capsys.readouterr().err
    assert "INGEST_DUMMY_ROOT" in errors
    assert errors.count("\n") == 1


@pytest.mark.long
def test_the_demo_also_starts_by_its_path(tmp_path: Path) -> None:
    by_path = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / "demo"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert by_path.returncode == 0, by_path.stderr
    assert "--keep" in by_path.stdout


def test_the_package_does_not_import_the_demo() -> None:
    assert not [p for p in (REPOSITORY / "ingest_project").rglob("*.py") if "import examples" in p.read_text()]
    assert not [p for p in (REPOSITORY / "ingest_project").rglob("*.py") if "from examples" in p.read_text()]


def test_the_files_that_must_come_are_those_that_can_be_ingested() -> None:
    assert expected_files(REPOSITORY / "dummy_data") == FILES


def test_a_demo_with_missing_or_failed_files_is_reported_as_a_failure() -> None:
    good = DemoFile(file_name="a", file_key="a~1", state="quarantined")
    assert DemoReport(files=(good,)).as_hoped
    assert not DemoReport(files=()).as_hoped
    assert not DemoReport(files=(good,), going_on=("1 run queued",)).as_hoped
    for state in (None, "failed", "pending"):
        report = DemoReport(files=(good, DemoFile(file_name="b", file_key="b~1", state=state)))
        assert report.missing == ["b"]
        assert not report.as_hoped
    lost = DemoReport(files=(good,), attachments=(DemoAttachment(file_name="c", attachment_key="c~1"),))
    assert lost.missing == ["c"]


def test_a_mean_over_files_is_the_mean_of_all_readings() -> None:
    names = ("device_id", "sensor_type", "min", "max", "mean", "count", "stddev")
    values = (("d1", "t", 1.0, 3.0, 2.0, 3, None), ("d2", "t", -1.0, 10.0, 6.0, 1, None))
    (summary,) = summaries([dict(zip(names, one, strict=True)) for one in values])
    assert (summary.devices, summary.readings) == (2, 4)
    assert (summary.min, summary.mean, summary.max) == (-1.0, 3.0, 10.0)
