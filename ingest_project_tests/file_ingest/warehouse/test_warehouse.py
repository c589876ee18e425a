"""The promises of the warehouse, the same on PostgreSQL and SQLite."""

from __future__ import annotations

import math

import polars as pl
import pytest
import sqlalchemy as sa
from polars.testing import assert_frame_equal

from ingest_project.core.errors import DatabaseUnavailableError
from ingest_project.file_ingest.resources import open_warehouse
from ingest_project.file_ingest.tables import files, raw_sensor_data
from ingest_project.file_ingest.warehouse import StoredCounts
from ingest_project.file_ingest.warehouse.sql import SqlWarehouse
from ingest_project.platform.database import open_engine, reading
from ingest_project_tests.file_ingest.stored_metrics import metrics_of
from ingest_project_tests.file_ingest.warehouse.samples import (
    claims,
    finished,
    in_ledger,
    metrics,
    readings,
    refused,
    states,
)


def store(warehouse: SqlWarehouse, *frames: pl.DataFrame) -> None:
    rows = pl.concat(frames)
    with warehouse.transaction() as transaction:
        transaction.replace_files(rows["file_key"].unique().to_list())
        transaction.append_rows(rows)
        transaction.put_metrics(metrics(rows))


def test_readings_come_back_as_they_were(warehouse: SqlWarehouse, database_url: str) -> None:
    values = [0.1 + 0.2, -math.pi, 1e-300, 21.5]
    store(warehouse, readings("ü~1", values, device="gerät 7", kind="température"))
    engine = open_engine(database_url)
    with reading(engine) as connection:
        rows = connection.execute(sa.select(raw_sensor_data).order_by("line_number")).all()
    engine.dispose()
    assert [row.value for row in rows] == values
    assert [row.line_number for row in rows] == [2, 3, 4, 5]
    assert rows[0].timestamp.isoformat() == "2026-01-15T10:30:00+00:00"
    assert (rows[0].device_id, rows[0].sensor_type, rows[0].file_key) == ("gerät 7", "température", "ü~1")


def test_the_rows_of_one_file_are_read_in_the_types_they_were_stored_in(warehouse: SqlWarehouse) -> None:
    key = "it's 100% \\ü~1"
    rows = readings(key, [0.1 + 0.2, -1e308]).with_columns(unit=pl.lit(None, pl.String))
    store(warehouse, rows, readings("other", [3]))
    (found,) = warehouse.rows_of(key)
    assert_frame_equal(found.sort("line_number").drop("rescued_data"), rows.drop("file_key"))
    assert list(warehouse.rows_of("unknown")) == []


