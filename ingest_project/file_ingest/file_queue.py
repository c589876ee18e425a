"""The work queue of files: their versions, and fair scheduling over the origins that send them.

Each origin gets an equal share, so that an origin with many files does not delay the others. An origin is the
location that a polling job listed, or the folder of a file that was announced directly.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, zip_longest
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgspec
import sqlalchemy as sa

from ingest_project.contracts.files import SENSOR_READINGS, FileEvent, file_key, of_dataset, version_of_event
from ingest_project.contracts.storage_events import Ignored
from ingest_project.core.items import as_utc, digest_of, grouped
from ingest_project.core.settings import RetrySettings
from ingest_project.file_ingest.tables import AWAITING_A_PERSON, FileState, files, ignored_notifications
from ingest_project.platform.database import fetch, reading, writing
from ingest_project.platform.database.sql import insert_into
from ingest_project.platform.work_queue.queue import PENDING, Due, KafkaPosition, QueueEntry, QueueTable, Row, WorkQueue

# The origins that wait longest are served first, the others in later batches.
MAX_ORIGINS = 500
EVENT_COLUMNS = (
    "event_id",
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
# Columns that a new announcement of a known version changes.
ANNOUNCED_COLUMNS = ("version_at", "announced_at")
READING_COLUMNS = (*ANNOUNCED_COLUMNS, "pinned", "metadata", "etag", "corrects", "sha256", "landed_bytes")
# Etag of an uploaded version, before the SHA-256 of its bytes.
UPLOADED = "upload-"

Item = TypeVar("Item")


class VersionOrder(NamedTuple):
    """Orders the versions of one location: the greater one is the newer.

    The modification time decides; if it is equal or unknown, the time of the announcement, then the position of the
    message.
    """

    version_at: datetime
    announced_at: datetime
    topic: str
    partition: int
    offset: int
    file_key: str


class FileArrival(NamedTuple):
    """A file event as it was read from Kafka.

    Args:
        file_key: partition key, see `contracts.files.file_key`.
        location: canonical address of the file, unique over all sources.
        profile: name of the reader profile.
        pinned: True if the event names its version; otherwise it means the one present when it is consumed.
        dataset: dataset of the file.
    """

    file_key: str
    location: str
    event: FileEvent
    profile: str
    kafka_position: KafkaPosition
    pinned: bool = True
    dataset: str = SENSOR_READINGS

    def order(self, now: datetime) -> VersionOrder:
        """Return the order of this version.

        A clock that is ahead must not make a version the newest for years: no announcement is later than its arrival,
        and no version later than its announcement.
        """
        announced_at = min(as_utc(self.event.discovered_at or self.kafka_position.at or now), now)
        version_at = min(as_utc(self.event.modified_at or announced_at), announced_at)
        return VersionOrder(version_at, announced_at, *self.kafka_position.position[:3], self.file_key)

    def own_columns(self, now: datetime) -> dict[str, Any]:
        """Return the columns that only files have."""
        order = self.order(now)
        return {
            "location": self.location,
            # The versions of a file in one dataset do not replace those in another.
            "location_key": digest_of(self.location, *of_dataset(self.dataset)),
            "dataset": self.dataset,
            "version_at": order.version_at,
            "announced_at": order.announced_at,
            "pinned": self.pinned,
            "stands": False,
            **{name: getattr(self.event, name) for name in EVENT_COLUMNS},
            "file_type": self.event.file_type or self.event.kind,
            "profile": self.profile,
            "origin": origin_of(self.event, self.location),
        }


class FileRecord(QueueEntry, frozen=True, kw_only=True):
    """One file.

    Args:
        event: the file event it came with.
        location_key: hash of the location.
        dataset: dataset of the file.
        begun: number of runs that started it, this one included.
        version_at: modification time of this version, if its event has one; orders the versions of a location.
        announced_at: time of the announcement; orders versions of the same time.
        pinned: True if this version is meant, and not the one present when the event is consumed.
        stands: True if this is the current version of its location.
        duplicate_of: key of the file whose rows represent the same content.
        replaced_by: key of the newer version, or the one read by another profile, that counts instead.
        corrects: key of the file that an operator corrected by uploading this one.
        rule_counts: broken rule to number of rows.
    """

    states: ClassVar = FileState

    file_key: str
    location: str
    location_key: str
    event: FileEvent
    profile: str
    dataset: str
    begun: int
    version_at: datetime
    announced_at: datetime
    pinned: bool
    stands: bool
    state: FileState
    sha256: str | None
    landed_bytes: int | None
    duplicate_of: str | None
    replaced_by: str | None
    corrects: str | None
    rows_read: int | None
    rows_accepted: int | None
    rows_quarantined: int | None
    rule_counts: dict[str, int] | None

    @property
    def uploaded_sha256(self) -> str | None:
        """Digest of the bytes that an operator uploaded; None where the file comes from its source."""
        return (self.event.etag or "").removeprefix(UPLOADED) if self.corrects else None

    @property
    def order(self) -> VersionOrder:
        """Its order among the versions of its location."""
        return VersionOrder(self.version_at, self.announced_at, *self.kafka_position.position[:3], self.file_key)

    @classmethod
    def composed_fields(cls, row: Row) -> dict[str, Any]:
        """Return the fields that are composed of several columns."""
        event = FileEvent(**{name: row[name] for name in EVENT_COLUMNS})
        return {**super().composed_fields(row), "event": event}


class QuarantineShare(msgspec.Struct, frozen=True):
    """How many of the files finished in a time were quarantined."""

    finished: int
    quarantined: int

    @property
    def share(self) -> float:
        """0 to 1; 0 when nothing was finished."""
        return self.quarantined / self.finished if self.finished else 0.0


class AwaitingFiles(NamedTuple):
    """The files of one dataset that wait until a person has fixed its declaration, its table or a setting."""

    dataset: str
    files: int
    reason: str

    def __str__(self) -> str:
        """Describe it in a few sentences."""
        wait = "file waits" if self.files == 1 else "files wait"
        remedy = "Nothing is lost: ingestion continues automatically once that is fixed."
        return f"{self.files:,} {wait} in the dataset {self.dataset}. {self.reason} {remedy}"


class RowTotals(NamedTuple):
    """Rows of many files."""

    read: int
    accepted: int
    quarantined: int


FILE_QUEUE = QueueTable(
    table=files,
    entry=FileRecord,
    states=FileState,
    working=FileState.INGESTING,
    searched=("file_key", "file_path", "job_id", "trace_id", "reason"),
    halves_lost_batches=True,
    route="dataset",
)


def _correction(record: FileRecord, sha256: str, size_bytes: int, now: datetime) -> FileArrival:
    uploaded = {"etag": f"{UPLOADED}{sha256}", "size_bytes": size_bytes, "modified_at": now, "discovered_at": now}
    event = msgspec.structs.replace(record.event, event_id=uuid.uuid4().hex, **uploaded)
    key = file_key(record.location, event.file_name, version_of_event(event), record.profile, record.dataset)
    return FileArrival(key, record.location, event, record.profile, record.kafka_position, dataset=record.dataset)


class FileQueue(WorkQueue[FileArrival, FileRecord, FileState]):
    """The queue over the table `files`."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine, FILE_QUEUE)

    def due(self, queue_name: str, limit: int, now: datetime, routes: Collection[str] | None = None) -> tuple[Due, ...]:
        """Return due files: the same number of each origin, round-robin; then those that wait longest."""
        with reading(self._engine) as connection:
            longest = [Due(*row) for row in connection.execute(self._due(queue_name, limit, now, routes))]
            origins = waiting_origins(connection, queue_name, now) if len(longest) == limit else ()
            share = limit // max(1, len(origins))
            shares = []
            for origin in origins[:limit] if len(origins) > 1 else ():
                own = self._due(queue_name, max(1, share), now, routes).where(files.c.origin == origin)
                shares.append([Due(*row) for row in connection.execute(own)])
        return tuple(dict.fromkeys([*round_robin(shares), *longest]))[:limit]

    def keep(self, file_key: str, reason: str, now: datetime) -> None:
        """Restore the state of a stored file that could not be ingested again; the reason describes the attempt."""
        was = sa.case((files.c.duplicate_of.is_(None), FileState.INGESTED), else_=FileState.DUPLICATE)
        self._change([file_key], {"state": was, "reason": reason, "finished_at": now}, now, files.c.stands)

    def await_a_person(
        self, records: Sequence[FileRecord], reason: str, error_class: str, retries: RetrySettings, now: datetime
    ) -> None:
        """Requeue files that continue only once a person has fixed what stops them; none of them is ever failed for it.

        They are tried again with a growing pause, and these attempts do not count.
        """
        attempts = sa.case((files.c.attempts > 0, files.c.attempts - 1), else_=0)
        again = {"state": PENDING, "reason": reason, "error_class": error_class, "attempts": attempts}
        by_pause = grouped((retries.delay(record.begun), record.file_key) for record in records)
        for pause, keys in by_pause.items():
            self._change(keys, {**again, "retry_group": None, "next_attempt_at": now + pause}, now, self._is_leased())

    def postpone(self, dataset: str, pause: timedelta, now: datetime) -> None:
        """Postpone the waiting files of a dataset by at least this long: none can continue before a person acts."""
        until, columns = now + pause, files.c
        waiting = sa.and_(columns.dataset == dataset, sa.text(AWAITING_A_PERSON), columns.state == PENDING)
        with writing(self._engine) as connection:
            sooner = sa.update(files).where(waiting, columns.next_attempt_at < until)
            connection.execute(sooner.values(next_attempt_at=until))

    def awaiting_a_person(self) -> tuple[AwaitingFiles, ...]:
        """Return the datasets whose files wait until a person has fixed something."""
        columns = files.c
        query = sa.select(columns.dataset, sa.func.count(), sa.func.max(columns.reason))
        query = query.where(sa.text(AWAITING_A_PERSON)).group_by(columns.dataset).order_by(columns.dataset)
        return tuple(AwaitingFiles(*row) for row in fetch(self._engine, query))

    def announce_again(self, record: FileRecord, profile: str, now: datetime) -> str | None:
        """Queue a file to be read by another profile; its present rows count until that is done.

        The present version of the source is read; if the source no longer has the file, the landed bytes are.

        Returns:
            the key of the new entry; None if one with this profile is already queued or running.
        """
        event, key = record.event, self.key_by(record, profile)
        named = msgspec.structs.replace(event, metadata={**event.metadata, "format": profile})
        row = self._row(
            FileArrival(
                key, record.location, named, profile, record.kafka_position, pinned=False, dataset=record.dataset
            ),
            now,
        )
        row |= {"version_at": now, "announced_at": now, "sha256": record.sha256, "landed_bytes": record.landed_bytes}
        row |= {"corrects": record.corrects, "reopened_at": now}
        again = super()._as_new(now) | {name: row[name] for name in READING_COLUMNS} | {"updated_at": now}
        with writing(self._engine) as connection:
            if self._insert(connection, [row]):
                return key
            return key if self._update(connection, [key], again, files.c.state.in_(FILE_QUEUE.finished)) else None

    def key_by(self, record: FileRecord, profile: str) -> str:
        """Return the key of a file where it is read by a profile."""
        version = version_of_event(record.event)
        return file_key(record.location, record.event.file_name, version, profile, record.dataset)

    def correct(self, record: FileRecord, sha256: str, size_bytes: int, now: datetime) -> str | None:
        """Queue landed bytes as the newest version of a file, instead of the one that its source has.

        Returns:
            the key of the new entry; None if the same bytes were queued for it before.
        """
        arrival = _correction(record, sha256, size_bytes, now)
        row = self._row(arrival, now) | {"corrects": record.file_key, "reopened_at": now}
        with writing(self._engine) as connection:
            return arrival.file_key if self._insert(connection, [row]) else None

    def is_corrected_by(self, record: FileRecord, sha256: str, size_bytes: int) -> bool:
        """Test whether these bytes were queued for a file before."""
        return self.get(_correction(record, sha256, size_bytes, datetime.now(UTC)).file_key) is not None

    def count_ignored(self, found: Iterable[tuple[KafkaPosition, Mapping[Ignored, int]]]) -> None:
        """Count records of notifications that announce no file; a message that was counted before is not counted again.

        Args:
            found: position of each message, in the order of its partition, with the number of such records by reason.
        """
        messages = list(found)
        if not messages:
            return
        columns = ignored_notifications.c
        keys = (columns.topic, columns.topic_id, columns.partition, columns.reason)
        of_topics = sa.tuple_(*keys[:2]).in_({(at.topic, at.topic_id) for at, _ in messages})
        with writing(self._engine) as connection:
            counted = {
                tuple(row[:-1]): row[-1]
                for row in connection.execute(sa.select(*keys, columns.next_offset).where(of_topics))
            }
            numbers: Counter[tuple[Any, ...]] = Counter()
            for at, by_reason in messages:
                for reason, number in by_reason.items():
                    key = (at.topic, at.topic_id, at.partition, reason.value)
                    if at.offset >= counted.get(key, 0):
                        numbers[key] += number
                        counted[key] = at.offset + 1
            for key, number in numbers.items():
                row = dict(zip((column.name for column in keys), key, strict=True))
                insert = insert_into(connection, ignored_notifications)
                insert = insert.values(**row, number=number, next_offset=counted[key])
                grown = {"number": columns.number + number, "next_offset": counted[key]}
                connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=grown))

    def row_totals(self, dataset: str) -> RowTotals:
        """Return the rows of a dataset's files that count, as counted when they were stored."""
        sums = [
            sa.func.coalesce(sa.func.sum(column), 0)
            for column in (files.c.rows_read, files.c.rows_accepted, files.c.rows_quarantined)
        ]
        query = sa.select(*sums).where(files.c.stands, files.c.duplicate_of.is_(None), files.c.dataset == dataset)
        return RowTotals(*(int(number) for number in fetch(self._engine, query).one()))

    def quarantine_share(self, since: datetime) -> QuarantineShare:
        """Count the files finished since then, and the quarantined ones among them."""
        quarantined = sa.func.count().filter(files.c.state == FileState.QUARANTINED)
        query = sa.select(sa.func.count().label("finished"), quarantined.label("quarantined")).where(
            files.c.state.in_(FILE_QUEUE.finished),
            # updated_at has an index; finishing a file sets both.
            files.c.updated_at >= since,
            files.c.finished_at >= since,
        )
        return QuarantineShare(**fetch(self._engine, query).mappings().one())

    def _at_begin(self) -> dict[str, Any]:
        return {"begun": files.c.begun + 1}

    def _as_new(self, now: datetime) -> dict[str, Any]:
        """Return the changes that reset a finished file to a new arrival.

        The announced version is cleared: a corrected source has another one, which is now ingested under the known key,
        as the newest version of its location. If the source no longer has the file, the landed bytes are read. An
        upload keeps the etag that names its bytes.
        """
        forgotten: dict[str, Any] = dict.fromkeys(("size_bytes", "modified_at"))
        forgotten["etag"] = sa.case((files.c.corrects.is_not(None), files.c.etag), else_=None)
        return {**super()._as_new(now), **forgotten, "version_at": now, "announced_at": now, "pinned": False}

    def _record_known(self, connection: sa.Connection, known: Mapping[str, FileArrival], now: datetime) -> set[str]:
        """Reopen versions that another profile replaced and that are announced again after it.

        The sender returns to the former profile.
        """
        reopened: set[str] = set()
        for key in self._select_keys(connection, list(known), files.c.state == FileState.REPLACED):
            arrival = known[key]
            own = arrival.own_columns(now)
            standing = sa.select(files).where(files.c.location_key == own["location_key"], files.c.stands)
            if any(_is_earlier_reading(o, arrival, now) for o in self._entries(connection, standing).values()):
                again = super()._as_new(now) | {name: own[name] for name in ANNOUNCED_COLUMNS}
                # Its Kafka position and age are those of the message that announces it now.
                again |= {**arrival.kafka_position.columns(), "updated_at": now, "reopened_at": None}
                reopened |= self._update(connection, [key], again)
        return reopened


