"""The table of offset ranges, as the code sees it. The migrations create it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.platform.database.columns import Json, held_index, metadata, pending_index, work_columns

# Each offset of a topic that is read in ranges lies in exactly one of them, from the moment it was planned to be read.
stream_ranges = sa.Table(
    "stream_ranges",
    metadata,
    Col("range_key", sa.Text, primary_key=True),
    Col("topic", sa.Text, nullable=False),
    Col("topic_id", sa.Text, nullable=False),
    Col("partition", sa.Integer, nullable=False),
    Col("first_offset", sa.BigInteger, nullable=False),
    # Of the first message that is not in it.
    Col("end_offset", sa.BigInteger, nullable=False),
    *work_columns(),
    # Messages read: fewer than offsets where a compacted or transactional topic has holes.
    Col("messages", sa.BigInteger),
    # What became of the messages, name to number.
    Col("outcome", Json),
    pending_index("stream_ranges", "topic"),
    held_index("stream_ranges", "topic"),
    sa.Index("stream_ranges_by_batch", "batch_id"),
    sa.Index("stream_ranges_by_state", "state", "updated_at"),
    sa.Index("stream_ranges_by_end", "topic", "topic_id", "partition", "end_offset"),
)

# Offsets of a partition that were planned one range after the other, without a gap: what stays of ranges that are let
# go. Whatever lies in one was looked at; most partitions have one.
stream_intervals = sa.Table(
    "stream_intervals",
    metadata,
    Col("topic", sa.Text, primary_key=True),
    Col("topic_id", sa.Text, primary_key=True),
    Col("partition", sa.Integer, primary_key=True, autoincrement=False),
    Col("first_offset", sa.BigInteger, primary_key=True, autoincrement=False),
    # Of the first message that is not in it.
    Col("end_offset", sa.BigInteger, nullable=False),
)