def test_letters_stay_the_same_whatever_encoding_sessions_have(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    warehouse = open_warehouse(postgres_url)
    store(warehouse, readings("ü~1", [1], device="gerät 温度"))
    warehouse.close()
    monkeypatch.delenv("PGCLIENTENCODING")
    engine = open_engine(postgres_url)
    with reading(engine) as connection:
        names = connection.execute(sa.select(raw_sensor_data.c.device_id, raw_sensor_data.c.file_key)).one()
    engine.dispose()
    assert names == ("gerät 温度", "ü~1")


def test_an_instant_is_shared_however_far_its_readings_are_apart(warehouse: SqlWarehouse) -> None:
    first, second = readings("a", range(10)), readings("a", range(10), device="device-2")
    store(warehouse, first, second, first.head(1), readings("b", [1]))
    shared = warehouse.shared_instants("a")
    assert shared.select("device_id", "readings").rows() == [("device-1", 2)]
    assert shared["timestamp"].to_list() == first["timestamp"].head(1).to_list()
    assert warehouse.shared_instants("b").is_empty()


def test_a_unit_may_be_missing_in_every_row(warehouse: SqlWarehouse) -> None:
    store(warehouse, readings("a", [1, 2]).with_columns(unit=pl.lit(None)))
    assert warehouse.totals().rows == 2


def test_storing_a_file_again_replaces_its_rows_and_nobody_elses(warehouse: SqlWarehouse, database_url: str) -> None:
    in_ledger(database_url, "a", "b")
    store(warehouse, readings("a", [1, 2, 3]), readings("b", [4, 5]))
    with warehouse.transaction() as transaction:
        transaction.replace_files(["a"])
        transaction.append_quarantined(refused("a", ["x"]))
    assert warehouse.file_counts(["a", "b", "c"]) == {
        "a": StoredCounts(0, 1, 0),
        "b": StoredCounts(2, 0, 1),
        "c": StoredCounts(0, 0, 0),
    }
    store(warehouse, readings("a", [7]))
    assert warehouse.file_counts(["a"]) == {"a": StoredCounts(1, 0, 1)}
    assert warehouse.totals() == StoredCounts(3, 0, 2)


def test_readings_known_only_by_the_queue_are_replaced_too(warehouse: SqlWarehouse, database_url: str) -> None:
    in_ledger(database_url, "a")
    with warehouse.transaction() as transaction:
        transaction.append_rows(readings("a", [1, 2, 3]))
        transaction.finish_files(finished("a", accepted=3))
    with warehouse.transaction() as transaction:
        transaction.replace_files(["a"])
        transaction.append_rows(readings("a", [9]))
    assert warehouse.totals().rows == 1


def test_an_exception_leaves_everything_as_it_was(warehouse: SqlWarehouse, database_url: str) -> None:
    in_ledger(database_url, "a")
    store(warehouse, readings("a", [1, 2]))

    def store_and_fail() -> None:
        with warehouse.transaction() as transaction:
            transaction.replace_files(["a"])
            transaction.append_rows(readings("a", [5]))
            transaction.finish_files(finished("a"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        store_and_fail()
    assert warehouse.file_counts(["a"]) == {"a": StoredCounts(2, 0, 1)}
    assert states(database_url) == {"a": "ingesting"}
    store(warehouse, readings("a", [5]))
    assert warehouse.file_counts(["a"]) == {"a": StoredCounts(1, 0, 1)}


def test_one_large_file_goes_in_many_chunks(warehouse: SqlWarehouse) -> None:
    rows = readings("a", range(5_000))
    with warehouse.transaction() as transaction:
        transaction.replace_files(["a"])
        for part in rows.iter_slices(700):
            transaction.append_rows(part)
        transaction.put_metrics(metrics(rows))
    assert warehouse.totals() == StoredCounts(5_000, 0, 1)


def test_empty_groups_and_frames_change_nothing(warehouse: SqlWarehouse) -> None:
    empty = readings("a", [])
    with warehouse.transaction() as transaction:
        transaction.replace_files([])
        transaction.append_rows(empty)
        transaction.append_quarantined(refused("a", []))
        transaction.put_metrics(metrics(empty))
        assert transaction.claim_contents(claims(("a", "1")).clear()) == {}
        assert transaction.release_contents([]) == ()
        transaction.finish_files(finished("a").clear())
    assert warehouse.totals() == StoredCounts()


def test_refused_rows_come_back_with_their_text_and_every_reason(warehouse: SqlWarehouse) -> None:
    texts = ['1,"a ""quoted"" cell",\t;\\N', "", "ümläut\r\nsecond line", "NULL"]
    with warehouse.transaction() as transaction:
        transaction.append_quarantined(refused("a", texts))
    rows = warehouse.quarantined_rows_of("a")
    assert [row.raw_text for row in rows] == texts
    assert rows[0].reasons == ("value_not_finite", "id_missing")
    assert [row.line_number for row in warehouse.quarantined_rows_of("a", limit=2)] == [100, 101]
    assert warehouse.quarantined_rows_of("b") == ()


def test_nul_characters_are_replaced_everywhere(warehouse: SqlWarehouse, database_url: str) -> None:
    in_ledger(database_url, "a")
    bad = refused("a", ["x\x00y"]).with_columns(reasons=pl.lit(["r\x00"], dtype=pl.List(pl.String)))
    with warehouse.transaction() as transaction:
        transaction.append_rows(readings("a", [1], device="d\x00"))
        transaction.append_quarantined(bad)
        transaction.finish_files(finished("a").with_columns(reason=pl.lit("why\x00")))
    row = warehouse.quarantined_rows_of("a")[0]
    assert (row.raw_text, row.reasons) == ("x\ufffdy", ("r\ufffd",))


def test_metrics_come_back_and_a_single_reading_has_no_deviation(warehouse: SqlWarehouse) -> None:
    store(warehouse, readings("a", [1, 2, 3]), readings("a", [5], device="device-2"), readings("b", [9]))
    found = metrics_of(warehouse, "a")
    assert [(m.device_id, m.min, m.max, m.mean, m.count, m.stddev) for m in found] == [
        ("device-1", 1.0, 3.0, 2.0, 3, 1.0),
        ("device-2", 5.0, 5.0, 5.0, 1, None),
    ]
    assert metrics_of(warehouse, "b")
    assert metrics_of(warehouse, "c") == ()


def test_the_first_file_stands_for_a_content_and_stays_so_when_it_comes_again(warehouse: SqlWarehouse) -> None:
    with warehouse.transaction() as transaction:
        assert transaction.claim_contents(claims(("b", "1"), ("a", "1"), ("c", "2"))) == {"b": "b", "a": "b", "c": "c"}
    with warehouse.transaction() as transaction:
        assert transaction.claim_contents(claims(("d", "1"), ("b", "1"))) == {"d": "b", "b": "b"}


def test_the_same_bytes_read_by_another_profile_are_another_content(warehouse: SqlWarehouse) -> None:
    with warehouse.transaction() as transaction:
        transaction.claim_contents(claims(("a", "1")))
        other = claims(("b", "1")).with_columns(meaning=pl.lit("other"))
        assert transaction.claim_contents(other) == {"b": "b"}


def test_a_claim_that_is_rolled_back_leaves_the_content_free(warehouse: SqlWarehouse) -> None:
    def claim_and_fail() -> None:
        with warehouse.transaction() as transaction:
            transaction.claim_contents(claims(("a", "1")))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        claim_and_fail()
    with warehouse.transaction() as transaction:
        assert transaction.claim_contents(claims(("b", "1"))) == {"b": "b"}


def test_duplicates_of_a_file_that_is_refused_now_are_ingested_again(
    warehouse: SqlWarehouse, database_url: str
) -> None:
    in_ledger(database_url, "a", "b", "c")
    with warehouse.transaction() as transaction:
        transaction.claim_contents(claims(("a", "1"), ("b", "1"), ("c", "2")))
        transaction.finish_files(
            pl.concat([finished("a"), finished("b", "duplicate", duplicate_of="a"), finished("c")])
        )
    with warehouse.transaction() as transaction:
        assert transaction.release_contents(["a", "x"]) == ("b",)
        transaction.finish_files(finished("a", "quarantined"))
    assert states(database_url) == {"a": "quarantined", "b": "pending", "c": "ingested"}
    with warehouse.transaction() as transaction:
        assert transaction.claim_contents(claims(("b", "1"))) == {"b": "b"}


def test_a_file_whose_content_changed_releases_its_old_content(warehouse: SqlWarehouse, database_url: str) -> None:
    in_ledger(database_url, "a", "b")
    with warehouse.transaction() as transaction:
        transaction.claim_contents(claims(("a", "1"), ("b", "1")))
        transaction.finish_files(pl.concat([finished("a"), finished("b", "duplicate", duplicate_of="a")]))
    with warehouse.transaction() as transaction:
        assert transaction.claim_contents(claims(("a", "2"))) == {"a": "a"}
    assert states(database_url)["b"] == "pending"
    with warehouse.transaction() as transaction:
        assert transaction.claim_contents(claims(("b", "1"))) == {"b": "b"}


def test_a_finished_file_has_its_result_in_the_queue(warehouse: SqlWarehouse, database_url: str) -> None:
    in_ledger(database_url, "a", "b")
    with warehouse.transaction() as transaction:
        transaction.finish_files(finished("a", "quarantined", accepted=3).with_columns(reason=pl.lit("no rows")))
    engine = open_engine(database_url)
    with reading(engine) as connection:
        row = connection.execute(sa.select(files).where(files.c.file_key == "a")).one()
    engine.dispose()
    assert (row.state, row.reason, row.run_id, row.rows_accepted) == ("quarantined", "no rows", "run-1", 3)
    assert row.rule_counts == {"value_not_finite": 1}
    assert row.finished_at == row.updated_at >= row.created_at
    assert states(database_url)["b"] == "ingesting"


def test_a_warehouse_that_was_closed_opens_again(warehouse: SqlWarehouse) -> None:
    store(warehouse, readings("a", [1]))
    warehouse.close()
    store(warehouse, readings("b", [1]))
    assert warehouse.totals().rows == 2


def test_a_warehouse_that_is_away_says_so_when_it_is_used() -> None:
    warehouse = open_warehouse("postgresql://somebody:secret@127.0.0.1:1/warehouse", connect_timeout_seconds=2)
    with pytest.raises(DatabaseUnavailableError) as caught, warehouse.transaction():
        pass
    assert "secret" not in str(caught.value)