def origin_of(event: FileEvent, location: str) -> str:
    """Return a short key of the origin of a file: the same for all files of one folder or listing.

    Args:
        event: the event that announced the file.
        location: its canonical address.
    """
    listed = sorted(event.source_config.items()) or location.rpartition("/")[0]
    return digest_of(event.source_type, listed)


def waiting_origins(connection: sa.Connection, queue_name: str, now: datetime) -> Sequence[str]:
    """Return origins with due files, those first whose first file waits longest.

    The index is read for one origin after the other: the cost grows with the origins, not with the files.
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
    query = sa.select(waiting.c.origin).where(waiting.c.due_at <= now).order_by(waiting.c.due_at).limit(MAX_ORIGINS)
    return connection.execute(query).scalars().all()


def round_robin(groups: Iterable[Iterable[Item]]) -> Iterator[Item]:
    """Yield the first of each group, then the second of each, and so on."""
    missing = object()
    for item in chain.from_iterable(zip_longest(*groups, fillvalue=missing)):
        if item is not missing:
            yield item  # type: ignore[misc]  # what is missing was left out


def _is_earlier_reading(other: FileRecord, arrival: FileArrival, now: datetime) -> bool:
    """Test whether the other is of the same version and was announced before this arrival."""
    versions = {version_of_event(event) for event in (other.event, arrival.event)}
    return len(versions) == 1 and other.order < arrival.order(now)
