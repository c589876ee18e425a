"""Opportunities and projects: each record once, in its newest version, in whatever order its versions come.

Of two versions the one with the later `last_modified` stays. Two that claim the same moment are ordered by their
content, and the same content read at two positions by the positions: any order and any repetition of the same messages
leaves the same rows.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import sqlalchemy as sa

from ingest_project.database.crm_tables import opportunities, projects
from ingest_project.messages.crm_event import CrmKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ingest_project.messages.crm_event import CrmEvent

TABLES: Mapping[CrmKind, sa.Table] = {CrmKind.OPPORTUNITY: opportunities, CrmKind.PROJECT: projects}
# PostgreSQL plans the whole of one parameter at once; a few thousand rows are as fast as more.
ROWS_AT_A_TIME = 5_000
JSON_COLUMNS = ("tags", "meta_data", "other_fields")


class Position(NamedTuple):
    """Where a message stands."""

    topic: str
    generation: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """As people write it."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


class PlacedEvent(NamedTuple):
    """A version of a record and the message that brought it."""

    event: CrmEvent
    position: Position


class Upserted(NamedTuple):
    """What an upsert did.

    Args:
        messages: versions that were given.
        changed: rows that are new or have a newer version now.
    """

    messages: int
    changed: int

    @property
    def unchanged(self) -> int:
        """Versions that were older than, or the same as, another one."""
        return self.messages - self.changed


def upsert(connection: sa.Connection, kind: CrmKind, placed: Iterable[PlacedEvent], now: datetime) -> Upserted:
    """Store versions of records of one kind, in the caller's transaction.

    Upserts on event_id; an older version never overwrites a newer one, and doing it again changes nothing.
    """
    messages = list(placed)
    # In one order everywhere: two transactions that touch the same records wait for each other, and never in a circle.
    newest = sorted(_newest(messages), key=lambda one: one.event.event_id)
    changed = 0
    for start in range(0, len(newest), ROWS_AT_A_TIME):
        changed += _upsert_rows(connection, TABLES[kind], newest[start : start + ROWS_AT_A_TIME], now)
    return Upserted(len(messages), changed)


def out_of_range(connection: sa.Connection, kind: CrmKind) -> int:
    """Stored records with a negative amount, or a probability outside 0 to 100."""
    table = TABLES[kind]
    number: Any = sa.REAL if connection.dialect.name == "sqlite" else sa.Numeric

    def below(name: str, limit: int) -> sa.ColumnElement[bool]:
        return sa.cast(table.c[name], number) < limit

    if kind is CrmKind.PROJECT:
        wrong = below("budget", 0)
    else:
        wrong = sa.or_(below("amount", 0), below("probability", 0), sa.cast(table.c.probability, number) > 100)  # noqa: PLR2004 - per cent
    return int(connection.execute(sa.select(sa.func.count()).select_from(table).where(wrong)).scalar_one())


def count(connection: sa.Connection, kind: CrmKind) -> int:
    """How many records are stored."""
    return int(connection.execute(sa.select(sa.func.count()).select_from(TABLES[kind])).scalar_one())


def _newest(messages: Sequence[PlacedEvent]) -> Iterable[PlacedEvent]:
    """Of each record the version that would be left in the end: one statement touches a row only once."""
    newest: dict[str, PlacedEvent] = {}
    for one in messages:
        known = newest.setdefault(one.event.event_id, one)
        if known is not one and _supersedes(one, known):
            newest[one.event.event_id] = one
    return newest.values()


def _supersedes(new: PlacedEvent, old: PlacedEvent) -> bool:
    """The same rule as in `_upsert_statement`."""
    new_version = (new.event.last_modified, new.event.content_sha256)
    old_version = (old.event.last_modified, old.event.content_sha256)
    return new_version > old_version or (new_version == old_version and new.position < old.position)


def _upsert_rows(connection: sa.Connection, table: sa.Table, placed: Sequence[PlacedEvent], now: datetime) -> int:
    if connection.dialect.name == "postgresql":
        rows = [_row(one, now.isoformat(), _iso, _raw) for one in placed]
        columns = ", ".join(rows[0])
        source = (
            f"SELECT {columns} FROM json_populate_recordset(CAST(NULL AS {table.name}), CAST(:rows AS json))"
            " ORDER BY event_id"
        )
        statement = sa.text(_upsert_statement(table, list(rows[0]), source))
        return connection.execute(statement, {"rows": msgspec.json.encode(rows).decode()}).rowcount
    rows = [_row(one, _sqlite_time(now), _sqlite_time, str) for one in placed]
    values = ", ".join(f":{name}" for name in rows[0])
    return connection.execute(sa.text(_upsert_statement(table, list(rows[0]), f"VALUES ({values})")), rows).rowcount


def _upsert_statement(table: sa.Table, columns: Sequence[str], source: str) -> str:
    name = table.name
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns if column != "event_id")

    def tuple_of(whose: str, *names: str) -> str:
        return "(" + ", ".join(f"{whose}.{column}" for column in names) + ")"

    version = ("last_modified", "content_sha256")
    position = ("kafka_topic", "kafka_generation", "kafka_partition", "kafka_offset")
    return (
        f"INSERT INTO {name} ({', '.join(columns)}) {source}"
        f" ON CONFLICT (event_id) DO UPDATE SET {changes}"
        f" WHERE {tuple_of('excluded', *version)} > {tuple_of(name, *version)}"
        f" OR ({tuple_of('excluded', *version)} = {tuple_of(name, *version)}"
        f" AND {tuple_of('excluded', *position)} < {tuple_of(name, *position)})"
    )


def _row(placed: PlacedEvent, stored_at: str, time: Any, json: Any) -> dict[str, Any]:  # noqa: ANN401 - text makers
    """A row whose values are texts and whole numbers, as either database takes them without a loss."""
    event, position = placed
    row = {
        "event_id": event.event_id,
        "name": event.name,
        **{name: _exact(value) for name, value in event.own.items()},
        "account_id": event.account_id,
        "owner_id": event.owner_id,
        "source": event.source,
        "tags": event.tags,
        "notes": event.notes,
        "meta_data": event.meta_data,
        "other_fields": event.other_fields,
        "last_modified": time(event.last_modified),
        "content_sha256": event.content_sha256,
        "kafka_topic": position.topic,
        "kafka_generation": position.generation,
        "kafka_partition": position.partition,
        "kafka_offset": position.offset,
        "stored_at": stored_at,
    }
    return row | {name: json(row[name]) for name in JSON_COLUMNS if row[name] is not None}


def _exact(value: str | Decimal | date | None) -> str | None:
    if isinstance(value, Decimal):
        return format(value, "f")
    return value.isoformat() if isinstance(value, date) else value


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(text.encode())


def _iso(moment: datetime) -> str:
    return moment.isoformat()


def _sqlite_time(moment: datetime) -> str:
    """As SQLAlchemy writes times there: of fixed width, so that text order is time order."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
