"""The declaration of CRM messages: opportunities and projects are two tables with one key, told apart by content."""

from __future__ import annotations

from ingest_project.contracts.columns import StreamColumn
from ingest_project.core.settings import Settings
from ingest_project.streams.crm.sink import CrmTables
from ingest_project.streams.crm.unidentified import log_of
from ingest_project.streams.declaration import SqlTarget, StreamDeclaration


class Crm(StreamDeclaration):
    """Messages of a CRM, each in the table of its kind, or unidentified."""

    is_shipped = True

    topic: str

    @property
    def source(self) -> str:
        """The name of the topic's setting."""
        return "sales_events"

    @property
    def dlq(self) -> str:
        """None: a table keeps what is neither opportunity nor project."""
        return ""

    def own_tables(self, settings: Settings) -> CrmTables:
        """Return the tables of both kinds, and of messages of neither."""
        return CrmTables(log_of(settings))


def crm_stream(settings: Settings) -> Crm:
    """Declare CRM messages from the settings."""
    own = settings.crm
    return Crm(
        name="crm",
        topic=settings.topics.sales_events,
        # Those of both kinds that make a version of a record; amounts have more digits than a declared decimal.
        columns=(
            StreamColumn(name="event_id", type="text", required=True),
            StreamColumn(name="last_modified", type="timestamp", required=True, path="$.meta_data.last_modified"),
        ),
        sink=SqlTarget(key=("event_id",), version="last_modified", tombstones="ignore"),
        fresh_within_hours=24,
        warn_after_hours=12,
        batch_messages=own.batch_messages,
        max_parallel_batches=own.max_parallel_batches,
        max_unfinished_seconds=own.max_unfinished_seconds,
    )
