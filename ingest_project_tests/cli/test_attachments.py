"""`ingest attachments`: every attachment, its attempts and its location."""

from __future__ import annotations

from datetime import timedelta

from ingest_project.operations import SystemResources
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.cli.known_attachments import NOT_FOUND, SIGNATURE, arrive, dead, finish


def test_attachments_are_listed_the_last_changed_first_and_found_by_state_and_text(
    ingest: Ingest, services: SystemResources
) -> None:
    gone = dead(services, "a.pdf", trace_id="t-gone")
    waiting = arrive(services, "b.pdf")
    everything = ingest("attachments", "list", "--json").json
    assert [one["attachment_key"] for one in everything["attachments"]] == [waiting, gone]
    assert everything["more"] is False
    assert gone not in ingest("attachments", "list", "--state", "pending").out
    assert waiting not in ingest("attachments", "list", "--search", "t-gone").out
    cut = ingest("attachments", "list", "--limit", "1")
    assert "--limit shows more" in cut.err
    assert SIGNATURE not in ingest("attachments", "list", "--json").out


def test_a_stored_attachment_is_shown_with_its_location_and_origin(ingest: Ingest, services: SystemResources) -> None:
    key = arrive(services, "b.pdf")
    finish(services, key, error_class="DownloadFailedError", error="too slow", again_in=timedelta(0))
    finish(services, key)
    shown = ingest("attachments", "show", "b.pdf")
    assert shown.exit_code == 0
    for text in ("/store/claims/b.pdf", "downloads.pending[0]@7", "https://files.example/in/b.pdf?…", "too slow"):
        assert text in shown.out
    assert SIGNATURE not in shown.out
    page = ingest("attachments", "show", key, "--json").json
    assert page["state"] == "stored"
    assert [one["status"] for one in page["rows"]["attempts"]["rows"]] == ["failed_transient", "success"]
    assert page["ui"].endswith(f"/assets/onelake_attachments?view=partitions&partition={key}")


def test_a_replayed_attachment_shows_its_attempts_and_the_earlier_reason(
    ingest: Ingest, services: SystemResources
) -> None:
    key = dead(services, "a.pdf")
    ingest("dlq", "replay", key)
    finish(services, key)
    page = ingest("attachments", "show", key, "--json").json
    assert [(one["replays"], one["attempt"], one["status"]) for one in page["rows"]["attempts"]["rows"]] == [
        (0, 1, "failed_permanent"),
        (1, 1, "success"),
    ]
    assert page["rows"]["replays"]["rows"][0]["earlier_reason"] == NOT_FOUND
    assert NOT_FOUND in ingest("attachments", "show", key).out


def test_a_misspelt_key_proposes_the_nearest_one(ingest: Ingest, services: SystemResources) -> None:
    key = arrive(services, "contract.pdf")
    result = ingest("attachments", "show", "contrakt.pdf")
    assert result.exit_code == 1
    assert key in result.err
    assert result.err.count("\n") == 1


def test_without_a_database_it_is_one_line(ingest: Ingest) -> None:
    result = ingest("attachments", "list")
    assert result.exit_code == 1
    assert "DATABASE_URL" in result.err
    assert "Traceback" not in result.err
