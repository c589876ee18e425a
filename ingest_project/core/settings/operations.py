"""Settings of operations: the monitor, alerts, backpressure and retention."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from ingest_project.core.settings.fields import Env, Section

SHORTEST_TOKEN = 16
FEWEST_CHARACTERS = 6


def _strong(token: SecretStr | None) -> SecretStr | None:
    text = token.get_secret_value() if token else ""
    if text and (len(text) < SHORTEST_TOKEN or len(set(text)) < FEWEST_CHARACTERS):
        raise ValueError(
            f"it can be guessed; it needs at least {SHORTEST_TOKEN} characters, {FEWEST_CHARACTERS} of them different. "
            "`openssl rand -hex 32` prints a good one"
        )
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("it must be of printable ASCII characters without spaces, as a header has to carry it")
    return token


class MonitorSettings(Section):
    """The page, the metrics and the health of the system."""

    host: Annotated[str, Env("INGEST_MONITOR_HOST")] = Field(
        "127.0.0.1", description="address that the monitor listens on; beyond this machine it wants a token"
    )
    port: Annotated[int, Env("INGEST_MONITOR_PORT")] = Field(
        8080, ge=0, le=65535, description="port of the monitor; 0 picks a free one"
    )
    token: Annotated[SecretStr | None, AfterValidator(_strong), Env("INGEST_MONITOR_TOKEN")] = Field(
        None,
        description="whoever looks at more than /healthz must know it, at least 16 characters; empty: nobody is asked",
    )
    refresh_seconds: Annotated[float, Env("INGEST_MONITOR_REFRESH_SECONDS")] = Field(
        2.0, ge=0.5, le=60, description="how often the monitor looks, and the page asks it"
    )


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

    @property
    def partitions(self) -> timedelta:
        """How long partitions stay."""
        return timedelta(days=self.partition_days)
