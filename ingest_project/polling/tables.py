"""The table of polling jobs."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.platform.database.columns import (
    Json,
    held_index,
    kafka_columns,
    metadata,
    pending_index,
    work_columns,
)

polling_jobs = sa.Table(
    "polling_jobs",
    metadata,
    Col("job_key", sa.Text, primary_key=True),
    Col("job_id", sa.Text, nullable=False),
    Col("source_type", sa.Text, nullable=False),
    Col("request", Json, nullable=False),
    Col("priority", sa.Text, nullable=False),
    # 0 before 1 before 2: high, normal, low.
    Col("urgency", sa.Integer, nullable=False),
    Col("trace_id", sa.Text),
    *kafka_columns(),
    *work_columns(),
    Col("files_found", sa.BigInteger),
    Col("files_published", sa.BigInteger),
    Col("files_skipped", sa.BigInteger),
    Col("skipped", Json),
    pending_index("polling_jobs", "kafka_topic", "urgency"),
    held_index("polling_jobs", "kafka_topic"),
    sa.Index("polling_jobs_by_batch", "batch_id"),
    sa.Index("polling_jobs_by_state", "state", "updated_at"),
)
