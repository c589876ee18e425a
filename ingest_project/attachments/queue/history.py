"""What happened to one attachment: every attempt with its end, and every time it began anew."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from ingest_project.attachments.tables import attachment_replays as replays
from ingest_project.attachments.tables import download_outcomes as outcomes
from ingest_project.contracts.download import DownloadStatus
from ingest_project.platform.database.engine import reading


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """How one attempt ended.

    Args:
        replays: how often the attachment had begun again before it.
        attempt: which one since then, the first being 1.
        next_attempt_at: when it was to be tried again; None: it was the last attempt.
        published_at: when Kafka and Dagster had been told.
        committed_at: when it was in the Delta table.
        publish_error: why a message of it is on no topic.
        commit_error: why it is not in the Delta table.
    """

    replays: int
    attempt: int
    status: DownloadStatus
    completed_at: datetime
    http_status: int | None = None
    error_class: str | None = None
    error: str | None = None
    size_bytes: int | None = None
    next_attempt_at: datetime | None = None
    run_id: str
    published_at: datetime | None = None
    committed_at: datetime | None = None
    publish_error: str | None = None
    commit_error: str | None = None

    @property
    def problems(self) -> str | None:
        """Everything that went wrong with it, for people."""
        said = (
            self.error,
            self.publish_error and f"Not published: {self.publish_error}",
            self.commit_error and f"Not in the Delta table: {self.commit_error}",
        )
        return " ".join(filter(None, said)) or None


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """One time that an attachment began again: who asked, and what had been wrong."""

    replays: int
    asked_by: str
    asked_at: datetime
    earlier_error_class: str | None
    earlier_reason: str | None


def attempts_at(engine: sa.Engine, attachment_keys: Sequence[str]) -> dict[str, tuple[Attempt, ...]]:
    """Every ended attempt at these attachments, in order; those without one are left out.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: it could not be asked.
    """
    query = (
        sa.select(outcomes)
        .where(outcomes.c.attachment_key.in_(attachment_keys))
        .order_by(outcomes.c.attachment_key, outcomes.c.replays, outcomes.c.attempt)
    )
    found: dict[str, list[Attempt]] = {}
    with reading(engine) as connection:
        for row in connection.execute(query).mappings():
            found.setdefault(row["attachment_key"], []).append(_attempt(row))
    return {key: tuple(attempts) for key, attempts in found.items()}


def replays_of(engine: sa.Engine, attachment_key: str) -> tuple[Replay, ...]:
    """Every time that the attachment began again, in order.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: it could not be asked.
    """
    query = sa.select(replays).where(replays.c.attachment_key == attachment_key).order_by(replays.c.replays)
    with reading(engine) as connection:
        rows = connection.execute(query).mappings().all()
    return tuple(Replay(**{name: row[name] for name in Replay.__struct_fields__}) for row in rows)


def _attempt(row: sa.RowMapping) -> Attempt:
    names = (
        "replays",
        "attempt",
        "completed_at",
        "run_id",
        "published_at",
        "committed_at",
        "publish_error",
        "commit_error",
    )
    own = {name: row[name] for name in names}
    told = {name: row["result"].get(name) for name in ("status", "http_status", "error_class", "error", "size_bytes")}
    return msgspec.convert({**told, **own, "next_attempt_at": row["result"].get("next_attempt_at")}, Attempt)
