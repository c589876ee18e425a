"""`ingest action` and `ingest audit`: every action by filter, with a preview, a limit, a reason and a record."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest_project.attachments.tables import AttachmentState
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project.operations.actions import ACTIONS
from ingest_project.platform.actions import login_name
from ingest_project.platform.work_queue.queue import JobState
from ingest_project_tests.cli import known_attachments, known_files
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.cli.known_files import arrive, finish, job_arrives, take

BAD, WORSE, CLEAN, RUNNING = "bad.csv~3", "worse.csv~4", "clean.csv~1", "running.csv~5"
REASON = "missing_column: There is no column 'value'."
RELEASE = "release-quarantined-files"


@pytest.fixture
def _files(services: SystemResources) -> None:
    arrive(services, CLEAN, BAD, WORSE, RUNNING)
    finish(services, CLEAN, FileState.INGESTED)
    finish(services, BAD, FileState.QUARANTINED, reason=REASON)
    finish(services, WORSE, FileState.QUARANTINED, reason="bad_encoding: Not UTF-8.")
    take(services, RUNNING)


def states(services: SystemResources) -> dict[str, str]:
    return {record.file_key: record.state.value for record in services.files.list()}


def test_every_action_is_listed_and_has_an_option_for_each_parameter(ingest: Ingest) -> None:
    listed = ingest("action", "list", "--json").json["actions"]
    assert {one["name"] for one in listed} == set(ACTIONS)
    for action in ACTIONS.values():
        shown = ingest("action", "run", action.name, "--help").out
        for name in (*(one.name.replace("_", "-") for one in action.parameters), "limit", "reason", "dry-run", "json"):
            assert f"--{name}" in shown, (action.name, name)


@pytest.mark.usefixtures("services")
def test_several_items_have_a_plural(ingest: Ingest) -> None:
    assert {"capabilities", "message ranges", "files"} < {action.nouns for action in ACTIONS.values()}
    done = ingest("action", "run", "resume-capability", "--capability", "crm", "--reason", REASON)
    assert "0 capabilities done, 1 failed." in done.out


def test_a_misspelt_action_or_option_is_exit_code_2_with_the_nearest_one(ingest: Ingest) -> None:
    result = ingest("action", "run", "release-quarantined-file", "--reason", "r")
    assert (result.exit_code, RELEASE in result.err) == (2, True)
    result = ingest("action", "run", RELEASE, "--datset", "x")
    assert (result.exit_code, "--dataset" in result.err) == (2, True)


@pytest.mark.usefixtures("_files")
def test_a_dry_run_shows_what_would_be_touched_and_changes_and_records_nothing(
    ingest: Ingest, services: SystemResources
) -> None:
    before = states(services)
    found = ingest("action", "run", RELEASE, "--dry-run", "--limit", "1", "--json").json
    assert (found["dry_run"], len(found["keys"]), found["total"], found["remaining"]) == (True, 1, 2, 1)
    shown = ingest("action", "run", RELEASE, "--dry-run")
    assert (shown.exit_code, BAD in shown.out, "Nothing was changed" in shown.out) == (0, True, True)
    assert states(services) == before
    assert ingest("audit", "--json").json["records"] == []


@pytest.mark.usefixtures("_files")
def test_files_are_released_by_filter(ingest: Ingest, services: SystemResources) -> None:
    for options, found in (
        (("--reason-text", "missing_column"), {BAD}),
        (("--name", "w*.csv"), {WORSE}),
        (("--key", "BAD*"), {BAD}),
        (("--key", BAD, "--key", WORSE), {BAD, WORSE}),
        (("--source", "/data/in/bad"), {BAD}),
        (("--source", "local", "--profile", "canonical", "--dataset", "sensor_readings"), {BAD, WORSE}),
        (("--error-class", "Other"), set()),
        (("--until", "2026-01-15T10:30+02:00"), set()),
        (("--since", "1h", "--trace-id", f"trace-of-{BAD}"), {BAD}),
    ):
        shown = ingest("action", "run", RELEASE, *options, "--dry-run", "--json")
        assert (shown.exit_code, set(shown.json["keys"])) == (0, found), options
    given = ("--reason-text", "missing_column", "--reason", "the source is fixed", "--json")
    done = ingest("action", "run", RELEASE, *given)
    assert (done.exit_code, done.json["done"], done.json["failed"]) == (0, [BAD], {})
    assert states(services) == {BAD: "pending", WORSE: "quarantined", CLEAN: "ingested", RUNNING: "ingesting"}


@pytest.mark.usefixtures("_files")
def test_entries_leased_by_a_run_are_left_alone_and_named_with_the_reason(
    ingest: Ingest, services: SystemResources
) -> None:
    done = ingest("action", "run", RELEASE, "--key", BAD, "--key", RUNNING, "--key", "no~1", "--reason", "r", "--json")
    assert (done.exit_code, done.json["done"]) == (1, [BAD])
    assert done.json["in_progress"] == {RUNNING: "it is ingesting"}
    assert list(done.json["failed"]) == ["no~1"]
    assert "there is none" in done.json["failed"]["no~1"]
    shown = ingest("action", "run", RELEASE, "--key", RUNNING, "--reason", "r")
    assert f"{RUNNING} is in progress: it is ingesting" in " ".join(shown.err.split())
    record = ingest("audit", "--json").json["records"][0]
    assert (record["outcome"], record["done"], record["failed"]) == ("not done", 0, 0)
    assert ingest("audit", record["action_id"], "--json").json["items"] == [
        {"item_key": RUNNING, "outcome": "in progress", "reason": "it is ingesting"}
    ]
    assert states(services)[RUNNING] == "ingesting"


@pytest.mark.usefixtures("_files")
def test_an_action_without_a_reason_is_refused(ingest: Ingest, services: SystemResources) -> None:
    result = ingest("action", "run", RELEASE)
    assert (result.exit_code, "Enter a reason" in result.err) == (2, True)
    assert states(services)[BAD] == "quarantined"


@pytest.mark.usefixtures("_files")
def test_the_audit_shows_who_did_what_and_why(ingest: Ingest) -> None:
    action_id = ingest("action", "run", RELEASE, "--limit", "1", "--reason", "fixed", "--json").json["action_id"]
    ingest("quarantine", "release", "--all")
    newest, oldest = ingest("audit", "--json").json["records"]
    assert (newest["reason"], newest["done"]) == ("by ingest quarantine release", 1)
    assert (oldest["action_id"], oldest["who"], oldest["reason"]) == (action_id, login_name(), "fixed")
    assert (oldest["selected"], oldest["done"], oldest["remaining"]) == (1, 1, 1)
    assert [one["action"] for one in ingest("audit", "--action", "none", "--json").json["records"]] == []
    shown = ingest("audit", action_id)
    assert all(text in shown.out for text in ("fixed", BAD, "done", login_name()))
    assert ingest("audit", "f" * 32).exit_code == 1


@pytest.mark.usefixtures("_files")
def test_a_corrected_file_is_a_newer_version_linked_to_the_old_one(
    ingest: Ingest, services: SystemResources, tmp_path: Path
) -> None:
    path = tmp_path / "fixed.csv"
    path.write_text("timestamp,device_id,sensor_type,value\n")
    given = ("action", "run", "upload-corrected-file", "--key", BAD, "--file", str(path), "--reason", "r")
    assert ingest(*given, "--dry-run", "--json").json["keys"] == [BAD]
    done = ingest(*given, "--json").json
    record = services.files.get(done["created"][BAD])
    assert record is not None
    assert (record.state, record.corrects, record.location) == (FileState.PENDING, BAD, "local:/data/in/bad.csv")
    assert record.order > services.files.get_many([BAD])[0].order
    assert services.landing.find(record.uploaded_sha256 or "") is not None
    again = ingest(*given, "--json")
    assert (again.exit_code, "before" in again.json["failed"][BAD]) == (1, True)
    # Released or not, it is the upload that counts, not what the source has.
    services.files.begin([record.file_key], "run", known_files.ARRIVED)
    services.files.fail([record.file_key], "r", "E", known_files.ARRIVED)
    services.files.reopen([record.file_key], known_files.ARRIVED)
    assert services.files.get_many([record.file_key])[0].uploaded_sha256 == record.uploaded_sha256


@pytest.mark.usefixtures("_files")
def test_an_upload_is_held_to_the_rules_of_files(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INGEST_MAX_FILE_BYTES", "1000")
    (tmp_path / "fixed.xlsx").write_bytes(b"x")
    (tmp_path / "fixed.csv").write_bytes(b"x" * 2_000)
    for name, said in (
        ("fixed.xlsx", "type csv, not xlsx"),
        ("fixed.csv", "INGEST_MAX_FILE_BYTES"),
        ("missing.csv", "is no file"),
    ):
        given = ("--key", BAD, "--file", str(tmp_path / name), "--reason", "r")
        result = ingest("action", "run", "upload-corrected-file", *given)
        assert (result.exit_code, said in " ".join(result.err.split())) == (2, True), result.err


def test_attachments_are_replayed_by_filter(ingest: Ingest, services: SystemResources) -> None:
    first = known_attachments.dead(services, "a.pdf", trace_id="t-1")
    other = known_attachments.dead(services, "b.pdf", trace_id="t-2", domain="invoices", error_class="Other")
    stored = known_attachments.arrive(services, "c.pdf", trace_id="t-3")
    known_attachments.finish(services, stored)

    def replayed(*options: str) -> list[str]:
        shown = ingest("action", "run", "replay-attachments", *options, "--dry-run", "--json")
        assert shown.exit_code == 0, shown.err
        return list(shown.json["keys"])

    assert replayed() == [first, other]
    assert replayed("--host", "FILES.example") == [first, other]
    assert replayed("--host", "files.exampl") == []
    assert replayed("--domain", "invoices", "--error-class", "Other") == [other]
    assert replayed("--trace-id", "t-1", "--state", "failed") == [first]
    assert replayed("--state", "stored") == [stored]
    done = ingest("action", "run", "replay-attachments", "--state", "stored", "--reason", "wrong bytes", "--json")
    assert (done.exit_code, done.json["done"]) == (0, [stored])
    (record,) = services.attachments.get_many([stored])
    assert (record.state, record.replays) == (AttachmentState.PENDING, 1)


def test_failed_polling_jobs_run_again(ingest: Ingest, services: SystemResources) -> None:
    job_arrives(services, "job-1")
    services.polling_jobs.begin(["job-1"], "run", known_files.ARRIVED)
    services.polling_jobs.fail(["job-1"], "no such folder", "SourceNotFoundError", known_files.ARRIVED)
    held = ingest("action", "run", "rerun-polling-jobs", "--reason", "r", "--json")
    assert (held.exit_code, held.json["done"]) == (1, [])
    assert (held.json["failed"], held.json["in_progress"]) == ({}, {"job-1": "a run still reports it"})
    services.polling_jobs.mark_reported(["job-1"], known_files.ARRIVED)
    given = ("--error-class", "SourceNotFoundError", "--source-type", "dummy", "--reason", "mounted", "--json")
    assert ingest("action", "run", "rerun-polling-jobs", *given).json["done"] == ["job-1"]
    (record,) = services.polling_jobs.get_many(["job-1"])
    assert record.state is JobState.PENDING
