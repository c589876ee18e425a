"""Tables of the operations console, alerts and baselines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column as Col

from ingest_project.platform.database.sql import Double, Json, UtcTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def _actions(tables: sa.MetaData) -> None:
    """Records of operators' actions, and capabilities that an operator has paused."""
    sa.Table(
        "operator_actions",
        tables,
        Col("action_id", sa.Text, primary_key=True),
        Col("action", sa.Text, nullable=False),
        Col("who", sa.Text, nullable=False),
        Col("reason", sa.Text, nullable=False),
        Col("parameters", Json, nullable=False),
        Col("item_limit", sa.Integer, nullable=False),
        Col("started_at", UtcTime, nullable=False),
        Col("finished_at", UtcTime),
        Col("outcome", sa.Text, nullable=False),
        Col("selected", sa.Integer, nullable=False),
        Col("remaining", sa.BigInteger, nullable=False),
        Col("done", sa.Integer, nullable=False),
        Col("failed", sa.Integer, nullable=False),
        Col("detail", sa.Text, nullable=False),
        sa.Index("operator_actions_by_time", "started_at"),
    )
    sa.Table(
        "operator_action_items",
        tables,
        Col("action_id", sa.Text, primary_key=True),
        Col("item_key", sa.Text, primary_key=True),
        Col("outcome", sa.Text),
        Col("reason", sa.Text),
        sa.Index("operator_action_items_by_item", "item_key"),
    )
    sa.Table(
        "paused_capabilities",
        tables,
        Col("capability", sa.Text, primary_key=True),
        Col("who", sa.Text, nullable=False),
        Col("reason", sa.Text, nullable=False),
        Col("paused_at", UtcTime, nullable=False),
        Col("sensors", Json, nullable=False),
    )


def _alerts(tables: sa.MetaData) -> None:
    """Incidents, the messages about them, samples of what grows, and which process assesses the conditions."""
    sa.Table(
        "incidents",
        tables,
        Col("incident_id", sa.Text, primary_key=True),
        Col("name", sa.Text, nullable=False),
        Col("condition", sa.Text, nullable=False),
        Col("severity", sa.Text, nullable=False),
        Col("owner", sa.Text),
        Col("summary", sa.Text, nullable=False),
        Col("link", sa.Text, nullable=False),
        Col("value", Double),
        Col("threshold", Double),
        Col("examples", Json, nullable=False),
        Col("state", sa.Text, nullable=False),
        Col("since", UtcTime, nullable=False),
        Col("opened_at", UtcTime),
        Col("seen_at", UtcTime, nullable=False),
        Col("gone_at", UtcTime),
        Col("resolved_at", UtcTime),
        _partial_index("incidents_unresolved", "state <> 'resolved'", "name", unique=True),
        sa.Index("incidents_by_end", "resolved_at"),
    )
    sa.Table(
        "alert_messages",
        tables,
        Col("incident_id", sa.Text, primary_key=True),
        Col("kind", sa.Text, primary_key=True),
        Col("channel", sa.Text, primary_key=True),
        Col("state", sa.Text, nullable=False),
        Col("attempts", sa.Integer, nullable=False),
        Col("reason", sa.Text),
        Col("created_at", UtcTime, nullable=False),
        Col("due_at", UtcTime, nullable=False),
        Col("claimed_until", UtcTime),
        Col("sent_at", UtcTime),
        _partial_index("alert_messages_waiting", "state = 'waiting'", "channel", "created_at"),
    )
    sa.Table(
        "alert_samples",
        tables,
        Col("series", sa.Text, primary_key=True),
        Col("at", UtcTime, primary_key=True),
        Col("value", Double, nullable=False),
    )
    sa.Table(
        "alert_leases",
        tables,
        Col("name", sa.Text, primary_key=True),
        Col("holder", sa.Text, nullable=False),
        Col("until", UtcTime, nullable=False),
    )


def _partial_index(name: str, condition: str, *columns: str, unique: bool = False) -> sa.Index:
    return sa.Index(name, *columns, unique=unique, postgresql_where=sa.text(condition), sqlite_where=sa.text(condition))


