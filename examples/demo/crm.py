"""The demo's CRM messages: versions of opportunities and projects in no order, and one message that is neither."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import msgspec
import sqlalchemy as sa

from ingest_project.contracts.crm_event import CrmKind, decode_crm_event
from ingest_project.core.console import add_row, show, table
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.operations.resources import SystemResources
from ingest_project.platform.database.engine import reading
from ingest_project.platform.kafka.producer import ProducerRecord
from ingest_project.streams.crm.records import TABLES, unidentified_messages


class DemoTable(msgspec.Struct, frozen=True, kw_only=True):
    """Stored rows of the messages of one kind.

    Args:
        messages: versions that the demo has.
        expected: rows that must come of them.
        rows: those that are stored.
    """

    table: str
    messages: int
    expected: int
    rows: int


class DemoCrm(msgspec.Struct, frozen=True, kw_only=True):
    """Stored rows of the CRM messages, by table.

    Args:
        earlier: an earlier demo had stored them already.
        tables: opportunities, projects, and what is neither.
    """

    earlier: bool
    tables: tuple[DemoTable, ...]

    @property
    def missing(self) -> list[str]:
        """Describe each table that lacks rows."""
        short = [one for one in self.tables if one.rows < one.expected]
        return [f"{one.expected - one.rows} of {one.expected} rows of {one.table}" for one in short]


class CrmSample:
    """The messages of a file, one a line."""

    def __init__(self, path: Path) -> None:
        self._messages = path.read_bytes().splitlines()
        self._ids: dict[CrmKind, list[str]] = {kind: [] for kind in CrmKind}
        self._neither: list[bytes] = []
        for message in self._messages:
            try:
                event = decode_crm_event(message)
            except UnreadableMessageError:
                self._neither.append(message)
            else:
                self._ids[event.kind].append(event.event_id)

    def __len__(self) -> int:
        """How many messages."""
        return len(self._messages)

    def is_stored(self, services: SystemResources) -> bool:
        """Return whether each record and each unidentified message is in its table."""
        return not self.report(services, earlier=True).missing

    def send(self, services: SystemResources) -> None:
        """Put the messages on their topic."""
        topic = services.settings.topics.sales_events
        services.writer.send_all(topic, [ProducerRecord(message) for message in self._messages])

    def report(self, services: SystemResources, *, earlier: bool) -> DemoCrm:
        """Count the stored rows."""
        with reading(services.engine) as connection:
            found = [_table(connection, TABLES[kind].c.event_id, ids, len(set(ids))) for kind, ids in self._ids.items()]
            neither = _table(connection, unidentified_messages.c.payload, self._neither, len(set(self._neither)))
        return DemoCrm(earlier=earlier, tables=(*found, neither))


def show_crm(report: DemoCrm) -> None:
    """Print the tables for a person."""
    numbers = ("Messages", "Rows")
    made = table("Table", *numbers, numbers=numbers)
    for one in report.tables:
        add_row(made, one.table, one.messages, one.rows)
    already = " (already stored)" if report.earlier else ""
    show(made, f"What became of the CRM messages{already}")


def _table(
    connection: sa.Connection, column: sa.Column[str] | sa.Column[bytes], values: Collection[object], expected: int
) -> DemoTable:
    """How many of these values a table has, each counted once."""
    query = sa.select(sa.func.count(sa.distinct(column))).where(column.in_(set(values)))
    rows = int(connection.execute(query).scalar_one())
    return DemoTable(table=str(column.table.name), messages=len(values), expected=expected, rows=rows)
