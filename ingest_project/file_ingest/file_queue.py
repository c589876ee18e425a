"""The work queue of files: entries, their states, and fair scheduling over the origins that send them.

The sensors and the runs share nothing else: a file is pending until a tick claims it for a batch, leased by that
batch's run until it is finished, and pending again when its run came to nothing.

Each origin gets an equal share, so that one that sends much keeps no other waiting. An origin is the location that a
polling job listed, or the folder of a file that was announced directly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, zip_longest
from typing import Any, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy import RowMapping

from ingest_project.contracts.files import FileEvent, file_key, version_of
from ingest_project.core.keys import digest_of
from ingest_project.file_ingest.tables import files
from ingest_project.platform.database.engine import reading, writing
from ingest_project.platform.work_queue.queue import Due, WorkLedger
from ingest_project.platform.work_queue.sql_helpers import contains, in_parts, insert_missing
from ingest_project.platform.work_queue.states import FINISHED_FILE_STATES, PENDING, FileState
from ingest_project.platform.work_queue.types import KafkaPosition, Recorded

Item = TypeVar("Item")

# Those that wait longest; the others have their turn when these were asked for.
MOST_ORIGINS = 500


def origin_of(event: FileEvent, location: str) -> str:
    """Whose share a file takes: short, and the same for all files of one place.

    Args:
        event: that announced the file.
        location: its canonical address.
    """
    place = sorted(event.source_config.items()) or location.rpartition("/")[0]
    return digest_of(event.source_type, place)


def waiting_origins(connection: sa.Connection, queue_name: str, now: datetime) -> Sequence[str]:
    """Origins with files that are due, those first whose first file waits longest.

    The index is asked for one origin after the other: what it costs grows with the origins, not with the files.
    """
    is_waiting = sa.and_(files.c.kafka_topic == queue_name, files.c.state == sa.literal_column(f"'{PENDING}'"))
    first = sa.select(sa.func.min(files.c.origin).label("origin")).where(is_waiting)
    origins = first.cte("origins", recursive=True)
    after = sa.select(sa.func.min(files.c.origin)).where(is_waiting, files.c.origin > origins.c.origin)
    origins = origins.union_all(
        sa.select(after.correlate(origins).scalar_subquery()).where(origins.c.origin.is_not(None))
    )
    earliest = sa.func.min(files.c.next_attempt_at, type_=files.c.next_attempt_at.type)
    due_at = sa.select(earliest).where(is_waiting, files.c.origin == origins.c.origin)
    waiting = sa.select(origins.c.origin, due_at.correlate(origins).scalar_subquery().label("due_at")).subquery()
    query = sa.select(waiting.c.origin).where(waiting.c.due_at <= now).order_by(waiting.c.due_at).limit(MOST_ORIGINS)
    return connection.execute(query).scalars().all()


def in_turn(groups: Iterable[Iterable[Item]]) -> Iterator[Item]:
    """The first of each group, then the second of each, and so on."""
    missing = object()
    for item in chain.from_iterable(zip_longest(*groups, fillvalue=missing)):
        if item is not missing:
            yield item  # type: ignore[misc]  # what is missing was left out


class FileArrival(NamedTuple):
    """A file event as it was read from Kafka.

    Args:
        file_key: partition key, see `messages.file_event.file_key`.
        location: canonical address of the file, unique over all sources.
        profile: name of the reader profile.
        pinned: whether the event says which version it means; else it means the one that is there.
    """

    file_key: str
    location: str
    event: FileEvent
    profile: str
    intake: KafkaPosition
    pinned: bool = True


class VersionOrder(NamedTuple):
    """The place of one version among those of its location: the greater one is the newer.

    When it was changed decides; where that is the same, or unknown, when it was announced, and then where its message
    stood.
    """

    version_at: datetime
    announced_at: datetime
    topic: str
    partition: int
    offset: int
    file_key: str


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one file; `messages.encode` makes JSON of it.

    Args:
        event: the file event it came with.
        location_key: hash of the location.
        version_at: when this version was made, as far as its event tells; orders the versions of a location.
        announced_at: when it was found; orders versions that were made at the same time.
        pinned: whether this version is meant, and not the one that is there.
        stands: whether this is the version of its location that counts.
        attempts: how often a batch asked for it, since it arrived or was reopened.
        next_attempt_at: not asked for before then.
        reason: why it is quarantined, failed or waits again.
        duplicate_of: key of the file whose rows stand for the same content.
        replaced_by: key of the newer version, or the one read by another profile, that counts in its place.
        rule_counts: broken rule to number of rows.
    """

    file_key: str
    location: str
    location_key: str
    event: FileEvent
    profile: str
    intake: KafkaPosition
    version_at: datetime
    announced_at: datetime
    pinned: bool
    stands: bool
    state: FileState
    attempts: int
    reason: str | None
    error_class: str | None
    batch_id: str | None
    run_id: str | None
    next_attempt_at: datetime
    sha256: str | None
    landed_bytes: int | None
    duplicate_of: str | None
    replaced_by: str | None
    rows_read: int | None
    rows_accepted: int | None
    rows_quarantined: int | None
    rule_counts: dict[str, int] | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def order(self) -> VersionOrder:
        """Its place among the versions of its location."""
        position = (self.intake.topic, self.intake.partition, self.intake.offset)
        return VersionOrder(self.version_at, self.announced_at, *position, self.file_key)

    @classmethod
    def of(cls, row: RowMapping) -> FileRecord:
        """Of a row of the table `files`."""
        own = {name: row[name] for name in _OWN_COLUMNS}
        event = FileEvent(**{name: row[name] for name in _EVENT_COLUMNS}, event_id=row["event_id"])
        return cls(**own, state=FileState(row["state"]), event=event, intake=KafkaPosition.of(row))


