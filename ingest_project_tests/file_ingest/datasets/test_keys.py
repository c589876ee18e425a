"""Keys that must be unique in a file or in the table, also of files that are read in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance

from ingest_project_tests.file_ingest.datasets.system import (
    GOOD,
    HEADER,
    WEATHER,
    DatasetSystem,
    declare,
    opened,
    read_in_chunks,
    settings_of,
    weather_file,
)
from ingest_project_tests.services.kafka import Server

KEY = ["station", "observed_at"]


@pytest.fixture(params=["file", "table"])
def keyed(
    request: pytest.FixtureRequest, kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> Iterator[DatasetSystem]:
    """A system whose dataset has a key."""
    declaration: dict[str, Any] = {**WEATHER, "key": {"columns": KEY, "unique": request.param}}
    declare(tmp_path, "weather", **declaration)
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    yield system
    system.close()


@pytest.mark.parametrize("chunk_bytes", [1024**2, 60])
def test_rows_with_the_key_of_another_row_of_their_file_are_quarantined(
    keyed: DatasetSystem, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    read_in_chunks(monkeypatch, chunk_bytes)
    keyed.send_files(
        weather_file(keyed, content=HEADER + GOOD + "CCC,2026-01-15T10:00:00Z,,,,,\n" + GOOD.splitlines()[0] + "\n")
    )
    keyed.run_due()
    record = keyed.file("a.csv")
    assert (record.rows_accepted, record.rule_counts) == (3, {"station_observed_at_duplicate": 2})
    rejected = keyed.services.warehouse.quarantined_rows_of(record.file_key)
    assert [(row.line_number, row.raw_text[:3]) for row in rejected] == [(2, "AAA"), (6, "AAA")]


@pytest.mark.parametrize("chunk_bytes", [1024**2, 60])
def test_a_file_with_a_stored_key_is_quarantined_where_keys_are_unique_in_the_table(
    keyed: DatasetSystem, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    read_in_chunks(monkeypatch, chunk_bytes)
    keyed.send_files(weather_file(keyed))
    keyed.run_due()
    keyed.send_files(
        weather_file(keyed, "again.csv", HEADER + "DDD,2026-01-15T10:00:00Z,,,,,\n" + GOOD),
        weather_file(keyed, "other.csv", HEADER + "EEE,2026-01-15T10:00:00Z,,,,,\n"),
    )
    keyed.run_due()
    unique = keyed.declarations["weather"].key
    assert unique is not None
    assert keyed.states() == {
        "a.csv": "ingested",
        "again.csv": "quarantined" if unique.unique == "table" else "ingested",
        "other.csv": "ingested",
    }
    if unique.unique == "table":
        again = keyed.file("again.csv")
        assert again.rule_counts == {"stored_key": 1}
        assert again.reason == (
            "stored_key: The key of line 3 (station AAA, observed_at 2026-01-15 10:00:00Z) is stored already, of"
            f" the file {keyed.file('a.csv').file_key}; keys are declared unique in the table."
        )
        assert keyed.rows("SELECT station FROM weather WHERE station > 'CCC'") == [("EEE",)]
        # A newer version of the file that has them may have the same keys.
        keyed.send_files(weather_file(keyed, content=HEADER + GOOD + "FFF,2026-01-15T10:00:00Z,,,,,\n"))
        keyed.run_due()
        assert keyed.rows("SELECT COUNT(*) FROM weather") == [(5,)]


WORDS = [
    "weight",
    "grand_mean",
    "select",
    "user",
    "group",
    "from",
    "order",
    "limit",
    "default",
    "end",
    "table",
    "values",
    "check",
    "desc",
]
LONG = "t" * 60


@pytest.mark.parametrize("table", ["order", LONG], ids=["a word of SQL", "the longest name"])
@pytest.mark.parametrize("database", ["PostgreSQL", "SQLite"])
def test_names_may_be_words_of_sql_and_as_long_as_is_declared(  # noqa: PLR0913, PLR0917 - fixtures
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path, table: str, database: str
) -> None:
    declare(
        tmp_path,
        "order",
        columns=[{"name": "id", "type": "text"}, *({"name": name, "type": "integer"} for name in WORDS)],
        key={"columns": ["id", "order"], "unique": "table"},
        measures={"columns": ["select", "user"], "group_by": ["group", "table", "weight", "grand_mean"]},
        target={"table": table},
        drift="evolve",
        paths=["*/weather/*"],
    )
    url = postgres_url if database == "PostgreSQL" else f"sqlite:///{tmp_path}/w.db"
    system = opened(settings_of(kafka_server, url, tmp_path), instance, tmp_path)
    header = ",".join(["id", *WORDS, "Where"]) + "\n"
    for ids in ("a", "ab"):
        content = header + "".join(f"{one},{','.join(map(str, range(len(WORDS))))},x\n" for one in ids)
        system.send_files(weather_file(system, content=content))
        system.run_due()
    # The newer version has replaced the rows of the former; another file has the same key.
    system.send_files(weather_file(system, "b.csv", header.replace("Where", "Other") + f"b{',6' * len(WORDS)},y\n"))
    system.run_due()
    assert system.states() == {"a.csv": "ingested", "b.csv": "quarantined"}, system.file("b.csv").reason
    assert system.file("b.csv").rule_counts == {"stored_key": 1}
    assert system.rows(f'SELECT id, "order", "where" FROM "{table}" ORDER BY id') == [("a", 6, "x"), ("b", 6, "x")]
    assert system.rows("SELECT \"group\", max, count FROM order_metrics_merged WHERE measure = 'user'") == [(4, 3.0, 2)]
    system.close()


def test_a_key_that_is_too_long_for_an_index_costs_its_row_alone(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    columns = [{"name": name, "type": "text"} for name in ("a", "b")]
    key = {"columns": ["a", "b"], "unique": "table"}
    declare(tmp_path, "long", columns=columns, key=key, max_rejected_share=0.5, paths=["*/weather/*"])
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    # Nothing that could be compressed.
    text = "".join(hashlib.sha256(bytes([number])).hexdigest() for number in range(40))
    fits, long = text[:2_300], text[:2_500]
    system.send_files(weather_file(system, content=f"a,b\n{fits},{fits[:90]}\n{long},x\n,y\n"))
    system.run_due()
    record = system.file("a.csv")
    assert (record.state.value, record.rule_counts) == ("ingested", {"key_too_long": 1}), record.reason
    assert system.rows("SELECT LENGTH(a), LENGTH(b) FROM long ORDER BY line_number") == [(2_300, 90), (None, 1)]
    system.close()
