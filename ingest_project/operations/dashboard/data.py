"""The JSON that the dashboard page requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from urllib.parse import quote

import msgspec

from ingest_project.core.terminal_text import printable_json
from ingest_project.operations.counts import Failure, LedgerSeen
from ingest_project.operations.dashboard.history import History
from ingest_project.operations.readiness import readiness
from ingest_project.operations.snapshot import DagsterSeen, SystemSnapshot
from ingest_project.operations.topics import BrokerSeen
from ingest_project.platform.dagster.run_records import RunOnRecord

BATCH_TAG, BATCH_SIZE_TAG = "ingest/batch", "ingest/batch_size"
SHOWN_REASON = 300


def dashboard(system: SystemSnapshot, history: History | None, window: str) -> bytes:
    """JSON with everything the page shows; what cannot be known now is null, and a line of `health` says why.

    Args:
        system: what was seen last.
        history: of the window; None where the database does not answer.
        window: the name of it.
    """
    now = datetime.now(UTC)
    settings = system.settings
    site = settings.dagster.webserver_url.rstrip("/")
    ledger, dagster = system.ledger.seen.value, system.dagster.seen.present
    tables = system.tables.seen.present
    content = msgspec.json.encode(
        {
            "at": now,
            "environment": settings.environment,
            "dagster_url": site,
            "refresh_seconds": settings.monitor.refresh_seconds,
            "window": window,
            "health": [*readiness(system, now)],
            "topics": _topics(system.broker.seen.present),
            "unfinished": ledger.unfinished if ledger else None,
            "retry_tiers": _retry_tiers(ledger, settings.attachments.retry_delays_seconds, now),
            "unidentified": ledger.unidentified if ledger else None,
            "failures": [_failure(failure, site) for failure in ledger.failures] if ledger else None,
            "runs": _runs(dagster, site),
            "history": history,
            "tables": tables.figures if tables else None,
        }
    )
    return printable_json(content.decode()).encode()


def _topics(broker: BrokerSeen | None) -> dict[str, object] | None:
    if broker is None:
        return None
    lags = [
        {
            "topic": lag.topic,
            "sensor": lag.sensor,
            "waiting": lag.waiting,
            "exists": bool(lag.partitions),
            "partitions": {str(partition): waiting for partition, waiting in lag.partitions.items()},
            "measured_from": lag.measured_from,
            "problem": lag.problem if lag.waiting is None else None,
        }
        for lag in broker.topics
    ]
    return {"lags": lags, "dead_letters": broker.dead_letters}


def _retry_tiers(ledger: LedgerSeen | None, delays: list[float], now: datetime) -> list[dict[str, object]] | None:
    """The retry tiers there are, those without anyone on them too."""
    if ledger is None:
        return None
    waiting = {tier.attempt: tier for tier in ledger.retry_tiers}
    tiers: list[dict[str, object]] = []
    for attempt, delay in enumerate(delays, start=2):
        tier = waiting.get(attempt)
        due = max(0.0, (tier.next_due_at - now).total_seconds()) if tier else None
        entry = {"attempt": attempt, "delay_seconds": delay, "waiting": tier.waiting if tier else 0}
        tiers.append({**entry, "next_due_seconds": due})
    return tiers


def _failure(failure: Failure, site: str) -> dict[str, object]:
    where = f"{site}/assets/{failure.asset}?view=partitions&partition={quote(failure.key)}" if failure.asset else None
    reason = (failure.reason or "")[:SHOWN_REASON]
    return {
        "kind": failure.kind,
        "key": failure.key,
        "state": failure.state,
        "reason": reason,
        "at": failure.at,
        "url": where,
        "run_url": f"{site}/runs/{quote(failure.run_id)}" if failure.run_id else None,
    }


def _runs(dagster: DagsterSeen | None, site: str) -> dict[str, object] | None:
    if dagster is None:
        return None
    running = [_run(run, site) for run in dagster.running]
    return {"queued": dagster.runs.queued, "started": dagster.runs.started, "running": running}


def _run(run: RunOnRecord, site: str) -> dict[str, object]:
    return {
        "run_id": run.run_id,
        "job": run.job,
        "status": run.status.lower(),
        "since": run.since,
        "what": " ".join(_what(run.tags)),
        "url": f"{site}/runs/{quote(run.run_id)}",
    }


def _what(tags: Mapping[str, str]) -> Iterator[str]:
    """What a run works on, by its tags."""
    if partition := tags.get("dagster/partition"):
        yield partition
    elif batch := tags.get(BATCH_TAG):
        yield f"{tags.get(BATCH_SIZE_TAG, '')} {batch.replace('_', ' ')}".strip()