def _baselines(tables: sa.MetaData) -> None:
    """Statistics of ingested files."""
    sa.Table(
        "file_statistics",
        tables,
        Col("file_key", sa.Text, primary_key=True),
        Col("dataset", sa.Text, nullable=False),
        Col("source", sa.Text, nullable=False),
        Col("sample_order", sa.Integer, nullable=False),
        Col("arrived_at", UtcTime, nullable=False),
        Col("rows_read", sa.BigInteger, nullable=False),
        Col("rows_quarantined", sa.BigInteger, nullable=False),
        Col("null_counts", Json, nullable=False),
        Col("lateness_seconds", Double),
        sa.Index("file_statistics_sample", "dataset", "source", "sample_order"),
        sa.Index("file_statistics_newest", "dataset", "source", "arrived_at"),
    )


# Searches compare these ids as a whole, and the ids may be longer than a b-tree page can hold.
LOOKUPS_BY_ID = (
    ("files", "trace_id"),
    ("files", "event_id"),
    ("files", "sha256"),
    ("files", "etag"),
    ("polling_jobs", "trace_id"),
    ("attachments", "attachment_url"),
    ("attachments", "sha256"),
    ("attachments", "stored_path"),
)
# Searches match the beginning of these names.
LOOKUPS_BY_NAME = (("files", "file_name"), ("polling_jobs", "job_id"), ("attachments", "attachment_key"))
LOOKUPS_BY_OFFSET = (
    "files",
    "polling_jobs",
    "attachment_events",
    "attachments",
    "opportunities",
    "projects",
    "unidentified_messages",
)
# Tables by the length of the hash at the end of their keys. SQLite, meant for development, scans all keys.
LOOKUPS_BY_HASH = (
    ("files", "file_key", 26),
    ("polling_jobs", "job_key", 26),
    ("attachment_events", "event_key", 26),
    ("attachments", "attachment_key", 32),
)


def _create_lookups() -> None:
    """Create the indexes by which a person finds one item among millions."""
    for table, column in LOOKUPS_BY_ID:
        op.create_index(f"{table}_by_{column}", table, [column], postgresql_using="hash")
    for table, column in LOOKUPS_BY_NAME:
        op.create_index(f"{table}_by_{column}", table, [column], postgresql_ops={column: "text_pattern_ops"})
    for table in LOOKUPS_BY_OFFSET:
        op.create_index(f"{table}_by_offset", table, ["kafka_offset"])
    op.create_index("files_by_job", "files", ["job_id"])
    if op.get_bind().dialect.name == "postgresql":
        for table, key, length in LOOKUPS_BY_HASH:
            ending = f"substr({key}, length({key}) - {length - 1}) text_pattern_ops"
            op.execute(f"CREATE INDEX {table}_by_key_hash ON {table} ({ending})")


def _drop_lookups() -> None:
    for table, column in (*LOOKUPS_BY_ID, *LOOKUPS_BY_NAME):
        op.drop_index(f"{table}_by_{column}", table)
    for table in LOOKUPS_BY_OFFSET:
        op.drop_index(f"{table}_by_offset", table)
    op.drop_index("files_by_job", "files")
    if op.get_bind().dialect.name == "postgresql":
        for table, _, _ in LOOKUPS_BY_HASH:
            op.drop_index(f"{table}_by_key_hash", table)


QUEUES = ("polling_jobs", "files", "attachment_events", "attachments")


def _create_trace_contexts() -> None:
    """Create the column of trace contexts, and the index by which the entries of a trace are found."""
    condition = sa.text("traceparent IS NOT NULL")
    for table in QUEUES:
        op.add_column(table, Col("traceparent", sa.Text))
        op.create_index(
            f"{table}_by_traceparent",
            table,
            ["traceparent"],
            postgresql_where=condition,
            sqlite_where=condition,
            postgresql_ops={"traceparent": "text_pattern_ops"},
        )


def _drop_trace_contexts() -> None:
    for table in QUEUES:
        op.drop_index(f"{table}_by_traceparent", table)
        op.drop_column(table, "traceparent")


def _tables() -> sa.MetaData:
    tables = sa.MetaData()
    _actions(tables)
    _baselines(tables)
    _alerts(tables)
    return tables


def upgrade() -> None:
    """Create the tables, and the columns of positions' histograms and of files that correct others."""
    _tables().create_all(op.get_bind(), checkfirst=False)
    op.add_column("files", Col("corrects", sa.Text))
    op.add_column("sink_positions", Col("seconds", Json, nullable=False, server_default="{}"))
    _create_lookups()
    _create_trace_contexts()


def downgrade() -> None:
    """Drop them."""
    _drop_trace_contexts()
    _drop_lookups()
    op.drop_column("sink_positions", "seconds")
    op.drop_column("files", "corrects")
    _tables().drop_all(op.get_bind(), checkfirst=False)
