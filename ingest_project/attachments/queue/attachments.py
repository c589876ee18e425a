"""The ledger of attachments: what must be downloaded, what a run holds, what waits for its next attempt, what failed.

An attempt's end is entered before anybody is told of it. A run that is killed in between leaves an outcome that was not
told; whoever takes the attachment up next tells that one and does not download again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa

from ingest_project.attachments.queue.outcomes import is_one_of, outcome_of, outcome_row
from ingest_project.attachments.queue.record import (
    PENDING_LANE,
    RETRY_LANE,
    AttachmentRecord,
    AttemptResult,
    TaskArrival,
    task_row,
)
from ingest_project.attachments.tables import attachment_replays, attachments, download_outcomes
from ingest_project.contracts.attachments import DownloadStatus, earlier_attachment_key
from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.work_queue.queue import WorkLedger
from ingest_project.platform.work_queue.sql_helpers import contains, in_parts, insert_missing, update_each
from ingest_project.platform.work_queue.states import AttachmentState
from ingest_project.platform.work_queue.types import Recorded

# Of those that are due, the ones that are looked through for whose turn it is: bounds what a tick costs.
MOST_DUE = 100_000
FINISHED = (AttachmentState.STORED, AttachmentState.FAILED)


class Replayed(NamedTuple):
    """What a replay did.

    Args:
        keys: attachments that are tried again, in the order they will be.
        exhausted: attachments that have been replayed as often as is allowed.
    """

    keys: tuple[str, ...]
    exhausted: tuple[str, ...]


class FailedFilter(NamedTuple):
    """Which failed attachments are meant; what is None does not matter."""

    trace_id: str | None = None
    domain: str | None = None
    error_class: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    keys: tuple[str, ...] | None = None


class AttachmentLedger(WorkLedger):
    """Reads and writes the table `attachments`. Times are UTC-aware; every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(
            engine, attachments, attachments.c.attachment_key, AttachmentState.DOWNLOADING, attachments.c.queue_name
        )

    def _due(self, queue_name: str, limit: int, now: datetime) -> sa.Select[Any]:
        """Domains take turns, and in each its traces: one that has thousands does not keep the others waiting."""
        columns = attachments.c
        due = (
            super()
            ._due(queue_name, MOST_DUE, now)
            .add_columns(columns.domain, columns.trace_id, columns.next_attempt_at)
            .subquery()
        )
        of_trace = sa.func.row_number().over(
            partition_by=[due.c.domain, due.c.trace_id], order_by=due.c.next_attempt_at
        )
        ranked = sa.select(due, of_trace.label("of_trace")).subquery()
        of_domain = sa.func.row_number().over(
            partition_by=ranked.c.domain, order_by=[ranked.c.of_trace, ranked.c.next_attempt_at]
        )
        turns = sa.select(ranked, of_domain.label("of_domain")).subquery()
        return (
            sa.select(turns.c.attachment_key, turns.c.attempts)
            .order_by(turns.c.of_domain, turns.c.next_attempt_at)
            .limit(limit)
        )

    def under_known_keys(self, arrivals: Sequence[TaskArrival]) -> list[TaskArrival]:
        """The same arrivals, each under the key that its attachment is recorded by: keys had shorter hashes once."""
        earlier = {earlier_attachment_key(a.task.trace_id, a.task.attachment_url): a for a in arrivals}
        columns = attachments.c
        query = sa.select(columns.attachment_key, columns.trace_id, columns.attachment_url)
        known: dict[tuple[str, str], str] = {}
        with reading(self._engine) as connection:
            for part in in_parts(list(earlier)):
                rows = connection.execute(query.where(columns.attachment_key.in_(part)))
                known.update(((trace_id, url), key) for key, trace_id, url in rows)
        if not known:
            return list(arrivals)
        return [
            a._replace(attachment_key=known.get((a.task.trace_id, a.task.attachment_url), a.attachment_key))
            for a in arrivals
        ]

    def record(self, arrivals: Sequence[TaskArrival], max_replays: int, now: datetime) -> Recorded:
        """Enter tasks that came over Kafka as pending. What is there stays as it is, with two exceptions.

        One that was asked for by a tick whose cursor was never saved is pending again (see `WorkLedger`); one that had
        failed and that somebody else sends again is tried again, as often as is allowed.
        """
        first = {arrival.attachment_key: arrival for arrival in reversed(arrivals)}
        ordered = sorted(first.values(), key=lambda arrival: arrival.attachment_key)
        with writing(self._engine) as connection:
            rows = [task_row(arrival, now) for arrival in ordered]
            new = insert_missing(connection, attachments, rows, attachments.c.attachment_key)
            known = {a.attachment_key: a.intake for a in ordered if a.attachment_key not in new}
            reopened = self._reopen_unsaved(connection, known, now)
            repeats = [a.attachment_key for a in ordered if a.is_repeat and a.attachment_key in known]
            for part in in_parts(repeats):
                again = sa.and_(
                    attachments.c.attachment_key.in_(part),
                    attachments.c.state == AttachmentState.FAILED,
                    attachments.c.replays < max_replays,
                )
                reopened |= self._begin_anew(connection, again, "a message", now)
        return Recorded(
            new=tuple(key for key in first if key in new),
            reopened=tuple(key for key in first if key in reopened),
            known=tuple(key for key in known if key not in reopened),
        )

    def record_extracted(
        self, arrivals: Sequence[TaskArrival], batch_id: str | None, run_id: str, now: datetime
    ) -> dict[str, str]:
        """Enter tasks found in events: in the hands of the run that found them, or pending where it does no more.

        One that is there and was never tried is due now: whoever sent it as a task may have said any other time.

        Args:
            arrivals: the tasks.
            batch_id: of a run that goes on to download them; None: whoever is asked next does.
            run_id: of the run.
            now: when.

        Returns:
            of each of these attachments, the event that it is known by.
        """
        first = {arrival.attachment_key: arrival for arrival in reversed(arrivals)}
        held = {"state": AttachmentState.REQUESTED, "batch_id": batch_id, "run_id": run_id, "attempts": 1}
        rows = [task_row(first[key], now) | (held if batch_id else {}) for key in sorted(first)]
        owners: dict[str, str] = {}
        with writing(self._engine) as connection:
            new = insert_missing(connection, attachments, rows, attachments.c.attachment_key)
            for part in in_parts(sorted(first.keys() - new)):
                connection.execute(_due_now(part, now))
            for part in in_parts(sorted(first)):
                query = sa.select(attachments.c.attachment_key, attachments.c.event_key)
                found = connection.execute(query.where(attachments.c.attachment_key.in_(part)))
                owners.update((key, event_key or "") for key, event_key in found)
        return owners

    def start(self, keys: Sequence[str], run_id: str, now: datetime) -> tuple[AttachmentRecord, ...]:
        """A run takes attachments into its hands, in whatever state they are.

        One that is finished begins again: a person asked for it by its partition, and that is a replay like any other.

        Returns:
            the full records in the order asked for; keys that are not in the ledger are left out.
        """
        change = {"state": AttachmentState.DOWNLOADING, "run_id": run_id, "started_at": now, "updated_at": now}
        change |= {"finished_at": None, "reported_at": None}
        found: dict[str, AttachmentRecord] = {}
        with writing(self._engine) as connection:
            for part in in_parts(keys):
                chosen = attachments.c.attachment_key.in_(part)
                self._begin_anew(connection, sa.and_(chosen, attachments.c.state.in_(FINISHED)), f"run {run_id}", now)
                statement = sa.update(attachments).where(chosen).values(**change).returning(*attachments.c)
                rows = connection.execute(statement).mappings()
                found.update((row["attachment_key"], AttachmentRecord.of(row)) for row in rows)
        return tuple(found[key] for key in dict.fromkeys(keys) if key in found)

    def finish(self, outcomes: Sequence[AttemptResult], run_id: str, now: datetime) -> tuple[AttemptResult, ...]:
        """Enter how attempts ended, and what follows from it.

        Of an attempt that had ended already, by a run that was lost or one that worked beside this one, what was
        entered first holds.

        Args:
            outcomes: one of each attachment.
            run_id: of the run that made them.
            now: when.

        Returns:
            the outcomes that hold, in order of their attachments.
        """
        mine = {outcome.attachment_key: outcome for outcome in outcomes}
        with writing(self._engine) as connection:
            present = self._present_attempts(connection, sorted(mine))
            rows = [outcome_row(mine[key], run_id) for key in sorted(mine)]
            new = insert_missing(connection, download_outcomes, rows, download_outcomes.c.attachment_key)
            earlier = _entered(connection, [mine[key].identity for key in sorted(mine.keys() - new)])
            holding = [earlier.get(key, mine[key]) for key in sorted(mine)]
            followed = [outcome for outcome in holding if outcome.identity in present]
            stored = [one for one in followed if one.result.status is DownloadStatus.SUCCESS]
            kept = [one for one in followed if one.leaves_stored_bytes]
            failed = [
                one
                for one in followed
                if one.result.status is not DownloadStatus.SUCCESS and not one.leaves_stored_bytes
            ]
            for changes in (
                [_stored(o, now) for o in stored],
                [_kept(o, now) for o in kept],
                [_failed(o, now) for o in failed],
            ):
                update_each(connection, attachments, attachments.c.attachment_key, changes)
            if failed:
                connection.execute(_first_failure([outcome.attachment_key for outcome in failed], now))
        return tuple(holding)

    def postpone(self, keys: Sequence[str], reason: str, until: datetime, now: datetime) -> None:
        """Back to where they waited, with a time before which they are not tried; nothing counts as an attempt."""
        change = {"state": AttachmentState.PENDING, "attempts": 0, "batch_id": None, "run_id": None}
        change |= {"reason": reason, "next_attempt_at": until, "updated_at": now}
        with writing(self._engine) as connection:
            connection.execute(sa.update(attachments).where(attachments.c.attachment_key.in_(keys)).values(**change))

    def replay(
        self, keys: Sequence[str], asked_by: str, max_replays: int, per_second: float, now: datetime
    ) -> Replayed:
        """Have failed attachments tried again, a bounded number a second.

        Args:
            keys: of failed attachments; others are left alone.
            asked_by: for the audit.
            max_replays: an attachment that has begun again as often as this is left failed.
            per_second: how fast they become due.
            now: the first is due.
        """
        failed = attachments.c.state == AttachmentState.FAILED
        replayed: list[str] = []
        exhausted: list[str] = []
        with writing(self._engine) as connection:
            for part in in_parts(keys):
                chosen = sa.and_(attachments.c.attachment_key.in_(part), failed)
                worn_out = sa.and_(chosen, attachments.c.replays >= max_replays)
                exhausted += connection.execute(sa.select(attachments.c.attachment_key).where(worn_out)).scalars()
                begun = self._begin_anew(connection, sa.and_(chosen, ~worn_out), asked_by, now)
                in_order = [key for key in part if key in begun]
                due = [
                    {"attachment_key": key, "next_attempt_at": now + timedelta(seconds=place / per_second)}
                    for place, key in enumerate(in_order, start=len(replayed))
                ]
                update_each(connection, attachments, attachments.c.attachment_key, due)
                replayed += in_order
        return Replayed(tuple(replayed), tuple(exhausted))

    def get(self, key: str) -> AttachmentRecord | None:
        """All that is known of one attachment."""
        found = self.get_many([key])
        return found[0] if found else None

    def get_many(self, keys: Sequence[str]) -> tuple[AttachmentRecord, ...]:
        """All that is known of these attachments, in the order asked for; unknown keys are left out."""
        found: dict[str, AttachmentRecord] = {}
        with reading(self._engine) as connection:
            for part in in_parts(keys):
                rows = connection.execute(sa.select(attachments).where(attachments.c.attachment_key.in_(part)))
                found.update((row["attachment_key"], AttachmentRecord.of(row)) for row in rows.mappings())
        return tuple(found[key] for key in dict.fromkeys(keys) if key in found)

    def failed(self, wanted: FailedFilter, limit: int = 100) -> tuple[AttachmentRecord, ...]:
        """Failed attachments, those that failed first in front."""
        query = sa.select(attachments).where(attachments.c.state == AttachmentState.FAILED, *_conditions(wanted))
        query = query.order_by(attachments.c.updated_at, attachments.c.attachment_key).limit(limit)
        with reading(self._engine) as connection:
            return tuple(AttachmentRecord.of(row) for row in connection.execute(query).mappings())

    def list(
        self, state: AttachmentState | None = None, text: str | None = None, limit: int = 100
    ) -> tuple[AttachmentRecord, ...]:
        """Attachments, the last changed first.

        Args:
            state: only those in this state.
            text: part of the key, trace id, address or reason, upper and lower case alike.
            limit: at most so many.
        """
        columns = attachments.c
        query = sa.select(attachments).order_by(columns.updated_at.desc(), columns.attachment_key).limit(limit)
        if state is not None:
            query = query.where(columns.state == state)
        if text:
            searched = (columns.attachment_key, columns.trace_id, columns.attachment_url, columns.reason)
            query = query.where(contains(text, *searched))
        with reading(self._engine) as connection:
            return tuple(AttachmentRecord.of(row) for row in connection.execute(query).mappings())

    def counts_by_state(self) -> dict[AttachmentState, int]:
        """Number of attachments in every state, also those with none."""
        query = sa.select(attachments.c.state, sa.func.count()).group_by(attachments.c.state)
        with reading(self._engine) as connection:
            counts = Counter({row[0]: int(row[1]) for row in connection.execute(query)})
        return {state: counts[state] for state in AttachmentState}

    def found_in_events(self) -> int:
        """How many attachments were found in events, not sent as tasks."""
        query = sa.select(sa.func.count()).where(attachments.c.event_key.is_not(None))
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def ends_without_outcome(self) -> int:
        """How many finished attachments have no outcome of their last attempt."""
        columns, outcome = attachments.c, download_outcomes.c
        same = sa.and_(
            outcome.attachment_key == columns.attachment_key,
            outcome.replays == columns.replays,
            outcome.attempt == columns.attempt,
        )
        query = (
            sa.select(sa.func.count())
            .select_from(attachments.outerjoin(download_outcomes, same))
            .where(columns.state.in_(FINISHED), outcome.attachment_key.is_(None))
        )
        with reading(self._engine) as connection:
            return int(connection.execute(query).scalar_one())

    def most_overdue(self, queue_name: str) -> AttachmentRecord | None:
        """Of those that wait in a queue, the one whose time came first."""
        query = (
            sa.select(attachments)
            .where(attachments.c.queue_name == queue_name, attachments.c.state == AttachmentState.PENDING)
            .order_by(attachments.c.next_attempt_at)
            .limit(1)
        )
        with reading(self._engine) as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else AttachmentRecord.of(row)

    def finished_since(self, since: datetime) -> dict[AttachmentState, int]:
        """How many attachments were stored and how many failed since then."""
        query = (
            sa.select(attachments.c.state, sa.func.count())
            .where(attachments.c.state.in_(FINISHED), attachments.c.updated_at >= since)
            .group_by(attachments.c.state)
        )
        with reading(self._engine) as connection:
            counts = {row[0]: int(row[1]) for row in connection.execute(query)}
        return {state: counts.get(state, 0) for state in FINISHED}

    @staticmethod
    def _present_attempts(connection: sa.Connection, keys: Sequence[str]) -> set[tuple[str, int, int]]:
        """The attempt that each attachment is at, held until the end of the transaction."""
        columns = attachments.c
        query = sa.select(columns.attachment_key, columns.replays, columns.attempt).with_for_update()
        present: set[tuple[str, int, int]] = set()
        for part in in_parts(keys):
            ordered = query.where(columns.attachment_key.in_(part)).order_by(columns.attachment_key)
            present.update((row[0], row[1], row[2]) for row in connection.execute(ordered))
        return present

    @staticmethod
    def _begin_anew(
        connection: sa.Connection, chosen: sa.ColumnElement[bool], asked_by: str, now: datetime
    ) -> set[str]:
        """Pending as if for the first time, with an entry in the audit; returns the keys."""
        columns = attachments.c
        query = sa.select(columns.attachment_key, columns.replays, columns.error_class, columns.reason).where(chosen)
        found = connection.execute(query.with_for_update()).all()
        if not found:
            return set()
        audit = [
            {
                "attachment_key": key,
                "replays": replays + 1,
                "asked_by": asked_by,
                "asked_at": now,
                "earlier_error_class": error_class,
                "earlier_reason": reason,
            }
            for key, replays, error_class, reason in found
        ]
        connection.execute(sa.insert(attachment_replays), audit)
        anew = {
            "state": AttachmentState.PENDING,
            "queue_name": PENDING_LANE,
            "attempts": 0,
            "attempt": 1,
            "batch_id": None,
        }
        anew |= {"run_id": None, "next_attempt_at": now, "finished_at": None, "first_failed_at": None}
        statement = sa.update(attachments).where(chosen).values(**anew, replays=columns.replays + 1, updated_at=now)
        connection.execute(statement)
        return {row[0] for row in found}


