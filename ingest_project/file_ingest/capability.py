"""File ingest as a capability: its queue, metrics, topics, retention and Dagster definitions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import msgspec
import sqlalchemy as sa

from ingest_project.contracts.storage_events import Ignored
from ingest_project.core.console import counts
from ingest_project.core.settings import Settings
from ingest_project.core.yaml_models import yaml_files
from ingest_project.file_ingest.actions import ACTIONS
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.tables import (
    FileState,
    asset_of,
    file_statistics,
    files,
    ignored_notifications,
    partitions_of,
)
from ingest_project.file_ingest.warehouse.baselines import correct_future_arrivals
from ingest_project.file_ingest.warehouse.delta_rows import delta_store
from ingest_project.platform.capability import (
    Amount,
    Capability,
    ConsumedTopic,
    Metric,
    PurgeStep,
    WorkState,
    counted_by_state,
    finished_states,
    latency,
    latency_columns,
    queue_history,
)
from ingest_project.platform.database import fetch, reading, writing
from ingest_project.platform.database.sql import in_parts
from ingest_project.platform.delta import TableFigures
from ingest_project.platform.http import without_query
from ingest_project.platform.items import (
    Content,
    ItemRef,
    ItemView,
    Moment,
    QueueView,
    Related,
    RowList,
    RowPage,
    Search,
    listed,
)
from ingest_project.platform.object_store.content_store import object_name
from ingest_project.readers.datasets import load_declarations
from ingest_project.readers.declaration import DatasetDeclaration
from ingest_project.readers.profiles import load_profiles

MAX_SHOWN = 20

Stamps = tuple[tuple[Path, int, int], ...]
_lock = threading.Lock()
_last: tuple[Stamps, tuple[str, ...]] = ((), ())


def declaration_problems(settings: Settings) -> tuple[str, ...]:
    """Return one sentence for each broken profile or declaration of a user, with its file and line.

    The files are read again only after one of them has changed: the monitor reads them every few seconds.
    """
    global _last  # noqa: PLW0603 - one result per process
    stamps = declaration_stamps(settings)
    with _lock:
        if stamps != _last[0]:
            _last = (stamps, _problems(settings))
        return _last[1]


def declaration_stamps(settings: Settings) -> Stamps:
    """Return every file of a user's profiles and declarations with its time of change and size; 0 for a missing one."""
    folder = settings.declarations
    files = [*yaml_files(settings.file_ingest.profiles), *sorted(folder.glob("**/*.y*ml"))]
    return tuple(map(_stamp, files))


def _stamp(path: Path) -> tuple[Path, int, int]:
    try:
        status = path.stat()
    except OSError:
        return path, 0, 0
    return path, status.st_mtime_ns, status.st_size


def _problems(settings: Settings) -> tuple[str, ...]:
    broken = [one.problem for one in load_profiles(settings.file_ingest.profiles).broken]
    broken += [one.problem for one in load_declarations(settings).broken]
    return tuple(broken[:MAX_SHOWN])


FILES = "ingest_files"
ROWS = "ingest_rows"
LANDED_BYTES = "ingest_landed_bytes"
QUARANTINED_FILES = "ingest_quarantined_files"
QUARANTINED_ROWS = "ingest_quarantined_rows"
DATASET_FILES = "ingest_dataset_files"
DATASET_ROWS = "ingest_dataset_rows"
DRIFTED_FILES = "ingest_drifted_files"
IGNORED_NOTIFICATIONS = "ingest_ignored_notifications"

MAX_CONTENTS = 10_000
SHOWN = 10


def _found_by(search: Search) -> Iterator[sa.ColumnElement[bool]]:
    columns, text = files.c, search.text
    yield from search.equals(columns.file_name)
    if search.by_prefix:
        return
    yield columns.event_id == text
    yield columns.sha256 == text.lower()
    # Servers put ETags in quotes, people rarely do.
    yield columns.etag.in_({text, text.strip('"'), f'"{text}"'})
    if search.name != text:
        is_there = sa.or_(
            columns.file_path == text, columns.location == text, columns.location.endswith(f":{text}", autoescape=True)
        )
        yield sa.and_(columns.file_name == search.name, is_there)


