"""`ingest dlq` shows what failed for good and why, and replays it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from ingest_project.attachments.tables import AttachmentState, attachments
from ingest_project.core.console import moment
from ingest_project.operations import SystemResources
from ingest_project.platform.actions import login_name
from ingest_project.platform.database import writing
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.cli.known_attachments import NOT_FOUND, SIGNATURE, arrive, dead, finish

LONG_AGO = datetime.now(UTC) - timedelta(days=3)


def state(services: SystemResources, key: str) -> AttachmentState:
    record = services.attachments.get(key)
    assert record is not None
    return record.state


def listed(ingest: Ingest, *arguments: str) -> set[str]:
    return {one["attachment_key"] for one in ingest("dlq", "list", *arguments, "--json").json["attachments"]}


def test_dead_attachments_are_listed_with_their_reasons_and_without_signatures(
    ingest: Ingest, services: SystemResources
) -> None:
    key = dead(services, "a.pdf")
    stored = arrive(services, "b.pdf")
    finish(services, stored)
    shown = ingest("dlq", "list")
    assert shown.exit_code == 0
    assert key in shown.out
    assert NOT_FOUND in shown.out
    assert stored not in shown.out
    assert SIGNATURE not in ingest("dlq", "list", "--json").out + shown.out


def test_without_dead_attachments_the_list_is_empty_and_exits_with_0(ingest: Ingest, services: SystemResources) -> None:
    del services
    result = ingest("dlq", "list")
    assert (result.exit_code, result.out, result.err) == (0, "", "No such attachments.\n")


def test_dead_attachments_are_filtered_by_trace_domain_error_class_and_time(
    ingest: Ingest, services: SystemResources
) -> None:
    old = dead(services, "old.pdf", at=LONG_AGO, trace_id="t-1", domain="claims")
    new = dead(services, "new.pdf", trace_id="t-2", domain="billing", error_class="AddressRejectedError")
    assert listed(ingest) == {old, new}
    assert listed(ingest, "--trace-id", "t-1") == {old}
    assert listed(ingest, "--domain", "billing") == {new}
    assert listed(ingest, "--error-class", "AddressRejectedError") == {new}
    assert listed(ingest, "--since", "2h") == {new}
    assert listed(ingest, "--until", "2d") == {old}
    assert listed(ingest, "--since", "4d", "--until", LONG_AGO.isoformat()) == set()


def test_a_dead_attachment_is_shown_with_its_attempts_and_the_replay_command(
    ingest: Ingest, services: SystemResources
) -> None:
    key = arrive(services, "a.pdf")
    finish(services, key, error_class="DownloadFailedError", error="too slow", again_in=timedelta(0))
    finish(services, key, error_class="DownloadRejectedError")
    shown = ingest("dlq", "show", "a.pdf")
    assert shown.exit_code == 0
    assert "too slow" in shown.out
    assert f"ingest dlq replay {key}" in shown.out
    assert SIGNATURE not in shown.out
    page = ingest("dlq", "show", key, "--json")
    assert [(one["attempt"], one["status"]) for one in page.json["rows"]["attempts"]["rows"]] == [
        (1, "failed_transient"),
        (2, "failed_permanent"),
    ]
    assert SIGNATURE not in page.out


def test_dlq_show_of_an_attachment_that_is_not_dead_exits_with_1(ingest: Ingest, services: SystemResources) -> None:
    shown = ingest("dlq", "show", arrive(services, "a.pdf"))
    assert shown.exit_code == 1
    assert "pending" in shown.err


def test_a_replayed_attachment_waits_to_be_tried_and_the_work_queue_names_the_requester(
    ingest: Ingest, services: SystemResources
) -> None:
    key = dead(services, "a.pdf")
    replayed = ingest("dlq", "replay", "a.pdf")
    assert replayed.exit_code == 0, replayed.err
    assert f"{key}\n1 attachment done." in replayed.out
    assert "the last one is due at" in replayed.out
    assert state(services, key) is AttachmentState.PENDING
    (audit,) = ingest("attachments", "show", key, "--json").json["rows"]["replays"]["rows"]
    assert audit["asked_by"] == login_name()
    assert "@" in audit["asked_by"]
    assert audit["earlier_reason"] == NOT_FOUND


def test_a_dry_run_says_the_same_and_changes_nothing(ingest: Ingest, services: SystemResources) -> None:
    key = dead(services, "a.pdf")
    result = ingest("dlq", "replay", "--all", "--dry-run", "--json")
    assert result.exit_code == 0
    assert result.json["keys"] == [key]
    assert result.json["dry_run"] is True
    assert state(services, key) is AttachmentState.FAILED
    assert "would be acted on" in ingest("dlq", "replay", "--all", "--dry-run").out


def test_a_rate_limited_replay_spaces_the_due_times_and_reports_the_last(
    ingest: Ingest, services: SystemResources
) -> None:
    first, second, third = (dead(services, f"{n}.pdf", at=LONG_AGO + timedelta(hours=n)) for n in range(3))
    done = ingest("dlq", "replay", "--all", "--per-second", "0.1", "--json").json
    assert done["done"] == [first, second, third]
    due = [record.next_attempt_at for record in services.attachments.get_many([first, second, third])]
    assert [(at - due[0]).total_seconds() for at in due] == [0, 10, 20]
    assert f"the last one is due at {moment(due[-1])}" in done["detail"]


def test_an_attachment_beyond_the_replay_limit_stays_dead_and_is_named(
    ingest: Ingest, services: SystemResources
) -> None:
    key = dead(services, "a.pdf")
    for _ in range(5):
        assert ingest("dlq", "replay", key).exit_code == 0
        finish(services, key, error_class="DownloadRejectedError")
    fresh = dead(services, "b.pdf")
    dry = ingest("dlq", "replay", "--all", "--dry-run", "--json")
    done = ingest("dlq", "replay", "--all")
    assert [*dry.json["failed"]] == [key]
    assert (dry.exit_code, done.exit_code) == (1, 1)
    assert key in done.err
    assert "INGEST_MAX_REPLAYS" in done.err
    assert state(services, key) is AttachmentState.FAILED
    assert state(services, fresh) is AttachmentState.PENDING


def test_an_attachment_still_being_reported_is_listed_as_in_progress(ingest: Ingest, services: SystemResources) -> None:
    key, other = dead(services, "a.pdf"), dead(services, "b.pdf")
    with writing(services.engine) as connection:
        unreported = sa.update(attachments).where(attachments.c.attachment_key == key).values(reported_at=None)
        connection.execute(unreported)
    done = ingest("dlq", "replay", "--all", "--dry-run", "--json").json
    assert (done["keys"], done["failed"]) == ([other], {})
    assert done["in_progress"] == {key: "a run still reports it"}
    shown = ingest("dlq", "replay", key)
    assert (shown.exit_code, "INGEST_MAX_REPLAYS" in shown.err) == (1, False)
    assert f"{key} is in progress: a run still reports it" in " ".join(shown.err.split())
    assert state(services, key) is AttachmentState.FAILED


@pytest.mark.parametrize("arguments", [["--all"], ["--domain", "nowhere"]])
def test_no_match_exits_with_1(ingest: Ingest, services: SystemResources, arguments: list[str]) -> None:
    finish(services, arrive(services, "a.pdf"))
    result = ingest("dlq", "replay", *arguments)
    assert result.exit_code == 1
    assert "No attachment matches." in result.out


def test_replaying_an_attachment_that_is_not_dead_is_refused(ingest: Ingest, services: SystemResources) -> None:
    key = arrive(services, "a.pdf")
    finish(services, key)
    result = ingest("dlq", "replay", key)
    assert result.exit_code == 1
    assert f"{key} is not dead: it is stored." in result.err
    assert state(services, key) is AttachmentState.STORED


def test_a_misspelt_key_among_others_changes_nothing(ingest: Ingest, services: SystemResources) -> None:
    key = dead(services, "contract.pdf")
    result = ingest("dlq", "replay", key, "contrct.pdf")
    assert result.exit_code == 1
    assert key in result.err
    assert state(services, key) is AttachmentState.FAILED


def test_more_than_the_limit_are_left_for_another_time_and_that_is_said(
    ingest: Ingest, services: SystemResources
) -> None:
    first = dead(services, "a.pdf", at=LONG_AGO)
    second = dead(services, "b.pdf")
    result = ingest("dlq", "replay", "--all", "--limit", "1")
    assert result.exit_code == 0
    assert "1 more beyond the limit" in result.err
    assert (state(services, first), state(services, second)) == (AttachmentState.PENDING, AttachmentState.FAILED)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--all"),
        (["--all", "--domain", "claims"], "--all"),
        (["--all", "a.pdf"], "--all"),
        (["--since", "yesterday"], "--since"),
        (["--all", "--per-second", "0"], "0.001"),
    ],
)
def test_an_ambiguous_selection_of_attachments_to_replay_is_wrong_usage(
    ingest: Ingest, arguments: list[str], said: str
) -> None:
    result = ingest("dlq", "replay", *arguments)
    assert result.exit_code == 2
    assert said in result.err
    assert "Traceback" not in result.err


def test_a_trace_id_replays_the_dead_attachments_of_the_trace(ingest: Ingest, services: SystemResources) -> None:
    first, second = dead(services, "a.pdf", trace_id="trace-7"), dead(services, "b.pdf", trace_id="trace-7")
    stored = arrive(services, "c.pdf", trace_id="trace-7")
    finish(services, stored)
    other = dead(services, "d.pdf", trace_id="trace-70")
    assert set(ingest("dlq", "replay", "trace-7", "--dry-run", "--json").json["keys"]) == {first, second}
    assert ingest("dlq", "replay", "trace-7").exit_code == 0
    assert {state(services, key) for key in (first, second)} == {AttachmentState.PENDING}
    assert state(services, other) is AttachmentState.FAILED
    again = ingest("dlq", "replay", "trace-7")
    assert (again.exit_code, "is not dead" in again.err) == (1, True)
    assert ingest("dlq", "replay", "trace-7", "d.pdf").exit_code == 0
    unknown = ingest("dlq", "replay", "no-such-trace")
    assert (unknown.exit_code, "no-such-trace" in unknown.err) == (1, True)
