"""Results that the checks and runs of all streams have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from ingest_project.streams.engine import StreamHealth, StreamRun


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
