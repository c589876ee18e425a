"""The warehouse on any database that SQLAlchemy reaches, SQLite first: ordinary statements, the same behaviour."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa

from ingest_project.file_ingest.tables import aggregated_metrics, contents, quarantined_rows, raw_sensor_data
from ingest_project.file_ingest.tables import files as ledger
from ingest_project.file_ingest.warehouse.frames import (
    CLAIMS,
    FINISHED,
    METRICS,
    QUARANTINED,
    READINGS,
    VERSIONS,
    fitted,
)
from ingest_project.file_ingest.warehouse.protocol import REPLACEABLE_STATES, VersionRow
from ingest_project.file_ingest.warehouse.queries import WarehouseQueries, in_parts
from ingest_project.platform.database.engine import writing

if TYPE_CHECKING:
    import polars as pl

ROWS_AT_A_TIME = 20_000


class SqlWarehouse(WarehouseQueries):
    """See `warehouse.Warehouse`."""

    def __init__(self, database_url: str, connect_timeout_seconds: float = 10) -> None:
        super().__init__(database_url, connect_timeout_seconds)

    @contextmanager
    def transaction(self) -> Iterator[SqlTransaction]:
        """One database transaction: committed at the end, rolled back when anything is raised.

        SQLite has one writer at a time; another one waits for it.
        """
        with writing(self._engine) as connection:
            yield SqlTransaction(connection)


class SqlTransaction:
    """See `warehouse.WarehouseTransaction`."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def lock_locations(self, location_keys: Sequence[str], *, wait: bool) -> set[str]:
        """All of them: SQLite has one writer at a time."""
        del wait
        return set(location_keys)

    def versions_at(self, location_keys: Sequence[str]) -> list[VersionRow]:
        """The versions of these locations that are not replaced."""
        c = ledger.c
        columns = (c.location_key, c.state, c.stands, c.version_at, c.announced_at)
        position = (c.kafka_topic, c.kafka_partition, c.kafka_offset, c.file_key)
        found: list[VersionRow] = []
        for part in in_parts(sorted(set(location_keys))):
            chosen = sa.and_(c.location_key.in_(part), sa.literal_column("state <> 'replaced'", sa.Boolean))
            found += [
                VersionRow(*row) for row in self._connection.execute(sa.select(*columns, *position).where(chosen))
            ]
        return found

    def replace_versions(self, successors: Mapping[str, str], run_id: str) -> tuple[str, ...]:
        """Mark versions as replaced, those that a run or a queue holds as not standing; returns the marked ones."""
        now, c = datetime.now(UTC), ledger.c
        replaced = []
        for old_key, new_key in sorted(successors.items()):
            self._connection.execute(sa.update(ledger).where(c.file_key == old_key).values(stands=False))
            finished = sa.and_(c.file_key == old_key, c.state.in_(REPLACEABLE_STATES))
            before = sa.case(
                (sa.or_(c.state == "ingested", c.reason.is_(None)), ""),
                else_=sa.literal(" It was ") + c.state + ": " + c.reason,
            )
            reason = sa.literal(f"{new_key} is newer and counts in its place.") + before
            statement = (
                sa.update(ledger)
                .where(finished)
                .values(state="replaced", replaced_by=new_key, reason=reason, run_id=run_id)
                .values(batch_id=None, reported_at=None, updated_at=now)
            )
            if self._connection.execute(statement).rowcount:
                replaced.append(old_key)
        return tuple(replaced)

    def pin_versions(self, versions: pl.DataFrame) -> None:
        """Record which versions were read of files whose events named none."""
        for row in fitted(versions, VERSIONS).iter_rows(named=True):
            key = row.pop("file_key")
            self._connection.execute(sa.update(ledger).where(ledger.c.file_key == key).values(**row, pinned=True))

    def replace_files(self, file_keys: Sequence[str]) -> None:
        """Delete what is stored of these files, and keep other transactions away from them until this one ends."""
        for part in in_parts(sorted(set(file_keys))):
            chosen = ledger.c.file_key.in_(part)
            # Written to itself: a lock in every dialect, and SQLite has its lock already.
            self._connection.execute(sa.update(ledger).where(chosen).values(state=ledger.c.state))
            for table in (aggregated_metrics, quarantined_rows, raw_sensor_data):
                self._connection.execute(sa.delete(table).where(table.c.file_key.in_(part)))

    def append_readings(self, readings: pl.DataFrame) -> None:
        """Store readings."""
        self._insert(raw_sensor_data, fitted(readings, READINGS))

    def append_quarantined(self, rows: pl.DataFrame) -> None:
        """Store refused rows."""
        self._insert(quarantined_rows, fitted(rows, QUARANTINED))

    def put_metrics(self, metrics: pl.DataFrame) -> None:
        """Store metrics of files that were replaced."""
        self._insert(aggregated_metrics, fitted(metrics, METRICS))

    def claim_contents(self, claims: pl.DataFrame) -> dict[str, str]:
        """For each file the key of the one that stands for its content."""
        owners: dict[str, str] = {}
        for claim in fitted(claims, CLAIMS).iter_rows(named=True):
            self._give_up_others(claim)
            owners[claim["file_key"]] = self._claim(claim)
        return owners

    def release_contents(self, file_keys: Sequence[str]) -> tuple[str, ...]:
        """These files no longer stand for any content; their duplicates are pending again and are returned."""
        reopened: list[str] = []
        for part in in_parts(file_keys):
            reopened += self._give_up(contents.c.file_key.in_(part))
        return tuple(reopened)

    def finish_files(self, files: pl.DataFrame) -> None:
        """End the ledger entries of these files."""
        now = datetime.now(UTC)
        for row in fitted(files, FINISHED).iter_rows(named=True):
            key, counts = row.pop("file_key"), row.pop("rule_counts")
            counts = sa.null() if counts is None else json.loads(counts)
            self._connection.execute(
                sa.update(ledger)
                .where(ledger.c.file_key == key)
                .values(**row, rule_counts=counts, updated_at=now, finished_at=now)
                .values(stands=row["state"] in {"ingested", "duplicate"}, retry_group=None)
            )

    def _claim(self, claim: Mapping[str, str]) -> str:
        query = sa.select(contents.c.file_key).where(
            contents.c.sha256 == claim["sha256"], contents.c.meaning == claim["meaning"]
        )
        owner = self._connection.execute(query).scalar()
        if owner is None:
            self._connection.execute(sa.insert(contents).values(**claim))
            return claim["file_key"]
        return str(owner)

    def _give_up_others(self, claim: Mapping[str, str]) -> None:
        other = sa.or_(contents.c.sha256 != claim["sha256"], contents.c.meaning != claim["meaning"])
        self._give_up(sa.and_(contents.c.file_key == claim["file_key"], other))

    def _give_up(self, chosen: sa.ColumnElement[bool]) -> list[str]:
        originals = self._connection.execute(sa.select(contents.c.file_key).where(chosen)).scalars().all()
        self._connection.execute(sa.delete(contents).where(chosen))
        now = datetime.now(UTC)
        duplicates = sa.and_(ledger.c.duplicate_of.in_(originals), ledger.c.state == "duplicate")
        reopened = list(self._connection.execute(sa.select(ledger.c.file_key).where(duplicates)).scalars())
        self._connection.execute(
            sa.update(ledger)
            .where(duplicates)
            .values(state="pending", attempts=0, duplicate_of=None, batch_id=None, run_id=None, finished_at=None)
            .values(next_attempt_at=now, updated_at=now, stands=False)
        )
        return reopened

    def _insert(self, table: sa.Table, frame: pl.DataFrame) -> None:
        if self._connection.dialect.name == "sqlite":
            # Straight to the driver: converting values one by one takes ten times as long as storing them.
            places = ", ".join("?" * len(frame.columns))
            names = ", ".join(f'"{name}"' for name in frame.columns)
            for part in _as_sqlite_stores(frame).iter_slices(ROWS_AT_A_TIME):
                self._connection.exec_driver_sql(
                    f"INSERT INTO {table.name} ({names}) VALUES ({places})", cast("Any", part.rows())
                )
            return
        for part in frame.iter_slices(ROWS_AT_A_TIME):
            self._connection.execute(sa.insert(table), part.to_dicts())


def _as_sqlite_stores(frame: pl.DataFrame) -> pl.DataFrame:
    """Times and lists as the text that the column types of `database.column_types` read back."""
    import polars as pl  # noqa: PLC0415 - whoever has a frame has it loaded
    import polars.selectors as cs  # noqa: PLC0415

    changed = frame.with_columns(cs.datetime().dt.strftime("%Y-%m-%d %H:%M:%S%.6f"))
    for name in [name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)]:
        texts = pl.Series(name, [json.dumps(values) for values in frame[name].to_list()], dtype=pl.String)
        changed = changed.with_columns(texts)
    return changed
