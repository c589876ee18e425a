"""Items: the things that people search for by any of their ids, and the contents of an item's page.

An item is a file, an attachment, an event, a message, or a polling job. Each capability finds and describes its own
items; a description opens rows and bytes only when they are requested.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec
import sqlalchemy as sa
from rich.table import Table

from ingest_project.core.console import add_row, complain, data_text, print_json, say, show, show_facts, stdout, table
from ingest_project.core.settings import Settings
from ingest_project.platform.database import reading
from ingest_project.platform.database.sql import primary_key
from ingest_project.platform.tracing import context_prefix, trace_ids_of

KINDS = ("file", "attachment", "event", "message", "polling_job")
# Other names for these kinds, used by people and other parts of the system.
OTHER_NAMES = {"attachment_event": "event", "job": "polling_job", "stream_message": "message"}
MAX_SEARCH_LENGTH = 2_000
MAX_HITS = 50
MAX_NEIGHBOURS = 20
LARGEST_OFFSET = 2**63 - 1
_POSITION = (
    re.compile(r"([A-Za-z0-9._-]{1,249})\s*[/:\s]\s*(\d{1,9})\s*[/:\s]\s*(\d{1,19})"),
    re.compile(r"([A-Za-z0-9._-]{1,249})\[(\d{1,9})\]@(\d{1,19})"),
)
# Every key ends with a hash of 128 bits in base32 or hexadecimal.
KEY_HASH = re.compile(r"[a-z2-7]{26}|[0-9a-f]{32}")


class ItemRef(msgspec.Struct, frozen=True, order=True):
    """Identity of an item.

    Args:
        kind: one of KINDS.
        key: key of its entry in the work queue; `topic/partition/offset` for a message.
    """

    kind: str
    key: str

    @classmethod
    def of(cls, kind: str, key: str) -> ItemRef:
        """Return the item that a person names; the kind may be one of OTHER_NAMES."""
        plain = kind.strip().lower().replace("-", "_")
        position = Position.parse(key) if (name := OTHER_NAMES.get(plain, plain)) == "message" else None
        return cls(name, str(position or key))


class Position(NamedTuple):
    """Position of a message in Kafka."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """Return the key of the message."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Parse any usual notation: `topic/0/42`, `topic:0:42`, `topic 0 42`, `topic[0]@42`; None for other texts."""
        for notation in _POSITION:
            if (found := notation.fullmatch(text.strip())) and int(found[3]) <= LARGEST_OFFSET:
                return cls(found[1], int(found[2]), int(found[3]))
        return None

    @classmethod
    def of(cls, row: Mapping[str, Any] | sa.RowMapping) -> Position:
        """Return the position of a stored row."""
        return cls(row["kafka_topic"], row["kafka_partition"], row["kafka_offset"])

    def matches(self, table: sa.Table) -> sa.ColumnElement[bool]:
        """Match the rows of the message."""
        columns = table.c
        return sa.and_(
            columns.kafka_offset == self.offset,
            columns.kafka_partition == self.partition,
            columns.kafka_topic == self.topic,
        )


class Search(msgspec.Struct, frozen=True):
    """A search by a person.

    Args:
        text: search text, without surrounding spaces.
        by_prefix: match values that begin with the text instead of equal ones.
    """

    text: str
    by_prefix: bool = False

    @classmethod
    def of(cls, text: str) -> Search:
        """Return the search for a text that a person typed or pasted."""
        # No id contains NUL, which PostgreSQL refuses.
        return cls(text[:MAX_SEARCH_LENGTH].replace("\x00", "").strip())

    @property
    def position(self) -> Position | None:
        """Return the Kafka position that the text names, if any."""
        return Position.parse(self.text)

    @property
    def name(self) -> str:
        """Return the last part of a path or URL, decoded."""
        try:
            path = unquote(urlsplit(self.text).path) if "://" in self.text else self.text
        except ValueError:
            path = self.text
        return path.rstrip("/").rpartition("/")[2]

    def equals(self, *columns: sa.Column[Any]) -> Iterator[sa.ColumnElement[bool]]:
        """Yield one condition per column, that it equals or begins with the text, so that each uses its own index."""
        for column in columns:
            yield column.startswith(self.text, autoescape=True) if self.by_prefix else column == self.text

    def ends_key(self, key: sa.Column[str], length: int) -> Iterator[sa.ColumnElement[bool]]:
        """Yield the condition that the text is the hash at the end of a key, or a key truncated within its hash.

        Args:
            key: column of the keys.
            length: length of the hash.
        """
        name, _, ending = self.text.rpartition("~")
        if not self.by_prefix and not name and KEY_HASH.fullmatch(ending.lower()):
            yield key_hash(key, length) == ending.lower()
        elif self.by_prefix and name and ending:
            ends = key_hash(key, length).startswith(ending, autoescape=True)
            yield sa.and_(ends, key.startswith(self.text, autoescape=True))