def _entered(connection: sa.Connection, identities: Sequence[tuple[str, int, int]]) -> dict[str, AttemptResult]:
    """Outcomes that are in the ledger, by attachment."""
    found: dict[str, AttemptResult] = {}
    for part in in_parts(identities):
        rows = connection.execute(sa.select(download_outcomes).where(is_one_of(connection, part))).mappings()
        found.update((row["attachment_key"], outcome_of(row)) for row in rows)
    return found


def _stored(outcome: AttemptResult, now: datetime) -> dict[str, Any]:
    result = outcome.result
    return {
        "attachment_key": outcome.attachment_key,
        "state": AttachmentState.STORED,
        "attempt": result.attempt,
        "reason": None,
        "error_class": None,
        "http_status": result.http_status,
        "size_bytes": result.size_bytes,
        "sha256": result.sha256,
        "content_type": outcome.content_type,
        "stored_path": result.onelake_path,
        "finished_at": now,
        "updated_at": now,
    }


def _kept(outcome: AttemptResult, now: datetime) -> dict[str, Any]:
    """Return what changes where an attempt failed and the stored bytes stay: what it said, and nothing else."""
    result = outcome.result
    return {
        "attachment_key": outcome.attachment_key,
        "state": AttachmentState.STORED,
        "attempt": result.attempt,
        "attempts": 0,
        "reason": f"Stored; the last attempt to download it again failed: {result.error}",
        "error_class": result.error_class,
        "http_status": result.http_status,
        "finished_at": now,
        "updated_at": now,
    }