def _history(row: sa.RowMapping) -> Iterator[Moment]:
    subject = f"file {row['file_key']}"
    rows = f"{row['rows_accepted'] or 0} rows accepted, {row['rows_quarantined'] or 0} in quarantine"
    yield from queue_history(subject, row, row["reason"] or rows)
    if row["discovered_at"]:
        yield Moment(row["discovered_at"], subject, "discovered", without_query(row["location"]))


QUEUE = QueueView(
    "file",
    files,
    FileState,
    files.c.file_name,
    _found_by,
    _history,
    failed_states=("failed", "quarantined"),
    expiring_states=("ingested", "duplicate", "replaced", "superseded"),
    partitions="files",
    routes=files.c.dataset,
    set_of=partitions_of,
    asset_of=asset_of,
)


def file_amounts(row: sa.RowMapping) -> Iterator[Amount]:
    """Yield the amounts that a finished file adds to the counters."""
    state = row["state"]
    yield Amount(FILES, (state,), 1)
    yield Amount(DATASET_FILES, (row["dataset"], state), 1)
    if state == FileState.REPLACED:
        # A stored file was counted when it was stored.
        return
    yield Amount(LANDED_BYTES, (), row["landed_bytes"] or 0)
    if state == FileState.INGESTED:
        for outcome in ("accepted", "quarantined"):
            rows = row[f"rows_{outcome}"] or 0
            yield Amount(ROWS, (outcome,), rows)
            yield Amount(DATASET_ROWS, (row["dataset"], outcome), rows)
        if row["drifted"]:
            yield Amount(DRIFTED_FILES, (row["dataset"],), 1)
        for rule, rows in (row["rule_counts"] or {}).items():
            yield Amount(QUARANTINED_ROWS, (rule,), rows)
        yield from latency("files", row)
    elif state == FileState.QUARANTINED:
        yield Amount(QUARANTINED_FILES, (_refusal(row),), 1)


