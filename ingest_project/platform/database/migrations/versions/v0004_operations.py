"""Tables of the operations console, alerts and baselines."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Column as Col

from ingest_project.platform.database.sql import Json, UtcTime

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
    )


def _tables() -> sa.MetaData:
    tables = sa.MetaData()
    _actions(tables)
    return tables


def upgrade() -> None:
    """Create the tables."""
    _tables().create_all(op.get_bind(), checkfirst=False)


def downgrade() -> None:
    """Drop them."""
    _tables().drop_all(op.get_bind(), checkfirst=False)
