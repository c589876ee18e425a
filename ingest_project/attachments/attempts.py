"""The results of download attempts: status, whether it is published, and which Delta commit holds it.

The rows of a commit are chosen and numbered before it is made, so that a repeated commit has the same rows under the
same number, and the table can tell that it has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from ingest_project.attachments.tables import attachment_replays, attachments, download_outcomes
from ingest_project.contracts.attachments import DownloadResult, DownloadStatus
from ingest_project.platform.database import fetch, reading, writing
from ingest_project.platform.database.sql import in_parts, insert_missing

Identity = tuple[str, int, int]
COLUMNS = download_outcomes.c


class AttemptResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one attempt at one attachment.

    Args:
        next_attempt_at: when it is tried again; None: this was the last attempt.
        content_type: content type of the downloaded file.
    """

    attachment_key: str
    replays: int
    domain: str
    event_type: str
    result: DownloadResult
    content_type: str | None = None
    next_attempt_at: datetime | None = None

    @property
    def identity(self) -> Identity:
        """Key, replays and attempt, which distinguish this attempt from every other."""
        return (self.attachment_key, self.replays, self.result.attempt)

    @property
    def leaves_stored_bytes(self) -> bool:
        """True when the attempt failed and the bytes that an earlier one stored stay."""
        return self.result.status is not DownloadStatus.SUCCESS and self.result.onelake_path is not None

    def row(self, run_id: str) -> dict[str, Any]:
        """Return the row of the table `download_outcomes`."""
        own = msgspec.to_builtins(self)
        rest = {name: own[name] for name in ("content_type", "next_attempt_at")}
        return {
            "attachment_key": self.attachment_key,
            "replays": self.replays,
            "attempt": self.result.attempt,
            "domain": self.domain,
            "event_type": self.event_type,
            # All fields that a repeated publication needs.
            "result": {**own["result"], **rest},
            "completed_at": self.result.completed_at,
            "run_id": run_id,
        }

    @classmethod
    def of(cls, row: sa.RowMapping) -> AttemptResult:
        """Return the result that a row of the table `download_outcomes` holds."""
        names = ("attachment_key", "replays", "domain", "event_type", "result")
        return msgspec.convert({**row["result"], **{name: row[name] for name in names}}, cls)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one attempt, as people see it.

    Args:
        replays: how often the attachment had been replayed before it.
        attempt: which one since then, the first being 1.
        next_attempt_at: when it was to be tried again; None: it was the last attempt.
        published_at: when Kafka and Dagster had it.
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
        parts = (
            self.error,
            self.publish_error and f"Not published: {self.publish_error}",
            self.commit_error and f"Not in the Delta table: {self.commit_error}",
        )
        return " ".join(filter(None, parts)) or None


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """One replay of an attachment: who requested it, and the failure before it."""

    replays: int
    asked_by: str
    asked_at: datetime
    earlier_error_class: str | None
    earlier_reason: str | None


