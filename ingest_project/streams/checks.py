"""Limits of the runs of all streams, and results that their checks and runs have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import dagster as dg

from ingest_project.streams.engine import StreamHealth, StreamRun


@dataclass(frozen=True)
class StreamLimits:
    """Bounds of a stream's runs, and thresholds of its checks.

    Args:
        batch_messages: most offsets of one run.
        max_parallel_batches: runs at a time, each over partitions of its own.
        max_unfinished_seconds: a message that waits to be stored for longer fails the check no_gap_in_offsets.
        max_implausible_share: share of recent rows with an impossible time that fails event_time_plausible.
        retention_hours: how long files stay that only old versions of a Delta table have.
    """

    batch_messages: int
    max_parallel_batches: int
    max_unfinished_seconds: float
    max_implausible_share: float = 0.01
    retention_hours: int = 168

    @classmethod
    def of(cls, settings: object) -> StreamLimits:
        """Return the limits among the settings or the declaration of a stream."""
        return cls(**{one.name: getattr(settings, one.name) for one in fields(cls) if hasattr(settings, one.name)})


def gap_check(
    health: StreamHealth, more: Mapping[str, Any] | None = None, *, is_wrong: bool = False
) -> dg.AssetCheckResult:
    """Return the result of `no_gap_in_offsets`.

    Args:
        health: of the stream.
        more: metadata of its sink.
        is_wrong: the sink lacks rows.
    """
    wrong = bool(health.failing or health.late or is_wrong)
    return dg.AssetCheckResult(
        passed=not (wrong or health.lost),
        # What retention has removed cannot be recovered: it is worth a warning only.
        severity=dg.AssetCheckSeverity.ERROR if wrong else dg.AssetCheckSeverity.WARN,
        metadata={**health.metadata(), **(more or {})},
    )


def raise_failure(run: StreamRun) -> None:
    """Fail the run of a stream that was not stored up to the requested offsets.

    Raises:
        Failure: with the first reason.
    """
    if run.failure is not None:
        error_class = run.failure.error_class
        raise dg.Failure(description=str(run.failure), metadata={"error_class": error_class}, allow_retries=False)