class Hit(msgspec.Struct, frozen=True):
    """An item that was found.

    Args:
        name: name for people: a file's name, an attachment's address.
        at: time of its last change, UTC.
    """

    kind: str
    key: str
    name: str
    state: str
    at: datetime | None

    @property
    def ref(self) -> ItemRef:
        """Return the item's identity."""
        return ItemRef(self.kind, self.key)


class Moment(msgspec.Struct, frozen=True, order=True):
    """One event in the history of an item.

    Args:
        at: time of the event, UTC.
        subject: the entry or record, e.g. `file readings.csv~3fa9c1d2e0`.
        what: description of the event.
        detail: further details for a person.
    """

    at: datetime
    subject: str
    what: str
    detail: str = ""


class RowPage(msgspec.Struct, frozen=True):
    """Some rows of a list.

    Args:
        columns: names of the columns.
        rows: values of the rows.
        more: True if further rows follow.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool


class RowList(NamedTuple):
    """A list of rows, read a page at a time.

    Args:
        total: number of rows; None if counting them costs too much.
        page: returns a page of rows, given its first index and its length.
    """

    total: int | None
    page: Callable[[int, int], RowPage]


def listed(columns: tuple[str, ...], rows: tuple[tuple[Any, ...], ...]) -> RowList:
    """Return a list of rows that are in memory."""
    return RowList(
        len(rows), lambda first, limit: RowPage(columns, rows[first : first + limit], more=first + limit < len(rows))
    )


def records_page(columns: tuple[str, ...], records: Sequence[object], first: int, limit: int) -> RowPage:
    """Return a page of records that are in memory, with their attributes as columns."""
    rows = tuple(tuple(getattr(one, name) for name in columns) for one in records[first : first + limit])
    return RowPage(columns, rows, more=first + limit < len(records))


class Content(NamedTuple):
    """Bytes that can be downloaded.

    Args:
        what: description for people, e.g. `the file as it was landed`.
        file_name: suggested name of the downloaded file.
        size_bytes: size; None if it is not known in advance.
        open: opens a local file with the bytes, or returns the bytes.
    """

    what: str
    file_name: str
    size_bytes: int | None
    open: Callable[[], AbstractContextManager[Path] | bytes]


class Related(NamedTuple):
    """Other items with one relation to an item, last changed first.

    Args:
        more: True if there are further ones.
    """

    hits: tuple[Hit, ...]
    more: bool = False


@dataclass(frozen=True, kw_only=True)
class ItemView:
    """The contents of an item's page.

    Args:
        ref: identity of the item.
        name: name for people.
        state: state of its entry.
        reason: why it failed, waits or was refused.
        trace_id: id of its trace.
        position: position of the message that announced it.
        topic_id: id of that message's topic: a recreated topic has other messages at the same offsets.
        facts: further values by name; None values are left out.
        moments: its history, unordered.
        rows: `accepted` and `rejected` rows.
        contents: bytes by name, e.g. `landed`.
        run_id: id of the Dagster run that worked on it last.
        asset: path of the asset whose partition `partition` shows it.
        related: other items, by relation: versions, neighbours in the batch, files of a job.
        problems: the parts that could not be read, with reasons.
    """

    ref: ItemRef
    name: str
    state: str = ""
    reason: str | None = None
    trace_id: str | None = None
    position: Position | None = None
    topic_id: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    moments: Sequence[Moment] = ()
    rows: Mapping[str, RowList] = field(default_factory=dict)
    contents: Mapping[str, Content] = field(default_factory=dict)
    run_id: str | None = None
    asset: str | None = None
    partition: str | None = None
    related: Mapping[str, Related] = field(default_factory=dict)
    problems: Sequence[str] = ()

    @property
    def history(self) -> list[Moment]:
        """Return the moments in time order; simultaneous ones keep their order, e.g. a message before its file."""
        return sorted(self.moments, key=lambda moment: moment.at)


def print_item(view: ItemView, settings: Settings, rows: int, *, as_json: bool) -> None:
    """Print the whole view, for a person or as one JSON object.

    Args:
        view: view of the item.
        settings: settings with the address of the Dagster UI.
        rows: number of rows to print of each list.
        as_json: print JSON.
    """
    url = settings.dagster.partition_url(view.asset, view.partition) if view.asset and view.partition else None
    if as_json:
        print_json({**_as_record(view, rows), "ui": url})
        return
    say(view.ref.key, style="bold")
    own = {"State": view.state, "Reason": view.reason, "Trace": view.trace_id, "Run": view.run_id}
    facts = {name: value.key if isinstance(value, ItemRef) else value for name, value in view.facts.items()}
    show_facts([*(own | facts | {"Dagster UI": url}).items()])
    if view.moments:
        history = table("Time", "Happened", "Detail")
        for moment in view.history:
            add_row(history, moment.at, moment.what, moment.detail)
        show(history, "History")
    _print_lists(view, rows)
    if view.contents:
        stdout().print()
        for name, content in view.contents.items():
            say(f"ingest show {view.ref.kind} {view.ref.key} --bytes {name} writes {content.what}.")
    for problem in view.problems:
        complain(problem)


def _print_lists(view: ItemView, rows: int) -> None:
    for name, rows_of in view.rows.items():
        page = rows_of.page(0, rows)
        if page.rows:
            total = "" if rows_of.total is None else f" of {rows_of.total:,}"
            title = f"{name.replace('_', ' ').capitalize()}: first {len(page.rows):,}{total}"
            made = table(*page.columns)
            for row in page.rows:
                add_row(made, *map(data_text, row))
            show(made, title)
    for name, related in view.related.items():
        show(table_of_hits(related.hits), name.capitalize())


def table_of_hits(hits: Iterable[Hit]) -> Table:
    """Return the found items as a table for people."""
    made = table("Kind", "Key", "Name", "State", "Changed")
    for hit in hits:
        add_row(made, hit.kind, hit.key, hit.name, hit.state, hit.at)
    return made


def _as_record(view: ItemView, rows: int) -> dict[str, object]:
    """Return a view for JSON, with the first rows of each list."""
    lists = {}
    for name, one in view.rows.items():
        page = one.page(0, rows)
        named = [dict(zip(page.columns, row, strict=True)) for row in page.rows]
        lists[name] = {"total": one.total, "rows": named, "more": page.more}
    return {
        "kind": view.ref.kind,
        "key": view.ref.key,
        "name": view.name,
        "state": view.state,
        "reason": view.reason,
        "trace_id": view.trace_id,
        "facts": {name: value for name, value in view.facts.items() if value is not None},
        "history": view.history,
        "rows": lists,
        "contents": {name: {"what": one.what, "size_bytes": one.size_bytes} for name, one in view.contents.items()},
        "run_id": view.run_id,
        "asset": view.asset,
        "partition": view.partition,
        "related": {name: {"items": one.hits, "more": one.more} for name, one in view.related.items()},
        "problems": view.problems,
    }


@dataclass(frozen=True)
class QueueView:
    """A work queue as operations see it, and a table of items.

    Args:
        kind: name in metrics and on the dashboard, e.g. `polling_job`.
        table: table of the entries, with the columns of every work queue.
        states: all states, in the order in which people see them.
        name: column with the name for people.
        found_by: returns further conditions of a search, besides those on key, trace and position; each must have an
            index.
        history: returns the recorded moments of an entry, unordered.
        hash_length: length of the hash at the end of a key.
        failed_states: states in which an entry needs a person.
        expiring_states: states whose entries retention may purge, with their partitions.
        partitions: name of the partition set whose keys are the entries; None without partitions.
        asset: asset whose partition shows an entry, if any.
        routes: column that determines the partition set and the asset of an entry; None if all entries have the same
            ones.
        set_of, asset_of: return the partition set and the asset for a value of that column.
    """

    kind: str
    table: sa.Table
    states: type[StrEnum]
    name: sa.Column[str]
    found_by: Callable[[Search], Iterable[sa.ColumnElement[bool]]]
    history: Callable[[sa.RowMapping], Iterable[Moment]]
    hash_length: int = 26
    failed_states: tuple[str, ...] = ("failed",)
    expiring_states: tuple[str, ...] = ()
    partitions: str | None = None
    asset: str | None = None
    routes: sa.Column[str] | None = None
    set_of: Callable[[str], str] | None = None
    asset_of: Callable[[str], str] | None = None

    @property
    def key(self) -> sa.Column[str]:
        """Return the primary key of the table."""
        return primary_key(self.table)

    @property
    def item_kind(self) -> str:
        """Return the kind of its items, one of KINDS."""
        return OTHER_NAMES.get(self.kind, self.kind)

    @property
    def noun(self) -> str:
        """Return the kind as words, e.g. `polling job`."""
        return self.kind.replace("_", " ")

    def partition_sets(self, connection: sa.Connection) -> list[str]:
        """Return the names of all partition sets of the entries."""
        if self.routes is None or self.set_of is None:
            return [self.partitions] if self.partitions else []
        names = connection.execute(sa.select(self.routes).distinct()).scalars()
        return sorted({str(self.partitions), *map(self.set_of, names)})

    def asset_showing(self, route: str) -> str | None:
        """Return the asset whose partitions show the entries of a route."""
        return self.asset if self.asset_of is None else self.asset_of(route)

    def has_expired(self, cutoff: datetime) -> sa.ColumnElement[bool]:
        """Match the entries in an expiring state that were reported before the cutoff."""
        columns = self.table.c
        return sa.and_(
            columns.state.in_(self.expiring_states),
            columns.reported_at.is_not(None),
            sa.func.coalesce(columns.finished_at < cutoff, sa.false()),
        )

    def find(self, connection: sa.Connection, search: Search, limit: int) -> Iterator[Hit]:
        """Yield the items that match a search."""
        conditions = [*self.found_by(search), *search.ends_key(self.key, self.hash_length)]
        if not search.by_prefix:
            conditions += [self.key == search.text, *conditions_of_trace(self.table, search.text)]
            conditions += [search.position.matches(self.table)] if search.position else []
        for condition in conditions:
            yield from self.where(connection, condition, limit)

    def where(self, connection: sa.Connection, condition: sa.ColumnElement[bool], limit: int) -> tuple[Hit, ...]:
        """Return at most `limit` items that match a condition."""
        columns = self.table.c
        query = sa.select(self.key, self.name, columns.state, columns.updated_at).where(condition).limit(limit)
        return tuple(Hit(self.item_kind, *row) for row in connection.execute(query))

    def related(self, connection: sa.Connection, condition: sa.ColumnElement[bool], limit: int = MAX_HITS) -> Related:
        """Return the items that match a condition, as a bounded list."""
        found = self.where(connection, condition, limit + 1)
        newest_first = sorted(found[:limit], key=lambda hit: (hit.at, hit.key), reverse=True)
        return Related(tuple(newest_first), more=len(found) > limit)

    def row(self, connection: sa.Connection, key: str) -> sa.RowMapping | None:
        """Return the entry with a key."""
        return connection.execute(sa.select(self.table).where(self.key == key)).mappings().one_or_none()

    def view(self, connection: sa.Connection, row: sa.RowMapping) -> ItemView:
        """Describe an entry by the columns that every work queue has."""
        return ItemView(
            ref=ItemRef(self.item_kind, row[self.key.name]),
            name=row[self.name.name],
            state=row["state"],
            reason=row["reason"],
            trace_id=row["trace_id"],
            position=Position.of(row),
            topic_id=row["kafka_topic_id"],
            moments=[*self.history(row)],
            run_id=row["run_id"],
            asset=self.asset_showing("" if self.routes is None else row[self.routes.name]),
            partition=row[self.key.name],
            related=self.neighbours(connection, row),
        )

    def neighbours(self, connection: sa.Connection, row: sa.RowMapping) -> dict[str, Related]:
        """Return the other items in the batch of an item's last run."""
        if row["batch_id"] is None:
            return {}
        others = sa.and_(self.table.c.batch_id == row["batch_id"], self.key != row[self.key.name])
        found = self.related(connection, others, MAX_NEIGHBOURS)
        return {"in the same run": found} if found.hits else {}


def conditions_of_trace(table: sa.Table, text: str) -> Iterator[sa.ColumnElement[bool]]:
    """Yield the conditions that an entry is part of a trace, so that each uses its own index.

    Args:
        table: table of the entries.
        text: the project's trace id, an OpenTelemetry trace id, or a `traceparent`.
    """
    ids = trace_ids_of(text)
    yield table.c.trace_id == ids[0] if len(ids) == 1 else table.c.trace_id.in_(ids)
    if (prefix := context_prefix(text)) is not None and "traceparent" in table.c:
        yield table.c.traceparent.startswith(prefix)


def key_hash(key: sa.Column[str], length: int) -> sa.ColumnElement[str]:
    """Return the hash at the end of a key, written exactly as in its index."""
    start = sa.func.length(key) - sa.literal_column(str(length - 1))
    return sa.func.substr(key, start, type_=sa.Text)


def find_in(engine: sa.Engine, queues: Iterable[QueueView], search: Search, limit: int) -> list[Hit]:
    """Search the items of work queues."""
    with reading(engine) as connection:
        return [hit for queue in queues for hit in queue.find(connection, search, limit)]