class AttemptResults:
    """Reads and writes the table `download_outcomes`. Every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def recovered(self, keys: Sequence[str]) -> tuple[AttemptResult, ...]:
        """Return results that lost runs left: unpublished ones, and those of the present attempts of these attachments.

        In the order of the attempts. An attachment whose present attempt has ended is not to be downloaded again.
        """
        present = sa.and_(COLUMNS.replays == attachments.c.replays, COLUMNS.attempt == attachments.c.attempt)
        query = sa.select(download_outcomes).join(attachments, attachments.c.attachment_key == COLUMNS.attachment_key)
        query = query.where(sa.or_(COLUMNS.published_at.is_(None), present))
        found: list[AttemptResult] = []
        for part in in_parts(keys):
            found += self._select(query.where(COLUMNS.attachment_key.in_(part)))
        return tuple(sorted(found, key=lambda result: result.identity))

    def mark_published(
        self, results: Sequence[AttemptResult], now: datetime, unpublished: Mapping[Identity, str] | None = None
    ) -> None:
        """Mark results as published to Kafka and Dagster. Idempotent.

        Args:
            results: the results that were published.
            now: when.
            unpublished: reasons of the results with a message that the broker refused.
        """
        with writing(self._engine) as connection:
            for identity, reason in (unpublished or {}).items():
                _update(connection, [identity], {"publish_error": reason})
            identities = sorted(result.identity for result in results)
            _update(connection, identities, {"published_at": now}, COLUMNS.published_at.is_(None))

    def number_next_commit(self, chosen: Sequence[AttemptResult] | None = None, *, reached: int = 0) -> int:
        """Give results that are in no commit yet the number of the next one, and return it. One caller at a time.

        Args:
            reached: the number that the table has reached, which a restored or new database may not know.
            chosen: the results; by default all that are published. Those that are not are leased by another run: two
                that update the same rows could wait for each other.
        """
        highest = sa.select(sa.func.coalesce(sa.func.max(COLUMNS.commit_number), 0))
        in_no_commit = COLUMNS.committed_at.is_(None)
        is_new = (COLUMNS.commit_number.is_(None), COLUMNS.commit_error.is_(None), COLUMNS.published_at.is_not(None))
        with writing(self._engine) as connection:
            change = {"commit_number": max(int(connection.execute(highest).scalar_one()), reached) + 1}
            if chosen is None:
                connection.execute(sa.update(download_outcomes).where(in_no_commit, *is_new).values(change))
            else:
                _update(connection, [result.identity for result in chosen], change, in_no_commit)
        return change["commit_number"]

    def withdraw_commits(self, number: int) -> None:
        """Remove the numbers of the commits from this one on: none of them was made."""
        self._update_where(COLUMNS.commit_number >= number, {"commit_number": None})

    def mark_uncommittable(self, result: AttemptResult, reason: str) -> None:
        """Exclude a result from further commits: the Delta table does not accept its row."""
        with writing(self._engine) as connection:
            _update(connection, [result.identity], {"commit_error": reason, "commit_number": None})

    def mark_committed(self, number: int, now: datetime) -> None:
        """Mark the results of a commit as held by the Delta table."""
        self._update_where(COLUMNS.commit_number == number, {"committed_at": now})

    def committed_by_day(self) -> Iterator[tuple[date, set[Identity]]]:
        """Yield the results that the Delta table holds by the day, in UTC, on which the attempt ended."""
        committed = COLUMNS.committed_at.is_not(None)
        end = sa.select(COLUMNS.completed_at).where(committed).order_by(COLUMNS.completed_at).limit(1)
        since = datetime.min.replace(tzinfo=UTC)
        while True:
            with reading(self._engine) as connection:
                first = connection.execute(end.where(COLUMNS.completed_at >= since)).scalar_one_or_none()
                if first is None:
                    return
                day = datetime.combine(first.astimezone(UTC), time(), UTC)
                since = day + timedelta(days=1)
                of_day = (committed, COLUMNS.completed_at >= day, COLUMNS.completed_at < since)
                query = sa.select(COLUMNS.attachment_key, COLUMNS.replays, COLUMNS.attempt).where(*of_day)
                found = {(key, replays, attempt) for key, replays, attempt in connection.execute(query)}
            yield day.date(), found

    def reopen(self, identities: Collection[Identity]) -> None:
        """Put results in no commit: the Delta table has lost their rows."""
        with writing(self._engine) as connection:
            _update(connection, sorted(identities), {"commit_number": None, "committed_at": None})

    def open_commits(self) -> tuple[int, ...]:
        """Return the numbers of commits that may not have been made yet, in order."""
        query = (
            sa.select(COLUMNS.commit_number)
            .where(COLUMNS.committed_at.is_(None), COLUMNS.commit_number.is_not(None))
            .distinct()
            .order_by(COLUMNS.commit_number)
        )
        return tuple(fetch(self._engine, query).scalars())

    def of_commit(self, number: int) -> tuple[AttemptResult, ...]:
        """Return the rows of a commit that may not have been made yet."""
        query = sa.select(download_outcomes).where(COLUMNS.commit_number == number, COLUMNS.committed_at.is_(None))
        return tuple(sorted(self._select(query), key=lambda result: result.identity))

    def ended_between(self, since: datetime, until: datetime) -> dict[str, int]:
        """Count the attempts that ended in a period, by status."""
        status = COLUMNS.result["status"].as_string()
        counted = [sa.func.count().filter(status == kind.value).label(kind.value) for kind in DownloadStatus]
        query = sa.select(*counted).where(COLUMNS.completed_at >= since, COLUMNS.completed_at < until)
        return dict(fetch(self._engine, query).mappings().one())

    def committed(self) -> int:
        """Count results that are in the Delta table."""
        return self._count(COLUMNS.committed_at.is_not(None))

    def unpublished(self) -> int:
        """Count results that may not be published to Kafka and Dagster."""
        return self._count(COLUMNS.published_at.is_(None))

    def uncommitted(self) -> int:
        """Count results that are not known to be in the Delta table, and that it may still accept."""
        return self._count(COLUMNS.committed_at.is_(None), COLUMNS.commit_error.is_(None))

    def _count(self, *conditions: sa.ColumnElement[bool]) -> int:
        return int(fetch(self._engine, sa.select(sa.func.count()).where(*conditions)).scalar_one())

    def _select(self, query: sa.Select[Any]) -> list[AttemptResult]:
        return [AttemptResult.of(row) for row in fetch(self._engine, query).mappings()]

    def _update_where(self, chosen: sa.ColumnElement[bool], change: Mapping[str, Any]) -> None:
        statement = sa.update(download_outcomes).where(chosen, COLUMNS.committed_at.is_(None))
        with writing(self._engine) as connection:
            connection.execute(statement.values(change))


def attempts_at(engine: sa.Engine, attachment_keys: Sequence[str]) -> dict[str, tuple[Attempt, ...]]:
    """Return every ended attempt at these attachments, in order; attachments without one are left out.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: the database does not answer.
    """
    query = (
        sa.select(download_outcomes)
        .where(COLUMNS.attachment_key.in_(attachment_keys))
        .order_by(COLUMNS.attachment_key, COLUMNS.replays, COLUMNS.attempt)
    )
    found: dict[str, tuple[Attempt, ...]] = {}
    with reading(engine) as connection:
        for row in connection.execute(query).mappings():
            own = {name: row[name] for name in Attempt.__struct_fields__ if name in row}
            attempt = msgspec.convert({**row["result"], **own}, Attempt)
            found[row["attachment_key"]] = (*found.get(row["attachment_key"], ()), attempt)
    return found


def replays_of(engine: sa.Engine, attachment_key: str) -> tuple[Replay, ...]:
    """Return every replay of the attachment, in order.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: the database does not answer.
    """
    replays = attachment_replays.c
    query = sa.select(attachment_replays).where(replays.attachment_key == attachment_key).order_by(replays.replays)
    rows = fetch(engine, query).mappings().all()
    return tuple(Replay(**{name: row[name] for name in Replay.__struct_fields__}) for row in rows)


def enter_results(
    connection: sa.Connection, results: Mapping[str, AttemptResult], run_id: str
) -> dict[str, AttemptResult]:
    """Insert results by attachment; return the valid ones: of an attempt that had ended before, the first result."""
    rows = [results[key].row(run_id) for key in sorted(results)]
    new = insert_missing(connection, download_outcomes, rows, COLUMNS.attachment_key)
    holding = {key: results[key] for key in sorted(results)}
    for part in in_parts([results[key].identity for key in holding if key not in new]):
        query = sa.select(download_outcomes).where(_is_one_of(connection, part))
        for row in connection.execute(query).mappings():
            holding[row["attachment_key"]] = AttemptResult.of(row)
    return holding


def _update(
    connection: sa.Connection,
    identities: Sequence[Identity],
    change: Mapping[str, Any],
    *conditions: sa.ColumnElement[bool],
) -> None:
    for part in in_parts(identities):
        chosen = sa.update(download_outcomes).where(*conditions, _is_one_of(connection, part))
        connection.execute(chosen.values(change))


def _is_one_of(connection: sa.Connection, identities: Sequence[Identity]) -> sa.ColumnElement[bool]:
    """Test whether a row of the table is one of these attempts; at most as many as `in_parts` yields."""
    identity = sa.tuple_(COLUMNS.attachment_key, COLUMNS.replays, COLUMNS.attempt)
    if connection.dialect.name != "postgresql":
        return identity.in_(identities)
    # Arrays in three parameters: compiling thousands of parameters takes SQLAlchemy longer than the update.
    keys, replays, attempts = (list(column) for column in zip(*identities, strict=True))
    return identity.in_(sa.select(_unnest(keys, sa.Text), _unnest(replays, sa.Integer), _unnest(attempts, sa.Integer)))


def _unnest(values: list[Any], kind: type[sa.Text | sa.Integer]) -> sa.Function[Any]:
    array = postgresql.ARRAY(kind)
    return sa.func.unnest(sa.cast(sa.literal(values, array), array))