_EVENT_COLUMNS = (
    "file_path",
    "file_name",
    "job_id",
    "source_type",
    "file_type",
    "size_bytes",
    "modified_at",
    "etag",
    "discovered_at",
    "trace_id",
    "metadata",
    "source_config",
)
_OWN_COLUMNS = tuple(name for name in FileRecord.__struct_fields__ if name not in {"event", "intake", "state"})


def order_of(arrival: FileArrival, now: datetime) -> VersionOrder:
    """Place an arrival among the versions of its location.

    A clock that is ahead must not make a version the newest for years: nothing was announced after it arrived, nor made
    after it was announced.
    """
    event, intake = arrival.event, arrival.intake
    announced_at = min(_aware(event.discovered_at or intake.at or now), now)
    version_at = min(_aware(event.modified_at or announced_at), announced_at)
    return VersionOrder(
        version_at, announced_at, intake.topic, intake.partition, intake.offset, file_key=arrival.file_key
    )


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def file_row(arrival: FileArrival, now: datetime) -> dict[str, Any]:
    """The row of a file that has just arrived."""
    event = arrival.event
    order = order_of(arrival, now)
    return {
        "file_key": arrival.file_key,
        "location": arrival.location,
        "location_key": digest_of(arrival.location),
        "version_at": order.version_at,
        "announced_at": order.announced_at,
        "pinned": arrival.pinned,
        "stands": False,
        **{name: getattr(event, name) for name in _EVENT_COLUMNS},
        "file_type": event.file_type or event.kind,
        "event_id": event.event_id,
        "profile": arrival.profile,
        "origin": origin_of(event, arrival.location),
        **arrival.intake.columns(),
        "state": FileState.PENDING,
        "attempts": 0,
        "next_attempt_at": now,
        "created_at": now,
        "updated_at": now,
    }


# What a new announcement of a known version brings.
_ANNOUNCED_COLUMNS = (
    "version_at",
    "announced_at",
    "kafka_topic",
    "kafka_partition",
    "kafka_offset",
    "kafka_topic_id",
    "kafka_timestamp",
)
_READING_COLUMNS = ("version_at", "announced_at", "pinned", "metadata", "sha256", "landed_bytes")


def _afresh(now: datetime) -> dict[str, Any]:
    """The columns of a finished file that is to be ingested as if for the first time."""
    return {
        **dict.fromkeys(("batch_id", "run_id", "retry_group", "finished_at")),
        "state": FileState.PENDING,
        "attempts": 0,
        "next_attempt_at": now,
    }