def _failed(outcome: AttemptResult, now: datetime) -> dict[str, Any]:
    result = outcome.result
    waits = outcome.next_attempt_at is not None
    return {
        "attachment_key": outcome.attachment_key,
        "state": AttachmentState.PENDING if waits else AttachmentState.FAILED,
        "queue_name": RETRY_LANE,
        "attempt": result.attempt + waits,
        "attempts": 0,
        "reason": result.error,
        "error_class": result.error_class,
        "http_status": result.http_status,
        "next_attempt_at": outcome.next_attempt_at or now,
        "finished_at": None if waits else now,
        "updated_at": now,
    }


def _first_failure(keys: Sequence[str], now: datetime) -> sa.Update:
    columns = attachments.c
    return (
        sa.update(attachments)
        .where(columns.attachment_key.in_(keys), columns.first_failed_at.is_(None))
        .values(first_failed_at=now)
    )


def _due_now(keys: Sequence[str], now: datetime) -> sa.Update:
    """Of these attachments, those that wait and were never tried: as if they had just arrived."""
    columns = attachments.c
    never_tried = sa.and_(columns.state == AttachmentState.PENDING, columns.first_failed_at.is_(None))
    return (
        sa.update(attachments)
        .where(
            columns.attachment_key.in_(keys), never_tried, sa.or_(columns.next_attempt_at > now, columns.attempt > 1)
        )
        .values(next_attempt_at=now, attempt=1, queue_name=PENDING_LANE, updated_at=now)
    )


def _conditions(wanted: FailedFilter) -> list[sa.ColumnElement[bool]]:
    columns = attachments.c
    conditions: list[sa.ColumnElement[bool]] = []
    for column, value in (
        (columns.trace_id, wanted.trace_id),
        (columns.domain, wanted.domain),
        (columns.error_class, wanted.error_class),
    ):
        if value is not None:
            conditions.append(column == value)
    if wanted.since is not None:
        conditions.append(columns.updated_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(columns.updated_at < wanted.until)
    if wanted.keys is not None:
        conditions.append(columns.attachment_key.in_(wanted.keys))
    return conditions
