"""`discovered_files`: the files that a polling job found, each announced once on `file-event-queue`.

An announcement is published under its file key: the same version of a file found by another job, by the same job
delivered again, or after the run was killed half-way, is not announced a second time.
"""

import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice

import dagster as dg

from ingest_project.batches import PartitionReport, keep_connections_open, keys_of_run, report
from ingest_project.errors import IngestError, TransientError
from ingest_project.kafka.publishing import publish_once
from ingest_project.kafka.writing import Outgoing
from ingest_project.ledger.polling_jobs import JobRecord
from ingest_project.logs import bound, get_logger
from ingest_project.messages.decoding import encode
from ingest_project.messages.file_event import FileEvent, file_key, file_type_of, version_of
from ingest_project.polling.partitions import DISCOVERED_FILES, polling_jobs_partitions
from ingest_project.resources import Services
from ingest_project.sources.protocol import Skipped, Source, SourceFile
from ingest_project.sources.registry import open_source

logger = get_logger(__name__)

FILES_PER_PUBLICATION = 1_000
SHOWN_FILES = 50


@dataclass
class Discovery:
    """What a job found so far.

    Args:
        found: files that match the job and are of a type that is ingested.
        published: of those, the ones that had not been announced before.
        skipped: what was not taken, counted by reason.
        shown: the first few of both, for the UI: path and what became of it.
    """

    found: int = 0
    published: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    shown: list[dg.TableRecord] = field(default_factory=list)

    def show(self, path: str, outcome: str) -> None:
        """Remember one of the first few."""
        if len(self.shown) < SHOWN_FILES:
            self.shown.append(dg.TableRecord({"path": path, "outcome": outcome}))


@dg.multi_asset(
    name="polling",
    specs=[
        dg.AssetSpec(
            DISCOVERED_FILES,
            description="The files that a polling job found and announced.",
            group_name="polling",
            kinds={"kafka"},
            partitions_def=polling_jobs_partitions,
            skippable=True,
        )
    ],
    backfill_policy=dg.BackfillPolicy.multi_run(20),
)
def discovered_files(
    context: dg.AssetExecutionContext, services: dg.ResourceParam[Services]
) -> Iterator[dg.MaterializeResult[None]]:
    """List the source of every job of this run and announce what is new."""
    # A generator that yields nothing: an output would stand for every partition of the run.
    yield from ()
    keep_connections_open(context.instance)
    keys = keys_of_run(context, services.polling_jobs.batch)
    troubles = []
    for record in services.polling_jobs.start(keys, context.run.run_id, datetime.now(UTC)):
        with bound(run_id=context.run.run_id, partition_key=record.job_key, trace_id=record.job.trace_id):
            try:
                _poll(context, services, record)
            except IngestError as error:
                troubles.append(f"{record.job_key}: {error}")
                _set_aside(services, record, error)
    if troubles and len(troubles) == len(keys):
        raise dg.Failure(description=troubles[0], allow_retries=False)


def _poll(context: dg.AssetExecutionContext, services: Services, record: JobRecord) -> None:
    discovery = discover(services, record)
    now = datetime.now(UTC)
    services.polling_jobs.finish(record.job_key, discovery.found, discovery.published, dict(discovery.skipped), now)
    report(context, [PartitionReport(record.job_key, {DISCOVERED_FILES: _metadata(record, discovery)})])
    services.polling_jobs.mark_reported([record.job_key], now)
    logger.info("job_done", found=discovery.found, published=discovery.published, skipped=dict(discovery.skipped))


def _set_aside(services: Services, record: JobRecord, error: IngestError) -> None:
    logger.warning("job_not_done", reason=str(error), error_class=error.error_class)
    now, retries = datetime.now(UTC), services.settings.retries
    if isinstance(error, TransientError):
        services.polling_jobs.put_back(
            [record.job_key], str(error), error.error_class, retries.max_attempts, retries.delay, now
        )
    else:
        services.polling_jobs.fail(record.job_key, str(error), error.error_class, now)
    services.polling_jobs.mark_reported([record.job_key], now)


def discover(services: Services, record: JobRecord) -> Discovery:
    """List one job's source and announce each file version that has not been announced.

    Raises:
        TransientError: the source or Kafka is away; doing it again goes on where this ended.
        PermanentError: the source cannot be listed at all.
    """
    job = record.job
    source = open_source(job.source_config, services.settings.polling)
    discovery = Discovery()
    entries = source.list_files(job.file_pattern)
    while page := list(islice(entries, FILES_PER_PUBLICATION)):
        files = [entry for entry in page if isinstance(entry, SourceFile)]
        for entry in page:
            if isinstance(entry, Skipped):
                discovery.skipped[entry.reason] += 1
                if entry.visible:
                    discovery.show(entry.path, entry.reason)
        _announce(services, record, source, files, discovery)
    return discovery


def _announce(
    services: Services, record: JobRecord, source: Source, files: Sequence[SourceFile], discovery: Discovery
) -> None:
    events = {}
    topic = services.settings.topics.file_event_queue
    life = _life_of(topic, services)
    for file in files:
        version = version_of(file.etag, file.size_bytes, file.modified_at)
        key = file_key(source.canonical_location(file.path), file.name, version)
        # What was announced on a topic that is gone has to be announced again: nobody else remembers it.
        events[f"{life}/{key}"] = (key, file_event(record, file))
    new = set(services.outbox.unsent(list(events)))
    messages = [
        (message_id, Outgoing(encode(event), key=key.encode(), headers=_headers(event)))
        for message_id, (key, event) in events.items()
        if message_id in new
    ]
    discovery.published += publish_once(services.writer, services.reader, services.outbox, topic, messages)
    discovery.found += len(files)
    for message_id, (_, event) in events.items():
        discovery.show(event.file_path, "announced" if message_id in new else "announced before")


def _life_of(topic: str, services: Services) -> str:
    """What tells this life of the topic from the next; a topic that is not there yet is created first."""
    if not services.reader.generation(topic):
        services.writer.require_topic(topic)
    return services.reader.generation(topic)


def file_event(record: JobRecord, file: SourceFile) -> FileEvent:
    """The announcement of one file; what the job says about its format travels along."""
    job = record.job
    config = {name: value for name, value in job.source_config.items() if name != "source_type"}
    return FileEvent(
        event_id=str(uuid.uuid4()),
        job_id=job.job_id,
        source_type=job.source_type,
        file_path=file.path,
        file_name=file.name,
        file_type=file_type_of(file.name),
        size_bytes=file.size_bytes,
        modified_at=file.modified_at,
        etag=file.etag,
        discovered_at=datetime.now(UTC),
        trace_id=job.trace_id,
        metadata=job.metadata,
        source_config=config,
    )


def _headers(event: FileEvent) -> tuple[tuple[str, bytes], ...]:
    return (("trace-id", event.trace_id.encode()),) if event.trace_id else ()


def _metadata(record: JobRecord, discovery: Discovery) -> dict[str, object]:
    return {
        "files_found": discovery.found,
        "files_published": discovery.published,
        "files_skipped": sum(discovery.skipped.values()),
        "skipped": dict(discovery.skipped),
        "source": record.job.path,
        "pattern": record.job.file_pattern,
        "kafka_position": str(record.intake),
        **({"files": dg.MetadataValue.table(discovery.shown)} if discovery.shown else {}),
    }
