"""`ingest quarantine`: rejected files, their reasons, and retries."""

from __future__ import annotations

import pytest

from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.cli.known_files import SHA256, arrive, finish, take

CLEAN, SOME, BAD, WORSE = "clean.csv~1", "some.csv~2", "bad.csv~3", "worse.csv~4"
REASON = "missing_column: There is no column 'value'."


@pytest.fixture(autouse=True)
def _four_files(services: SystemResources) -> None:
    arrive(services, CLEAN, SOME, BAD, WORSE)
    finish(services, CLEAN, FileState.INGESTED)
    finish(services, SOME, FileState.INGESTED, rules={"value_out_of_range": 2}, refused={3: "x,y", 9: "z"})
    for key in (BAD, WORSE):
        finish(services, key, FileState.QUARANTINED, reason=REASON, rules={"missing_column": 1})
    services.quarantine.put(BAD, b"bytes", {"reason": REASON})


def state(services: SystemResources, key: str) -> FileState:
    record = services.files.get(key)
    assert record is not None
    return record.state


def test_files_that_were_refused_whole_are_listed(ingest: Ingest) -> None:
    listed = ingest("quarantine", "list")
    assert listed.exit_code == 0
    assert BAD in listed.out
    assert "missing_column 1" in listed.out
    assert CLEAN not in listed.out
    keys = {file["file_key"] for file in ingest("quarantine", "list", "--json").json["files"]}
    assert keys == {BAD, WORSE}


def test_a_refused_file_is_shown_with_its_reason_and_where_its_bytes_are(ingest: Ingest) -> None:
    shown = ingest("quarantine", "show", "bad")
    assert shown.exit_code == 0
    assert REASON in shown.out
    assert f"ingest show file {BAD} --bytes quarantined writes the file in quarantine." in shown.out
    assert ingest("show", "file", BAD, "--bytes", "quarantined").out == "bytes"
    assert ingest("quarantine", "show", "bad", "--json").json["reason"] == REASON


def test_refused_rows_are_shown_with_their_text(ingest: Ingest) -> None:
    shown = ingest("quarantine", "show", SOME, "--rows", "1")
    assert "4 read, 2 accepted, 2 refused" in shown.out
    assert "Rejected: first 1 of 2" in shown.out
    assert "x,y" in shown.out


def test_a_file_with_nothing_in_quarantine_is_exit_code_1(ingest: Ingest) -> None:
    shown = ingest("quarantine", "show", CLEAN)
    assert shown.exit_code == 1
    assert "ingested" in shown.err


def test_a_released_file_waits_to_be_ingested_again(ingest: Ingest, services: SystemResources) -> None:
    released = ingest("quarantine", "release", "bad", SOME)
    assert released.exit_code == 0
    assert BAD in released.out
    assert "2 files done." in released.out
    assert (state(services, BAD), state(services, SOME)) == (FileState.PENDING, FileState.PENDING)
    assert state(services, WORSE) is FileState.QUARANTINED
    assert services.quarantine.get(BAD) is not None


def test_all_releases_every_file_that_was_refused_whole_and_no_other(ingest: Ingest, services: SystemResources) -> None:
    assert set(ingest("quarantine", "release", "--all", "--json").json["done"]) == {BAD, WORSE}
    assert state(services, SOME) is FileState.INGESTED
    again = ingest("quarantine", "release", "--all")
    assert (again.exit_code, again.out) == (0, "No file matches.\n")


def test_a_misspelt_key_among_others_changes_nothing(ingest: Ingest, services: SystemResources) -> None:
    result = ingest("quarantine", "release", BAD, "wrose.csv")
    assert result.exit_code == 1
    assert WORSE in result.err
    assert state(services, BAD) is FileState.QUARANTINED


def test_a_file_leased_by_a_run_is_left_there(ingest: Ingest, services: SystemResources) -> None:
    take(services, WORSE)
    result = ingest("quarantine", "release", WORSE, "--json")
    assert result.exit_code == 1
    assert (result.json["done"], [*result.json["in_progress"]]) == ([], [WORSE])


def test_a_file_released_with_a_profile_gets_a_key_of_its_own_and_keeps_its_bytes(
    ingest: Ingest, services: SystemResources
) -> None:
    created = ingest("quarantine", "release", BAD, "--profile", "skab", "--json").json["created"]
    record = services.files.get(created[BAD])
    assert record is not None
    assert (record.state, record.profile, record.event.metadata["format"]) == (FileState.PENDING, "skab", "skab")
    assert (record.location, record.sha256) == ("local:/data/in/bad.csv", SHA256)
    assert state(services, BAD) is FileState.QUARANTINED, "until the new reading is accepted"
    again = ingest("quarantine", "release", BAD, "--profile", "skab")
    assert (again.exit_code, state(services, BAD)) == (1, FileState.QUARANTINED)


def test_a_profile_that_there_is_not_changes_nothing(ingest: Ingest, services: SystemResources) -> None:
    result = ingest("quarantine", "release", BAD, "--profile", "scab")
    assert result.exit_code == 2
    assert "skab" in result.err
    assert len(services.files.list()) == 4


@pytest.mark.parametrize("arguments", [[], ["--all", BAD]])
def test_an_ambiguous_selection_of_files_to_release_is_wrong_usage(ingest: Ingest, arguments: list[str]) -> None:
    assert ingest("quarantine", "release", *arguments).exit_code == 2