def _is_another_reading(other: FileRecord, arrival: FileArrival, now: datetime) -> bool:
    """Tell whether the other is of the same version and was announced before this arrival."""
    versions = {version_of(e.etag, e.size_bytes, e.modified_at) for e in (other.event, arrival.event)}
    return len(versions) == 1 and other.order < order_of(arrival, now)


class QuarantineShare(msgspec.Struct, frozen=True):
    """How many of the files finished in a time were quarantined."""

    finished: int
    quarantined: int

    @property
    def share(self) -> float:
        """0 to 1; 0 when nothing was finished."""
        return self.quarantined / self.finished if self.finished else 0.0


class RowTotals(NamedTuple):
    """Rows of many files."""

    read: int
    accepted: int
    quarantined: int


class FileLedger(WorkLedger):
    """Reads and writes the table `files`. Times are UTC-aware; every method is one transaction.

    Raises:
        DatabaseUnavailableError, TransactionConflictError: from every method.
    """

    halves_lost_batches = True

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine, files, files.c.file_key, FileState.INGESTING)

    def record(self, arrivals: Sequence[FileArrival], now: datetime) -> Recorded:
        """Enter files as pending. What is there already stays as it is, with two exceptions.

        A file that is `requested` and arrives again from the very position it came from was asked for by a tick whose
        cursor was never saved: that batch does not exist. It is pending again, and that attempt is not counted.

        A version that was replaced by another reading of it, and is announced again after that one, is pending again:
        somebody wants the former profile back.
        """
        first = {arrival.file_key: arrival for arrival in reversed(arrivals)}
        # In one order everywhere: two ticks that record the same files must not wait for each other crosswise.
        ordered = sorted(first.values(), key=lambda arrival: arrival.file_key)
        with writing(self._engine) as connection:
            there = self._known(connection, [arrival.file_key for arrival in ordered])
            rows = [file_row(arrival, now) for arrival in ordered if arrival.file_key not in there]
            new = insert_missing(connection, files, rows, files.c.file_key)
            known = {a.file_key: a.intake for a in ordered if a.file_key not in new}
            reopened = self._reopen_unsaved(connection, known, now)
            reopened |= self._reannounce(connection, [a for a in ordered if a.file_key in known], now)
        keys = list(dict.fromkeys(arrival.file_key for arrival in arrivals))
        return Recorded(
            new=tuple(key for key in keys if key in new),
            reopened=tuple(key for key in keys if key in reopened),
            known=tuple(key for key in keys if key not in new and key not in reopened),
        )

    def due(self, queue_name: str, limit: int, now: datetime) -> tuple[Due, ...]:
        """Pending files whose time has come: of each origin the same number, by turns; then those that wait longest."""
        with reading(self._engine) as connection:
            longest = [Due(*row) for row in connection.execute(self._due(queue_name, limit, now))]
            origins = waiting_origins(connection, queue_name, now) if len(longest) == limit else ()
            share = limit // max(1, len(origins))
            shares = []
            for origin in origins[:limit] if len(origins) > 1 else ():
                own = self._due(queue_name, max(1, share), now).where(files.c.origin == origin)
                shares.append([Due(*row) for row in connection.execute(own)])
        return tuple(dict.fromkeys([*in_turn(shares), *longest]))[:limit]

    def start(self, file_keys: Sequence[str], run_id: str, now: datetime) -> tuple[FileRecord, ...]:
        """A run takes files into its hands, in whatever state they are: a person may repeat any file.

        Returns:
            the full records in the order asked for; keys that are not in the ledger are left out.
        """
        change = {"state": FileState.INGESTING, "run_id": run_id, "started_at": now, "updated_at": now}
        change |= {"finished_at": None, "reported_at": None}
        found: dict[str, FileRecord] = {}
        with writing(self._engine) as connection:
            for part in in_parts(file_keys):
                statement = sa.update(files).where(files.c.file_key.in_(part)).values(**change)
                rows = connection.execute(statement.returning(*files.c)).mappings()
                found.update((row["file_key"], FileRecord.of(row)) for row in rows)
        return tuple(found[key] for key in dict.fromkeys(file_keys) if key in found)

    def fail(self, file_keys: Sequence[str], reason: str, error_class: str, now: datetime) -> None:
        """Nothing more is tried by itself; the reason says why."""
        self._set(
            file_keys,
            {"state": FileState.FAILED, "reason": reason, "error_class": error_class, "finished_at": now},
            now,
        )

    def keep(self, file_key: str, reason: str, now: datetime) -> None:
        """A file that was stored could not be ingested again: it is what it was, and the reason says what was tried."""
        was = sa.case((files.c.duplicate_of.is_(None), FileState.INGESTED), else_=FileState.DUPLICATE)
        self._set([file_key], {"state": was, "reason": reason, "finished_at": now}, now, only=files.c.stands)

    def reopen(self, file_keys: Sequence[str], now: datetime) -> tuple[str, ...]:
        """A person wants finished files ingested again, as if for the first time; returns those that were finished.

        The version that was announced and the bytes that were landed are forgotten: a source that was fixed is of
        another version, and that is the one to ingest now, under the key the person knows. It is the newest version of
        its location from now on.
        """
        change = {
            **dict.fromkeys(("size_bytes", "modified_at", "etag", "sha256", "landed_bytes")),
            **_afresh(now),
            "version_at": now,
            "announced_at": now,
            "pinned": False,
        }
        return self._set(file_keys, change, now, only=files.c.state.in_(sorted(FINISHED_FILE_STATES)))

    def announce_again(self, record: FileRecord, profile: str, now: datetime) -> str | None:
        """A person wants a file read by another profile; the reading it has now counts until that is done.

        It is read as its source is now; where that has it no more, from the bytes that were landed.

        Returns:
            the key of the new reading; None where one by this profile is on its way already.
        """
        event = record.event
        version = version_of(event.etag, event.size_bytes, event.modified_at)
        key = file_key(record.location, event.file_name, version, profile)
        named = msgspec.structs.replace(event, metadata={**event.metadata, "format": profile})
        row = file_row(FileArrival(key, record.location, named, profile, record.intake, pinned=False), now)
        row |= {
            "version_at": now,
            "announced_at": now,
            "sha256": record.sha256,
            "landed_bytes": record.landed_bytes,
        }
        again = {**_afresh(now), **{name: row[name] for name in _READING_COLUMNS}}
        with writing(self._engine) as connection:
            if insert_missing(connection, files, [row], files.c.file_key):
                return key
            finished = files.c.state.in_(sorted(FINISHED_FILE_STATES))
            statement = sa.update(files).where(files.c.file_key == key, finished).values(**again, updated_at=now)
            return key if connection.execute(statement).rowcount else None

    def get(self, file_key: str) -> FileRecord | None:
        """All that is known of one file."""
        found = self.get_many([file_key])
        return found[0] if found else None

    def get_many(self, file_keys: Sequence[str]) -> tuple[FileRecord, ...]:
        """All that is known of these files, in the order asked for; unknown keys are left out."""
        found: dict[str, FileRecord] = {}
        with reading(self._engine) as connection:
            for part in in_parts(file_keys):
                rows = connection.execute(sa.select(files).where(files.c.file_key.in_(part))).mappings()
                found.update((row["file_key"], FileRecord.of(row)) for row in rows)
        return tuple(found[key] for key in dict.fromkeys(file_keys) if key in found)

    def list(
        self, state: FileState | None = None, text: str | None = None, limit: int = 100, offset: int = 0
    ) -> tuple[FileRecord, ...]:
        """Files, the last changed first.

        Args:
            state: only those in this state.
            text: part of the key, path, job id, trace id or reason, upper and lower case alike.
            limit: at most so many.
            offset: so many are passed over first.
        """
        query = sa.select(files).order_by(files.c.updated_at.desc(), files.c.file_key).limit(limit).offset(offset)
        if state is not None:
            query = query.where(files.c.state == state)
        if text:
            searched = (files.c.file_key, files.c.file_path, files.c.job_id, files.c.trace_id, files.c.reason)
            query = query.where(contains(text, *searched))
        with reading(self._engine) as connection:
            return tuple(FileRecord.of(row) for row in connection.execute(query).mappings())

    def counts_by_state(self) -> dict[FileState, int]:
        """Number of files in every state, also those with none."""
        query = sa.select(files.c.state, sa.func.count()).group_by(files.c.state)
        with reading(self._engine) as connection:
            counts = {row[0]: int(row[1]) for row in connection.execute(query)}
        return {state: counts.get(state, 0) for state in FileState}

    def row_totals(self) -> RowTotals:
        """Rows of all files that count, as each was counted when it was stored; what is ingested again counts on."""
        sums = [
            sa.func.coalesce(sa.func.sum(column), 0)
            for column in (files.c.rows_read, files.c.rows_accepted, files.c.rows_quarantined)
        ]
        query = sa.select(*sums).where(files.c.stands, files.c.duplicate_of.is_(None))
        with reading(self._engine) as connection:
            return RowTotals(*(int(number) for number in connection.execute(query).one()))

    def quarantine_share(self, since: datetime) -> QuarantineShare:
        """How many of the files finished since then were quarantined."""
        quarantined = sa.func.count().filter(files.c.state == FileState.QUARANTINED)
        query = sa.select(sa.func.count().label("finished"), quarantined.label("quarantined")).where(
            files.c.state.in_(sorted(FINISHED_FILE_STATES)),
            # Found by index; finishing changes both at once.
            files.c.updated_at >= since,
            files.c.finished_at >= since,
        )
        with reading(self._engine) as connection:
            return QuarantineShare(**connection.execute(query).mappings().one())

    def oldest_unfinished(self) -> FileRecord | None:
        """The file that has been waiting longest for its end."""
        unfinished = [state for state in FileState if not state.finished]
        query = sa.select(files).where(files.c.state.in_(unfinished)).order_by(files.c.created_at).limit(1)
        with reading(self._engine) as connection:
            row = connection.execute(query).mappings().one_or_none()
        return None if row is None else FileRecord.of(row)

    def _reannounce(self, connection: sa.Connection, known: Sequence[FileArrival], now: datetime) -> set[str]:
        by_key = {arrival.file_key: arrival for arrival in known}
        reopened: set[str] = set()
        for part in in_parts(list(by_key)):
            chosen = sa.and_(files.c.file_key.in_(part), files.c.state == FileState.REPLACED)
            for key in connection.execute(sa.select(files.c.file_key).where(chosen)).scalars().all():
                row = file_row(by_key[key], now)
                standing = sa.select(files).where(files.c.location_key == row["location_key"], files.c.stands)
                others = [FileRecord.of(other) for other in connection.execute(standing).mappings()]
                if not any(_is_another_reading(other, by_key[key], now) for other in others):
                    continue
                again = {**_afresh(now), **{name: row[name] for name in _ANNOUNCED_COLUMNS}, "updated_at": now}
                connection.execute(sa.update(files).where(files.c.file_key == key).values(**again))
                reopened.add(key)
        return reopened

    @staticmethod
    def _known(connection: sa.Connection, file_keys: Sequence[str]) -> set[str]:
        """Those of the keys that are in the ledger."""
        found: set[str] = set()
        for part in in_parts(file_keys):
            found.update(connection.execute(sa.select(files.c.file_key).where(files.c.file_key.in_(part))).scalars())
        return found

    def _set(
        self,
        file_keys: Sequence[str],
        change: dict[str, Any],
        now: datetime,
        only: sa.ColumnElement[bool] | None = None,
    ) -> tuple[str, ...]:
        changed: set[str] = set()
        with writing(self._engine) as connection:
            for part in in_parts(file_keys):
                statement = sa.update(files).where(files.c.file_key.in_(part)).values(**change, updated_at=now)
                if only is not None:
                    statement = statement.where(only)
                changed.update(connection.execute(statement.returning(files.c.file_key)).scalars())
        return tuple(key for key in dict.fromkeys(file_keys) if key in changed)
