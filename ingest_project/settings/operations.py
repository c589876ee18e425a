"""Settings of running the system for years: when less is asked for, who is told of failures, what is kept how long."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field, SecretStr

from ingest_project.settings.fields import Env, Section


class BackpressureSettings(Section):
    """When no further runs are asked for, or fewer. What is not asked for waits on its topic or in the ledger."""

    min_free_disk_bytes: Annotated[int, Env("INGEST_MIN_FREE_DISK_BYTES")] = Field(
        1024**3, ge=0, description="with less room on a disk that is written to, no run is asked for"
    )
    slow_warehouse_seconds: Annotated[float, Env("INGEST_SLOW_WAREHOUSE_SECONDS")] = Field(
        2.0, gt=0, description="an empty transaction that takes longer: each sensor asks for one batch at a time"
    )


class AlertSettings(Section):
    """Who is told when runs or sensors fail."""

    webhook_url: Annotated[SecretStr | None, Env("INGEST_ALERT_WEBHOOK_URL")] = Field(
        None, description="address that gets a POST for each incident, and one when it is over"
    )
    failures_in_a_row: Annotated[int, Env("INGEST_ALERT_FAILURES_IN_A_ROW")] = Field(
        3, gt=0, description="ticks of a sensor or schedule that must fail before it counts as an incident"
    )


class RetentionSettings(Section):
    """How long what is finished stays on record. What failed, is quarantined or held by a run always stays."""

    partition_days: Annotated[int, Env("INGEST_KEEP_PARTITIONS_DAYS")] = Field(
        90, gt=0, description="partitions of files, jobs and attachments that are long done"
    )
    run_days: Annotated[int, Env("INGEST_KEEP_RUNS_DAYS")] = Field(30, gt=0, description="Dagster's finished runs")
    landing_days: Annotated[int, Env("INGEST_KEEP_LANDED_DAYS")] = Field(
        365, gt=0, description="landed bytes of ingested files"
    )
    event_days: Annotated[int, Env("INGEST_KEEP_EVENTS_DAYS")] = Field(
        30, gt=0, description="bodies of attachment events, from which addresses can be taken again"
    )
    outbox_days: Annotated[int, Env("INGEST_KEEP_OUTBOX_DAYS")] = Field(
        400, gt=0, description="ids of published messages; longer than a source lists the same file version"
    )

    range_days: Annotated[int, Env("INGEST_KEEP_RANGES_DAYS")] = Field(
        30, gt=0, description="offset ranges of streams that are done; longer than a run that may be done again"
    )

    @property
    def partitions(self) -> timedelta:
        """How long partitions stay."""
        return timedelta(days=self.partition_days)
