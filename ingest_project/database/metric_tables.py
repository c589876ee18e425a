"""The tables of the monitor's counters, as the code sees them. The migrations create them.

They are small whatever passes through the system: a row a series, and one a series and minute for as long as the
dashboard looks back.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Column as Col

from ingest_project.database.column_types import Double, UtcTime
from ingest_project.database.schema import metadata

# Since the beginning: what retention removes from the ledger stays counted here.
metric_totals = sa.Table(
    "metric_totals",
    metadata,
    Col("name", sa.Text, primary_key=True),
    # The values of the labels, a JSON list in the order of their names.
    Col("labels", sa.Text, primary_key=True),
    Col("value", Double, nullable=False),
)

metric_minutes = sa.Table(
    "metric_minutes",
    metadata,
    # Whole minutes since 1970 in UTC, of what was counted: not of when it was counted.
    Col("minute", sa.BigInteger, primary_key=True, autoincrement=False),
    Col("name", sa.Text, primary_key=True),
    Col("labels", sa.Text, primary_key=True),
    Col("value", Double, nullable=False),
)

# How far each part of the ledger has been counted.
metric_progress = sa.Table(
    "metric_progress",
    metadata,
    Col("source", sa.Text, primary_key=True),
    Col("counted_until", UtcTime, nullable=False),
)