class FileIngest(Capability[FileIngestResources]):
    """File events to validated rows, metrics and quarantine."""

    name = "file_ingest"
    queues = (QUEUE,)
    metrics = (
        Metric(
            FILES,
            ("outcome",),
            "Files that ended: ingested, quarantined, duplicate, failed, superseded or replaced.",
            tuple((state,) for state in finished_states(FileState)),
            unit="files",
        ),
        Metric(
            ROWS,
            ("outcome",),
            "Rows of ingested files, accepted or quarantined.",
            (("accepted",), ("quarantined",)),
            unit="rows",
        ),
        Metric(DATASET_FILES, ("dataset", "outcome"), "Files that ended, by dataset.", unit="files"),
        Metric(
            DATASET_ROWS,
            ("dataset", "outcome"),
            "Rows of ingested files by dataset, accepted or quarantined.",
            unit="rows",
        ),
        Metric(
            DRIFTED_FILES, ("dataset",), "Ingested files whose columns differ from the declared ones.", unit="files"
        ),
        Metric(
            LANDED_BYTES,
            (),
            "Bytes of finished files in the landing store, each time they were ingested.",
            ((),),
            unit="bytes",
        ),
        Metric(QUARANTINED_FILES, ("reason",), "Files quarantined whole, by the rule they broke.", unit="files"),
        Metric(
            QUARANTINED_ROWS,
            ("rule",),
            "Rows of ingested files that were quarantined, by broken rule; one row may break several.",
            unit="rows",
        ),
        Metric(
            IGNORED_NOTIFICATIONS,
            ("reason",),
            "Records of storage notifications that announce no file: deleted, test, subscription, folder, "
            "incomplete_write or other_event.",
            tuple((reason.value,) for reason in Ignored),
            unit="records",
        ),
    )
    counted = counted_by_state(
        QUEUE,
        (
            *(files.c.state, files.c.landed_bytes, files.c.rows_accepted, files.c.rows_quarantined),
            *(files.c.rule_counts, files.c.reason, files.c.error_class, *latency_columns(files)),
            *(files.c.dataset, files.c.drifted),
        ),
        file_amounts,
    )

    actions = ACTIONS

    def read_work(self, services: FileIngestResources, *, detailed: bool) -> WorkState:
        """Read the queue, and find broken reader profiles and declarations, and files that wait for a person."""
        work = super().read_work(services, detailed=detailed)
        waiting = map(str, services.files.awaiting_a_person()[:MAX_SHOWN])
        return msgspec.structs.replace(work, problems=(*declaration_problems(services.settings), *waiting))

    def running_totals(self, connection: sa.Connection) -> Iterator[Amount]:
        """Yield the records of storage notifications that announce no file."""
        columns = ignored_notifications.c
        query = sa.select(columns.reason, sa.func.sum(columns.number)).group_by(columns.reason)
        yield from (
            Amount(IGNORED_NOTIFICATIONS, (reason,), int(number)) for reason, number in connection.execute(query)
        )

    def delta_tables(self, services: FileIngestResources) -> Mapping[str, Callable[[], TableFigures | None]]:
        """Return the Delta tables of declared datasets."""
        in_delta = [one for one in services.datasets.declared if one.target.delta]
        return {one.name: partial(_figures_of, one, services.settings) for one in in_delta}

    def topics(self, services: FileIngestResources) -> tuple[ConsumedTopic, ...]:
        """Return the topics of file events."""
        topics = services.settings.topics
        return (
            ConsumedTopic(topics.file_event_queue, "file_event_queue_sensor", dead_letters=topics.file_event_queue_dlq),
            ConsumedTopic(topics.file_events, "file_events_sensor", dead_letters=topics.file_event_queue_dlq),
        )

    def purge_steps(self, services: FileIngestResources, now: datetime) -> Sequence[PurgeStep]:
        """Find landed bytes of files that all succeeded long ago, and statistics that no baseline reads."""
        sha256s = _unneeded_contents(services.engine, now - timedelta(days=services.settings.retention.landing_days))

        def remove() -> None:
            for sha256 in sha256s:
                services.landing.remove(sha256)
            with writing(services.engine) as connection:
                for part in in_parts(sha256s):
                    connection.execute(sa.update(files).where(files.c.sha256.in_(part)).values(landed_bytes=None))

        return [
            PurgeStep("landed contents", len(sha256s), sha256s[:SHOWN], remove),
            _expired_statistics(services.engine, now - timedelta(weeks=services.settings.file_ingest.baseline_weeks)),
        ]

    def completed(
        self, services: FileIngestResources, connection: sa.Connection, view: ItemView, row: sa.RowMapping
    ) -> ItemView:
        """Describe a file: what it is, its rows, its bytes, and its other versions."""
        columns = files.c
        same_place = sa.and_(columns.file_name == row["file_name"], columns.location_key == row["location_key"])
        key = view.ref.key
        versions = QUEUE.related(connection, sa.and_(same_place, columns.file_key != key))
        copies = QUEUE.related(connection, columns.duplicate_of == key)
        related = {"other versions": versions, "duplicates": copies}
        return replace(
            view,
            facts={**_facts(services, row), **view.facts},
            rows={
                "rejected": RowList(row["rows_quarantined"], partial(_rejected, services, key)),
                "accepted": RowList(row["rows_accepted"], partial(_accepted, services, row)),
                "metrics": RowList(None, partial(_metrics, services, row)),
            },
            contents=_contents(services, row),
            related={**{name: one for name, one in related.items() if one.hits}, **view.related},
        )

    def related(self, services: FileIngestResources, view: ItemView) -> Mapping[str, Related]:
        """Return the files of a polling job, and of a message."""
        if view.ref.kind != "polling_job":
            return super().related(services, view)
        with reading(services.engine) as connection:
            found = QUEUE.related(connection, files.c.job_id == view.name)
        return {"files of the job": found} if found.hits else {}

    def correct_future_times(self, services: FileIngestResources, now: datetime, skew_seconds: float) -> int:
        """Set times in the future to now."""
        with writing(services.engine) as connection:
            arrived = correct_future_arrivals(connection, now, now + timedelta(seconds=skew_seconds))
        return super().correct_future_times(services, now, skew_seconds) + arrived


def _refusal(row: sa.RowMapping) -> str:
    """Return the rule that a file broke as a whole, or the class of the error if it broke none."""
    rules: Mapping[str, int] = row["rule_counts"] or {}
    # The reason begins with it. The counts also have the rules of single rows, such as those of too many bad ones.
    named = (row["reason"] or "").partition(":")[0]
    return named if named in rules else next(iter(rules), None) or row["error_class"] or "unknown"


