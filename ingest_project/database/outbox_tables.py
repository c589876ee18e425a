"""The table of messages that are about to be published, or were."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.database.column_types import Json, UtcTime
from ingest_project.database.schema import metadata

# What a producer was about to send, written before it is sent; a row still `intended` after a crash may have been sent.
outbox = sa.Table(
    "outbox",
    metadata,
    Col("message_id", sa.Text, primary_key=True),
    Col("topic", sa.Text, primary_key=True),
    Col("state", sa.Text, nullable=False),
    Col("since", Json),
    Col("created_at", UtcTime, nullable=False),
    # Who is about to send it: whoever takes an intent over puts another name here, and the one before sends no more.
    Col("owner", sa.Text),
)
