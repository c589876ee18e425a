"""The results of download attempts: how each ended, where it was published, its Delta commit, and past replays.

A commit's rows are chosen and numbered before it is made, so that a commit that is repeated has the same rows under the
same number, and the table can tell that it has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ingest_project.attachments.queue.record import AttemptResult
from ingest_project.attachments.tables import attachment_replays as replays
from ingest_project.attachments.tables import attachments
from ingest_project.attachments.tables import download_outcomes as outcomes
from ingest_project.contracts.attachments import CachedDownload, DownloadResult, DownloadStatus
from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.work_queue.sql_helpers import in_parts

Identity = tuple[str, int, int]


class HourOfResults(msgspec.Struct, frozen=True):
    """How the attempts of a time ended."""

    success: int
    failed_transient: int
    failed_permanent: int


class OutcomeLedger:
    """Reads and writes the table `download_outcomes`. Every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def recovered(self, keys: Sequence[str]) -> tuple[AttemptResult, ...]:
        """What lost runs left of these attachments: ends that nobody was told of, and that of the present attempt.

        In the order of the attempts. An attachment whose present attempt has ended is not to be downloaded again.
        """
        columns = attachments.c
        present = sa.and_(outcomes.c.replays == columns.replays, outcomes.c.attempt == columns.attempt)
        query = sa.select(outcomes).join(attachments, columns.attachment_key == outcomes.c.attachment_key)
        query = query.where(sa.or_(outcomes.c.published_at.is_(None), present))
        found: list[AttemptResult] = []
        with reading(self._engine) as connection:
            for part in in_parts(keys):
                rows = connection.execute(query.where(outcomes.c.attachment_key.in_(part))).mappings()
                found += [outcome_of(row) for row in rows]
        return tuple(sorted(found, key=lambda outcome: outcome.identity))

    def mark_published(
        self, told: Sequence[AttemptResult], now: datetime, unpublished: Mapping[Identity, str] | None = None
    ) -> None:
        """Kafka and Dagster know of these. Marking twice changes nothing.

        Args:
            told: the outcomes.
            now: when.
            unpublished: of those that the broker did not take a message of, why.
        """
        with writing(self._engine) as connection:
            for identity, reason in (unpublished or {}).items():
                connection.execute(
                    sa.update(outcomes).where(is_one_of(connection, [identity])).values(publish_error=reason)
                )
            for part in in_parts(sorted(outcome.identity for outcome in told)):
                is_unpublished = sa.and_(outcomes.c.published_at.is_(None), is_one_of(connection, part))
                connection.execute(sa.update(outcomes).where(is_unpublished).values(published_at=now))

    def number_next_commit(self) -> None:
        """Give what everybody was told of and is in no commit yet the number of the next one. One caller at a time.

        What is not told is in the hands of another run: two that update the same rows could wait for each other.
        """
        highest = sa.select(sa.func.coalesce(sa.func.max(outcomes.c.commit_number), 0)).scalar_subquery()
        is_new = (
            outcomes.c.commit_number.is_(None),
            outcomes.c.committed_at.is_(None),
            outcomes.c.commit_error.is_(None),
            outcomes.c.published_at.is_not(None),
        )
        statement = sa.update(outcomes).where(*is_new)
        with writing(self._engine) as connection:
            following = int(connection.execute(sa.select(highest)).scalar_one()) + 1
            connection.execute(statement.values(commit_number=following))

    def withdraw_commits(self, number: int) -> None:
        """Take back the numbers of the commits from this one on: none of them was made."""
        given = sa.and_(outcomes.c.commit_number >= number, outcomes.c.committed_at.is_(None))
        with writing(self._engine) as connection:
            connection.execute(sa.update(outcomes).where(given).values(commit_number=None))

    def number_commit_of(self, chosen: Sequence[AttemptResult]) -> int:
        """Give these, which are in no commit, the number of the next one, and return it. One caller at a time."""
        highest = sa.select(sa.func.coalesce(sa.func.max(outcomes.c.commit_number), 0))
        with writing(self._engine) as connection:
            following = int(connection.execute(highest).scalar_one()) + 1
            for part in in_parts([outcome.identity for outcome in chosen]):
                in_none = sa.and_(outcomes.c.committed_at.is_(None), is_one_of(connection, part))
                connection.execute(sa.update(outcomes).where(in_none).values(commit_number=following))
        return following

    def mark_uncommittable(self, outcome: AttemptResult, reason: str) -> None:
        """The Delta table does not take the row of this one: it is in no further commit."""
        with writing(self._engine) as connection:
            this = is_one_of(connection, [outcome.identity])
            connection.execute(sa.update(outcomes).where(this).values(commit_error=reason, commit_number=None))

    def open_commits(self) -> tuple[int, ...]:
        """Numbers of commits that may not have been made yet, in order."""
        query = (
            sa.select(outcomes.c.commit_number)
            .where(outcomes.c.committed_at.is_(None), outcomes.c.commit_number.is_not(None))
            .distinct()
            .order_by(outcomes.c.commit_number)
        )
        with reading(self._engine) as connection:
            return tuple(connection.execute(query).scalars())

    def of_commit(self, number: int) -> tuple[AttemptResult, ...]:
        """The rows of a commit that may not have been made yet."""
        query = sa.select(outcomes).where(outcomes.c.commit_number == number, outcomes.c.committed_at.is_(None))
        with reading(self._engine) as connection:
            found = [outcome_of(row) for row in connection.execute(query).mappings()]
        return tuple(sorted(found, key=lambda outcome: outcome.identity))

    def mark_committed(self, number: int, now: datetime) -> None:
        """The Delta table holds this commit."""
        statement = sa.update(outcomes).where(outcomes.c.commit_number == number, outcomes.c.committed_at.is_(None))
        with writing(self._engine) as connection:
            connection.execute(statement.values(committed_at=now))

    def unpublished(self) -> int:
        """Outcomes that Kafka or Dagster may not know of."""
        query = sa.select(sa.func.count()).where(outcomes.c.published_at.is_(None))
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def ended_between(self, since: datetime, until: datetime) -> HourOfResults:
        """How the attempts that ended in a time ended."""
        status = outcomes.c.result["status"].as_string()
        counted = [
            sa.func.count().filter(status == kind.value).label(kind.value)
            for kind in (DownloadStatus.SUCCESS, DownloadStatus.FAILED_TRANSIENT, DownloadStatus.FAILED_PERMANENT)
        ]
        query = sa.select(*counted).where(outcomes.c.completed_at >= since, outcomes.c.completed_at < until)
        with reading(self._engine) as connection:
            return HourOfResults(**connection.execute(query).mappings().one())

    def totals(self) -> dict[str, int]:
        """All outcomes, and of those the ones that are in the Delta table."""
        query = sa.select(sa.func.count().label("outcomes"), sa.func.count(outcomes.c.committed_at).label("committed"))
        with reading(self._engine) as connection:
            return {name: int(value) for name, value in connection.execute(query).mappings().one().items()}

    def uncommitted(self) -> int:
        """Outcomes that are not known to be in the Delta table, and that it may still take."""
        query = sa.select(sa.func.count()).where(outcomes.c.committed_at.is_(None), outcomes.c.commit_error.is_(None))
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())


