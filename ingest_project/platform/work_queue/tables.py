"""The table of what an operator has asked to be skipped, as the code sees it. The migrations create it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.platform.database.columns import UtcTime, metadata

# Messages that are to go to the dead letters unseen once their turn comes. A topic that is created again has another
# generation, and other messages at these offsets.
skipped_offsets = sa.Table(
    "skipped_offsets",
    metadata,
    Col("topic", sa.Text, primary_key=True),
    Col("topic_id", sa.Text, primary_key=True),
    Col("partition", sa.Integer, primary_key=True, autoincrement=False),
    Col("first_offset", sa.BigInteger, primary_key=True, autoincrement=False),
    # Of the first message that is not skipped.
    Col("end_offset", sa.BigInteger, nullable=False),
    Col("reason", sa.Text, nullable=False),
    Col("asked_by", sa.Text, nullable=False),
    Col("asked_at", UtcTime, nullable=False),
)
