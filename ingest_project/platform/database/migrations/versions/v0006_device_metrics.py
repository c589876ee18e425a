"""The view over all files stands readings that are too large or too small to be squared."""

from __future__ import annotations

from alembic import op

from ingest_project.platform.database.migrations.versions import v0001_files

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# PostgreSQL refuses a whole statement where one product leaves the range of a double. What is below the least here
# counts as zero; a group with a figure above the most has no mean, or no deviation, rather than a wrong one.
LEAST, MOST_TO_SUM, MOST_TO_SQUARE = "1e-150", "1e290", "1e145"


def _square(value: str) -> str:
    return f"CASE WHEN ABS({value}) BETWEEN {LEAST} AND {MOST_TO_SQUARE} THEN {value} * {value} ELSE 0 END"


# The merging itself is as in the first version of the view.
DEVICE_METRICS = f"""
CREATE VIEW device_metrics AS
SELECT device_id,
       sensor_type,
       MIN("min") AS "min",
       MAX("max") AS "max",
       MAX(grand_mean) AS "mean",
       CAST(SUM("count") AS BIGINT) AS "count",
       CASE WHEN SUM("count") > 1
                 AND MAX(ABS("mean" - grand_mean)) <= {MOST_TO_SQUARE}
                 AND MAX(COALESCE(ABS(stddev), 0)) <= {MOST_TO_SQUARE} THEN
           SQRT(SUM(("count" - 1) * {_square("stddev")} + "count" * {_square('("mean" - grand_mean)')})
                / (SUM("count") - 1))
       END AS stddev
FROM (SELECT summed.*,
             CASE WHEN MAX(ABS("mean")) OVER devices <= {MOST_TO_SUM} THEN
                 SUM(weight) OVER devices / SUM("count") OVER devices
             END AS grand_mean
      FROM (SELECT aggregated_metrics.*,
                   CASE WHEN ABS("mean") BETWEEN {LEAST} AND {MOST_TO_SUM} THEN "mean" * "count" ELSE 0 END AS weight
            FROM aggregated_metrics) AS summed
      WINDOW devices AS (PARTITION BY device_id, sensor_type)) AS per_file
GROUP BY device_id, sensor_type
"""


def upgrade() -> None:
    """Replace the view."""
    op.execute("DROP VIEW device_metrics")
    op.execute(DEVICE_METRICS)


def downgrade() -> None:
    """Put the former view back."""
    op.execute("DROP VIEW device_metrics")
    op.execute(v0001_files.DEVICE_METRICS)
