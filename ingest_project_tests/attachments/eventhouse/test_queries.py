"""Queries come from files, and an error names its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest_project.attachments.eventhouse.queries import load_queries, page_text, server_time_text
from ingest_project_tests.attachments.eventhouse.samples import claims

CLAIMS = """
domain: claims
database: ClaimsDb
table: ClaimDocuments
key: [DocumentSetId, Revision]
steps: |
  | where Status == 'received'
  | extend Uploads = todynamic(UploadsJson)
columns: {trace_id: ClaimId, attachments: Uploads}
mode: window
overlap_seconds: 300
page_rows: 1000
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_folder_of_files_is_a_query_for_each_domain(tmp_path: Path) -> None:
    write(tmp_path, "claims.yaml", CLAIMS)
    write(tmp_path, "policies.yml", "{domain: policies, database: Db, table: Policies, key: [Id]}")

    queries, problems = load_queries([tmp_path])

    assert problems == []
    assert set(queries) == {"claims", "policies"}
    assert queries["claims"].columns.trace_id == "ClaimId"
    assert queries["claims"].columns.payload == "payload"
    assert queries["policies"].mode == "cursor"
    assert queries["claims"].source == "window:ClaimsDb.ClaimDocuments"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (CLAIMS.replace("database:", "databse:"), "databse is unknown, did you mean database"),
        (CLAIMS.replace("trace_id:", "trace:"), "columns.trace is unknown, did you mean trace_id"),
        (CLAIMS.replace("| where", "where"), "begin with '|'"),
        (CLAIMS.replace("ClaimDocuments", '"x\'] | take 1 //"'), "table"),
        (CLAIMS.replace("[DocumentSetId, Revision]", "[]"), "key"),
        (CLAIMS.replace("mode: window", "mode: often"), "mode"),
        (CLAIMS.replace("page_rows: 1000", "page_rows: 600000"), "500000"),
        (CLAIMS.replace("domain: claims", "domain: Claims & more"), "domain"),
        ("[1]", "must hold names and values"),
        ("{", "is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, "claims.yaml", text)

    queries, (problem,) = load_queries([path])

    assert queries == {}
    assert said in str(problem)
    assert str(path) in str(problem)


def test_two_files_for_one_domain_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a.yaml", CLAIMS), write(tmp_path, "b.yaml", CLAIMS)

    queries, (twice, missing) = load_queries([first, second, tmp_path / "none.yaml"])
    assert [*queries] == ["claims"]
    assert "already is an Eventhouse query for the domain 'claims'" in str(twice)
    assert "Cannot read" in str(missing)


def test_the_text_of_a_page_by_cursor() -> None:
    assert page_text(claims(steps="| where x == 1"), 50, until_is_known=True, goes_on=True) == (
        "declare query_parameters(_after:string, _until:string, _page_at:string, _page_key:string);\n"
        "['ClaimDocuments']\n"
        "| where cursor_after(_after) and cursor_before_or_at(_until)\n"
        "| extend _ingest_at = coalesce(ingestion_time(), datetime(1900-01-01))\n"
        "| where x == 1\n"
        "| extend _ingest_key = substring(hash_sha256(iff(isempty(strcat(tostring(['EventId']))), "
        "tostring(pack_all()), strcat(tostring(['EventId'])))), 0, 32)\n"
        "| where _ingest_at > todatetime(_page_at) "
        "or (_ingest_at == todatetime(_page_at) and strcmp(_ingest_key, _page_key) > 0)\n"
        "| sort by _ingest_at asc, _ingest_key asc\n"
        "| take 50"
    )


def test_the_first_page_has_no_upper_bound_and_begins_at_the_front() -> None:
    text = page_text(claims(), 50, until_is_known=False, goes_on=False)

    assert "cursor_before_or_at" not in text
    assert "strcmp" not in text


def test_the_text_of_a_window() -> None:
    query = claims(mode="window", table="Claim Documents")

    assert (
        "['Claim Documents']\n"
        "| where ingestion_time() > todatetime(_after) and ingestion_time() <= todatetime(_until)\n"
    ) in page_text(query, 50, until_is_known=True, goes_on=False)
    assert server_time_text(query).startswith("['Claim Documents']\n| take 1\n")
