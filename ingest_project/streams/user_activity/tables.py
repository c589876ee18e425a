"""Tables of the user_activity capability, as the code sees them. The migrations create them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.platform.database.columns import Double, UtcTime, metadata

# Which hours a range of offsets had events of: what is to be read again when an hour is rebuilt.
activity_range_hours = sa.Table(
    "activity_range_hours",
    metadata,
    Col("range_key", sa.Text, primary_key=True),
    Col("hour", UtcTime, primary_key=True),
    Col("events", sa.BigInteger, nullable=False),
    sa.Index("activity_range_hours_by_hour", "hour"),
)

# The same of ranges that were let go: offsets between the first and the last of them that had events of an hour.
activity_hour_spans = sa.Table(
    "activity_hour_spans",
    metadata,
    Col("hour", UtcTime, primary_key=True),
    Col("topic", sa.Text, primary_key=True),
    Col("topic_id", sa.Text, primary_key=True),
    Col("partition", sa.Integer, primary_key=True, autoincrement=False),
    Col("first_offset", sa.BigInteger, nullable=False),
    # Of the first message that is not in it.
    Col("end_offset", sa.BigInteger, nullable=False),
)

# How often the rows of an hour changed, and after how many of these changes its statistics were last made.
activity_hours = sa.Table(
    "activity_hours",
    metadata,
    Col("hour", UtcTime, primary_key=True),
    Col("changes", sa.BigInteger, nullable=False),
    Col("changed_at", UtcTime, nullable=False),
    Col("computed_changes", sa.BigInteger, nullable=False),
    Col("computed_at", UtcTime),
    sa.Index(
        "activity_hours_stale",
        "hour",
        postgresql_where=sa.text("changes > computed_changes"),
        sqlite_where=sa.text("changes > computed_changes"),
    ),
)

user_activity_hourly = sa.Table(
    "user_activity_hourly",
    metadata,
    Col("hour", UtcTime, primary_key=True),
    Col("event_type", sa.Text, primary_key=True),
    # Distinct event ids; an event that was delivered twice counts once.
    Col("events", sa.BigInteger, nullable=False),
    Col("users", sa.BigInteger, nullable=False),
    Col("sessions", sa.BigInteger, nullable=False),
    Col("processing_ms_p50", Double),
    Col("processing_ms_p95", Double),
    # Rows of the Delta table, with the events that were delivered again.
    Col("deliveries", sa.BigInteger, nullable=False),
    Col("computed_at", UtcTime, nullable=False),
)
