"""Checks of attachments inspect the present state, and fail on each deviation."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pyarrow as pa
import pytest

from ingest_project.attachments.catalog import ATTACHMENTS
from ingest_project.attachments.definitions import attachment_checks
from ingest_project.attachments.queue import AttachmentRecord
from ingest_project.attachments.results import APPLICATION_ID, commit_lost
from ingest_project_tests.attachments.system import RETRY, AttachmentSystem
from ingest_project_tests.journeys.check_results import behind_its_back, numbers
from ingest_project_tests.journeys.system import changed
from ingest_project_tests.platform.delta.delta_log_reader import rows_of
from ingest_project_tests.services.http_server import HttpServer

STORED, DEAD = "stored.pdf", "missing.pdf"


@pytest.fixture
def system(attachment_system: AttachmentSystem, http_server: HttpServer) -> AttachmentSystem:
    """One event with an attachment that is stored and one that is dead."""
    stored = http_server.url(f"/files/{STORED}?size=3000")
    attachment_system.send_event(stored, http_server.url(f"/published/{DEAD}"))
    attachment_system.drive_attachments()
    return attachment_system


def stored_file(record: AttachmentRecord) -> Path:
    assert record.stored_path
    return Path(record.stored_path)


def test_the_scheduled_checks_pass_after_an_ordinary_day(system: AttachmentSystem) -> None:
    system.settings = changed(system.settings, "attachments", max_dead_share=0.5)
    system.restart()
    done = system.definitions.resolve_job_def(attachment_checks.name).execute_in_process(instance=system.instance)
    found = {evaluation.check_name: evaluation for evaluation in done.get_asset_check_evaluations()}
    assert {name: evaluation.passed for name, evaluation in found.items()} == {
        "every_event_accounted": True,
        "stored_results_match": True,
        "nothing_overdue": True,
        "dead_share_acceptable": True,
    }
    assert numbers(found["stored_results_match"]) == {"rows": 2, "attempts_committed": 2}
    accounted = numbers(found["every_event_accounted"])
    assert [accounted[name] for name in ("tasks", "stored", "waiting", "dead")] == [2, 1, 0, 1]


def test_a_lost_attachment_or_result_fails_a_check_that_names_it(system: AttachmentSystem) -> None:
    def missed() -> tuple[int, ...]:
        found = system.check("every_event_accounted")
        assert not found.passed
        names = ("events_failed", "tasks", "attachments_of_events", "ends_without_outcome")
        return tuple(numbers(found)[name] for name in names)

    behind_its_back(system, "DELETE FROM download_outcomes WHERE attachment_key LIKE %s", f"{DEAD}%")
    assert missed() == (0, 2, 2, 1)
    behind_its_back(system, "DELETE FROM attachments WHERE attachment_key LIKE %s", f"{DEAD}%")
    assert missed() == (0, 2, 1, 0)
    behind_its_back(system, "UPDATE attachment_events SET state = 'failed'")
    assert missed() == (1, 0, 1, 0)


def test_results_that_are_lost_or_doubled_in_the_table_are_noticed(system: AttachmentSystem) -> None:
    table = system.services.attachment_results
    table.append(pa.table({"domain": ["claims"], "day": ["2026-01-15"]}), app_id="somebody else", version=1)
    doubled = system.check("stored_results_match")
    assert not doubled.passed
    assert numbers(doubled) == {"rows": 3, "attempts_committed": 2}

    opened = table.opened()
    assert opened is not None
    opened.delete()
    lost = system.check("stored_results_match")
    assert not lost.passed
    assert numbers(lost) == {"rows": 0, "attempts_committed": 2}
    assert table.committed_version(APPLICATION_ID) == 1


def test_results_that_the_table_has_lost_are_committed_again_once(system: AttachmentSystem) -> None:
    table = system.services.attachment_results
    rows = sorted(rows_of(Path(table.url)).to_pylist(), key=str)
    assert commit_lost(system.services) == 0
    opened = table.opened()
    assert opened is not None
    opened.restore(0)
    assert not system.check("stored_results_match").passed
    assert [commit_lost(system.services) for _ in range(2)] == [len(rows), 0]
    assert system.check("stored_results_match").passed
    assert sorted(rows_of(Path(table.url)).to_pylist(), key=str) == rows


def test_a_retry_that_is_not_served_after_its_time_is_named(system: AttachmentSystem, http_server: HttpServer) -> None:
    system.settings = changed(system.settings, "attachments", retry_delays_seconds=[600.0] * 4)
    system.restart()
    system.send_event(http_server.url("/status/503?late.pdf"))
    system.drive_attachments()
    late = system.attachment("503")
    assert system.check("nothing_overdue").passed, "its time has not come"

    behind_its_back(
        system,
        "UPDATE attachments SET next_attempt_at = now() - interval '1 hour' WHERE attachment_key = %s",
        late.attachment_key,
    )
    overdue = system.check("nothing_overdue")
    assert not overdue.passed
    assert numbers(overdue)["attachment"] == late.attachment_key
    assert 3_600 <= numbers(overdue)["overdue_seconds"] < 5_000

    assert len(system.requests(RETRY)) == 1
    assert system.check("nothing_overdue").passed, "a run was requested"


def test_too_great_a_share_of_dead_ones_is_a_warning(system: AttachmentSystem) -> None:
    share = system.check("dead_share_acceptable")
    assert not share.passed
    assert share.severity is dg.AssetCheckSeverity.WARN
    assert numbers(share) == {"finished": 2, "dead": 1, "share": 0.5, "limit": 0.1}

    behind_its_back(system, "UPDATE attachments SET updated_at = now() - interval '2 days'")
    assert system.check("dead_share_acceptable").passed, "of yesterday"


def test_a_stored_file_that_is_gone_or_changed_is_noticed_on_its_own_partition(system: AttachmentSystem) -> None:
    record, dead = system.attachment(STORED), system.attachment(DEAD)
    keys = list(system.instance.get_dynamic_partitions(ATTACHMENTS))
    assert not system.check("attachment_stored", keys[0], keys[-1]).passed, "over both of them"
    assert system.shown_checks() == {record.attachment_key: "SUCCEEDED", dead.attachment_key: "FAILED"}

    good = stored_file(record).read_bytes()
    stored_file(record).write_bytes(b"x" + good[1:])
    other_bytes = system.check("attachment_stored", record.attachment_key)
    stored_file(record).write_bytes(good[:-1])
    too_short = system.check("attachment_stored", record.attachment_key)
    stored_file(record).unlink()
    gone = system.check("attachment_stored", record.attachment_key)

    assert not any(found.passed for found in (other_bytes, too_short, gone))
    assert "or other ones" in str(other_bytes.description)
    assert "2999 bytes, not the 3000" in str(too_short.description)
    assert "not there any more" in str(gone.description)
    assert gone.partition == record.attachment_key
    assert system.shown_checks() == {record.attachment_key: "FAILED", dead.attachment_key: "FAILED"}