def _unneeded_contents(engine: sa.Engine, cutoff: datetime) -> list[str]:
    """Return the SHA-256 of landed contents whose files have all succeeded before the cutoff."""
    expired = sa.func.count().filter(QUEUE.has_expired(cutoff))
    query = (
        sa.select(files.c.sha256)
        .where(files.c.sha256.is_not(None))
        .group_by(files.c.sha256)
        .having(expired == sa.func.count(), sa.func.max(files.c.landed_bytes).is_not(None))
        .order_by(files.c.sha256)
        .limit(MAX_CONTENTS)
    )
    return list(fetch(engine, query).scalars())


def _expired_statistics(engine: sa.Engine, cutoff: datetime) -> PurgeStep:
    expired = file_statistics.c.arrived_at < cutoff
    with reading(engine) as connection:
        number = connection.execute(sa.select(sa.func.count()).where(expired)).scalar_one()
        examples = connection.execute(sa.select(file_statistics.c.file_key).where(expired).limit(SHOWN)).scalars().all()

    def remove() -> None:
        with writing(engine) as connection:
            connection.execute(sa.delete(file_statistics).where(expired))

    return PurgeStep("statistics of files", number, examples, remove)


def _facts(services: FileIngestResources, row: sa.RowMapping) -> dict[str, object]:
    others = ("duplicate_of", "replaced_by", "corrects")
    other = {name: ItemRef("file", row[name]) if row[name] else None for name in others}
    rows, landed = {name: row[f"rows_{name}"] or 0 for name in ("read", "accepted", "quarantined")}, None
    if row["sha256"]:
        landed = f"{services.settings.landing_url.rstrip('/')}/{object_name(row['sha256'])}"
    return {
        "Dataset": row["dataset"],
        "Source type": row["source_type"],
        "Location": without_query(row["location"]),
        "Path": without_query(row["file_path"]),
        "Bytes": row["size_bytes"],
        "Modified": row["modified_at"],
        "ETag": row["etag"],
        "SHA-256": row["sha256"],
        "Reader profile": row["profile"],
        "Current version": row["stands"],
        "Duplicate of": other["duplicate_of"],
        "Replaced by": other["replaced_by"],
        "Corrects": other["corrects"],
        "Job id": row["job_id"],
        "Event id": row["event_id"],
        "Metadata": row["metadata"] or None,
        "Rows": None
        if row["rows_read"] is None
        else f"{rows['read']:,} read, {rows['accepted']:,} accepted, {rows['quarantined']:,} refused",
        "Broken rules": counts(row["rule_counts"] or {}) or None,
        "Landed": landed,
    }


def _figures_of(declaration: DatasetDeclaration, settings: Settings) -> TableFigures | None:
    return delta_store(declaration, settings).figures()


def _contents(services: FileIngestResources, row: sa.RowMapping) -> dict[str, Content]:
    found, name = {}, row["file_name"]
    if (sha256 := row["sha256"]) and row["landed_bytes"] is not None:
        size = row["landed_bytes"]
        found["landed"] = Content("the file as it was landed", name, size, lambda: services.landing.local_path(sha256))
    if row["state"] == FileState.QUARANTINED:
        key = row["file_key"]
        found["quarantined"] = Content(
            "the file in quarantine", name, None, lambda: services.quarantine.local_path(key)
        )
    return found


def _accepted(services: FileIngestResources, row: sa.RowMapping, first: int, limit: int) -> RowPage:
    from ingest_project.file_ingest.declared import warehouse_of  # loads pandera

    warehouse = warehouse_of(services, row["dataset"])
    return warehouse.page_of(row["file_key"], first, limit) if warehouse else RowPage((), (), more=False)


def _metrics(services: FileIngestResources, row: sa.RowMapping, first: int, limit: int) -> RowPage:
    from ingest_project.file_ingest.declared import warehouse_of  # loads pandera

    warehouse = warehouse_of(services, row["dataset"])
    found = warehouse.summaries_of(row["file_key"]) if warehouse else []
    columns = tuple(found[0]) if found else ()
    return listed(columns, tuple(tuple(one.values()) for one in found)).page(first, limit)


def _rejected(services: FileIngestResources, file_key: str, first: int, limit: int) -> RowPage:
    rows = services.warehouse.quarantined_rows_of(file_key, limit + 1, first)
    shown = tuple((row.line_number, row.raw_text, "; ".join(row.reasons)) for row in rows[:limit])
    return RowPage(("line", "row", "reasons"), shown, more=len(rows) > limit)