def is_one_of(connection: sa.Connection, identities: Sequence[Identity]) -> sa.ColumnElement[bool]:
    """Whether a row of the table is one of these attempts; not more than one statement takes, see `in_parts`."""
    identity = sa.tuple_(outcomes.c.attachment_key, outcomes.c.replays, outcomes.c.attempt)
    if connection.dialect.name != "postgresql":
        return identity.in_(identities)
    # Three parameters, however many there are: SQLAlchemy takes longer to spell out thousands than the update takes.
    keys, replays, attempts = (list(column) for column in zip(*identities, strict=True))
    wanted = sa.select(
        sa.func.unnest(sa.cast(sa.literal(keys, postgresql.ARRAY(sa.Text)), postgresql.ARRAY(sa.Text))),
        sa.func.unnest(sa.cast(sa.literal(replays, postgresql.ARRAY(sa.Integer)), postgresql.ARRAY(sa.Integer))),
        sa.func.unnest(sa.cast(sa.literal(attempts, postgresql.ARRAY(sa.Integer)), postgresql.ARRAY(sa.Integer))),
    )
    return identity.in_(wanted)


def outcome_row(outcome: AttemptResult, run_id: str) -> dict[str, Any]:
    """The row of an outcome."""
    return {
        "attachment_key": outcome.attachment_key,
        "replays": outcome.replays,
        "attempt": outcome.result.attempt,
        "domain": outcome.domain,
        "event_type": outcome.event_type,
        # What is needed to tell it again, beside the result.
        "result": {**msgspec.to_builtins(outcome.result), **msgspec.to_builtins(_Beside.of(outcome))},
        "completed_at": outcome.result.completed_at,
        "run_id": run_id,
    }


class _Beside(msgspec.Struct, frozen=True):
    content_type: str | None
    cached: CachedDownload | None
    next_attempt_at: datetime | None

    @classmethod
    def of(cls, outcome: AttemptResult) -> _Beside:
        return cls(outcome.content_type, outcome.cached, outcome.next_attempt_at)


def outcome_of(row: sa.RowMapping) -> AttemptResult:
    """The outcome that a row keeps."""
    kept = row["result"]
    beside = msgspec.convert(kept, _Beside)
    return AttemptResult(
        attachment_key=row["attachment_key"],
        replays=row["replays"],
        domain=row["domain"],
        event_type=row["event_type"],
        content_type=beside.content_type,
        cached=beside.cached,
        next_attempt_at=beside.next_attempt_at,
        result=msgspec.convert(kept, DownloadResult),
    )


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
