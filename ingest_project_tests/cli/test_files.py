"""`ingest files`: list files and show their outcomes."""

from __future__ import annotations

import pytest

from ingest_project.contracts.files import FileEvent
from ingest_project.core.console import nearest_keys
from ingest_project.file_ingest.file_queue import FileArrival
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project.platform.object_store.content_store import object_name
from ingest_project.platform.work_queue.queue import KafkaPosition
from ingest_project_tests.cli.conftest import Ingest
from ingest_project_tests.cli.known_files import ARRIVED, SHA256, TOPIC, arrive, arrive_from, finish

CLEAN, BAD, WAITING = "clean.csv~aaaaaaaaaa", "bad.csv~bbbbbbbbbb", "waiting.csv~cccccccccc"
NASTY = "\x1b[2J[red]raw"


@pytest.fixture(autouse=True)
def _three_files(services: SystemResources) -> None:
    arrive(services, CLEAN, BAD, WAITING)
    finish(services, CLEAN, FileState.INGESTED, rules={"value_out_of_range": 1}, refused={7: NASTY})
    finish(services, BAD, FileState.QUARANTINED, reason="missing_column: There is no column [value].")


def test_files_are_listed_with_state_rows_and_reason(ingest: Ingest) -> None:
    listed = ingest("files", "list")
    assert listed.exit_code == 0
    for text in (CLEAN, BAD, WAITING, "ingested", "quarantined", "pending", "no column [value]."):
        assert text in listed.out


@pytest.mark.parametrize("command", ["files", "quarantine"])
def test_files_of_one_name_are_told_apart_by_their_datasets_and_folders(
    ingest: Ingest, services: SystemResources, command: str
) -> None:
    assert "Folder" not in (plain := ingest(command, "list").out)
    assert "Dataset" not in plain
    arrive_from(services, "s1.csv", weather="/in/oslo/2026", orders="/in/bergen/2026", other="/in/oslo/2025")
    lines = {line.split()[0]: line.split()[1:3] for line in ingest(command, "list", "--search", "s1").out.splitlines()}
    assert lines == {
        "Key": ["Dataset", "Folder"],
        "s1.csv~weather": ["weather", "oslo/2026"],
        "s1.csv~orders": ["orders", "bergen/2026"],
        "s1.csv~other": ["other", "2025"],
    }


def test_the_list_can_be_narrowed_and_says_when_there_is_more(ingest: Ingest) -> None:
    assert [file["file_key"] for file in ingest("files", "list", "--state", "pending", "--json").json["files"]] == [
        WAITING
    ]
    assert [file["file_key"] for file in ingest("files", "list", "--search", "COLUMN", "--json").json["files"]] == [BAD]
    first = ingest("files", "list", "--limit", "2", "--json").json
    assert (len(first["files"]), first["more"]) == (2, True)
    assert "--limit" in ingest("files", "list", "--limit", "2").err
    nothing = ingest("files", "list", "--search", "no such thing")
    assert (nothing.exit_code, nothing.out, nothing.err) == (0, "", "No such files.\n")
    assert ingest("files", "list", "--state", "lost").exit_code == 2


def test_the_query_that_signs_an_address_is_not_listed(ingest: Ingest, services: SystemResources) -> None:
    path = "https://files.example/in/s1.csv"
    event = FileEvent(file_path=f"{path}?sig=hunter2", file_name="s1.csv")
    position = KafkaPosition(TOPIC, 2, 41, "g", ARRIVED)
    services.files.record([FileArrival("s1.csv~signed", event.file_path, event, "canonical", position)], ARRIVED)
    listed = ingest("files", "list", "--search", "signed", "--json")
    assert [file["location"] for file in listed.json["files"]] == [f"{path}?…"]
    assert "hunter2" not in listed.out


def test_everything_of_one_file_is_on_its_page(ingest: Ingest) -> None:
    page = ingest("files", "show", CLEAN)
    assert page.exit_code == 0
    for text in (
        "ingested",
        "local:/data/in/clean.csv",
        "file-event-queue[2]@41",
        "trace-of-clean.csv~aaaaaaaaaa",
        "job_123",
        "3 read, 2 accepted, 1 refused",
        "value_out_of_range 1",
        SHA256,
        object_name(SHA256),
        "device-1",
        "1.41421",
        "/assets/validated_sensor_data?view=partitions&partition=clean.csv~aaaaaaaaaa",
    ):
        assert text in page.out, page.out
    assert "\x1b" not in page.out
    assert r"\x1b[2J[red]raw" in page.out


def test_the_page_is_one_json_object(ingest: Ingest) -> None:
    page = ingest("files", "show", "clean", "--json").json
    assert (page["kind"], page["key"], page["state"]) == ("file", CLEAN, "ingested")
    assert page["facts"]["Message"]["key"] == "file-event-queue/2/41"
    assert page["facts"]["Broken rules"] == "value_out_of_range 1"
    assert page["rows"]["rejected"]["rows"] == [{"line": 7, "row": NASTY, "reasons": "value_out_of_range"}]
    assert page["rows"]["metrics"]["rows"][0]["mean"] == 21.0
    assert "quarantined" not in page["contents"]


def test_the_beginning_of_a_key_is_enough_where_it_is_unique(ingest: Ingest, services: SystemResources) -> None:
    assert ingest("files", "show", "wait").exit_code == 0
    arrive(services, "clean.csv~dddddddddd")
    result = ingest("files", "show", "clean.csv")
    assert result.exit_code == 1
    assert "2 keys begin with 'clean.csv'" in result.err
    assert "clean.csv~dddddddddd" in result.err


def test_an_unknown_key_is_exit_code_1_and_the_nearest_are_proposed(ingest: Ingest) -> None:
    result = ingest("files", "show", "claen.csv")
    assert result.exit_code == 1
    assert result.err == f"No file has the key 'claen.csv'. Nearest: {CLEAN}.\n" or CLEAN in result.err
    assert result.err.count("\n") == 1


def test_the_newest_of_several_versions_of_a_name_is_proposed() -> None:
    known = [f"sample_data_1.csv~{number:010d}" for number in range(50)]
    assert nearest_keys("sample_dta_1.csv", ["other.xls~1", *known])[0] in known
    assert nearest_keys("zzz", ["sample_data_1.csv~0"]) == []


def test_without_a_database_it_is_one_line_and_exit_code_1(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    result = ingest("files", "list")
    assert result.exit_code == 1
    assert "DATABASE_URL" in result.err
    assert result.err.count("\n") == 1
