"""Actions on files: release quarantined ones, reprocess any, and upload a corrected version.

Each uses the path that the file would take anyway: the work queue, or a backfill of its partition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ingest_project.contracts.files import file_type_of
from ingest_project.core.errors import IngestError
from ingest_project.core.items import grouped
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.tables import FileState, files, partitions_of
from ingest_project.platform.actions import (
    Action,
    ActionRecord,
    ActionRefusedError,
    ActionRequest,
    Outcome,
    Parameter,
    Selection,
)
from ingest_project.platform.database.sql import contains
from ingest_project.platform.work_queue.selection import (
    Filter,
    entry_filters,
    equals,
    is_pattern,
    matches,
    reopened_since,
    select_entries,
    taken,
)

COLUMNS = files.c
FINISHED = tuple(state.value for state in FileState if state.finished)
REPROCESSED = (FileState.INGESTED.value, FileState.QUARANTINED.value, FileState.FAILED.value)
FILTERS = (
    *entry_filters(COLUMNS.file_key, "file"),
    Filter(
        Parameter("source", "Kind of source, or text in the file's location."),
        lambda text: (COLUMNS.source_type == text) | contains(text, COLUMNS.location),
    ),
    Filter(
        Parameter("name", "Name of the file; * stands for any characters."),
        lambda pattern: matches(COLUMNS.file_name, pattern),
    ),
    equals("profile", COLUMNS.profile, "Reader profile that read it."),
    equals("dataset", COLUMNS.dataset, "Dataset that it belongs to."),
    equals("job_id", COLUMNS.job_id, "Polling job that found it."),
    equals("trace_id", COLUMNS.trace_id, "Trace of its event."),
)
TAKEN_BEFORE = "the same bytes were uploaded for it before"
NEW_PROFILE = Parameter("new_profile", "Reader profile to read them by from now on.")
STATE = Parameter("state", f"Only files in this state; by default {', '.join(REPROCESSED)}.", FINISHED)
PARAMETERS = tuple(one.parameter for one in FILTERS)


def _select_quarantined(services: FileIngestResources, request: ActionRequest) -> Selection:
    profile = request.value(NEW_PROFILE.name)
    if profile is not None:
        from ingest_project.readers.profiles import load_profiles  # the others need none

        known = load_profiles(services.settings.file_ingest.profiles)
        if profile not in known:
            raise ActionRefusedError(
                f"There is no usable reader profile {profile!r}. Known: {', '.join(sorted(known))}."
            )
    return select_entries(services.engine, COLUMNS.file_key, FILTERS, request, (FileState.QUARANTINED,))


def _release(services: FileIngestResources, request: ActionRequest, keys: Sequence[str]) -> Outcome:
    now, profile = datetime.now(UTC), request.value(NEW_PROFILE.name)
    if profile is None:
        done = services.files.reopen(keys, now)
        return Outcome(done, in_progress=taken(keys, done))
    finished = [record for record in services.files.get_many(keys) if record.state.finished]
    queued = {record.file_key: services.files.announce_again(record, profile, now) for record in finished}
    created = {key: new_key for key, new_key in queued.items() if new_key is not None}
    return Outcome(tuple(created), created=created, in_progress=taken(keys, created))


def _released(services: FileIngestResources, record: ActionRecord, keys: Sequence[str]) -> Collection[str]:
    profile = record.parameters.get(NEW_PROFILE.name)
    entries = {key: key for key in keys}
    if profile is not None:
        entries = {services.files.key_by(one, profile): one.file_key for one in services.files.get_many(keys)}
    since = reopened_since(services.engine, COLUMNS.file_key, list(entries), record.started_at)
    return [entries[key] for key in since]


RELEASE = Action(
    name="release-quarantined-files",
    title="Release quarantined files",
    noun="file",
    meaning="Ingests files again that were quarantined whole, after their source, the settings or the reader profile "
    "were fixed. A file named by its whole key is released in any finished state. One that is already on its way stays "
    "as it is.",
    parameters=(*PARAMETERS, NEW_PROFILE),
    select=_select_quarantined,
    apply=_release,
    acted_on=_released,
    kind="file",
)


def _select_to_reprocess(services: FileIngestResources, request: ActionRequest) -> Selection:
    from ingest_project.file_ingest.definitions import with_services  # imports Dagster
    from ingest_project.platform.dagster.control import open_instance, partitions_in_backfills  # the same

    state = request.value(STATE.name)
    states = REPROCESSED if state is None else (state,)
    selection = select_entries(services.engine, COLUMNS.file_key, FILTERS, request, states)
    with open_instance(services.settings) as instance:
        requested = partitions_in_backfills(instance, with_services(services))
    held = {key: "a backfill has requested it" for key in selection.keys if key in requested}
    refused = {
        record.file_key: f"its dataset {record.dataset} is not declared any more"
        for record in services.files.get_many([key for key in selection.keys if key not in held])
        if record.dataset not in services.datasets
    }
    return selection._replace(
        keys=tuple(key for key in selection.keys if key not in held.keys() | refused.keys()),
        refused={**selection.refused, **refused},
        in_progress={**selection.in_progress, **held},
    )


def _reprocess(services: FileIngestResources, request: ActionRequest, keys: Sequence[str]) -> Outcome:
    from ingest_project.file_ingest.catalog import assets_of  # imports Dagster
    from ingest_project.file_ingest.definitions import with_services  # the same
    from ingest_project.platform.dagster.control import launch_backfill, open_instance  # the same

    by_dataset = grouped((record.dataset, record.file_key) for record in services.files.get_many(keys))
    each = {dataset: assets_of(dataset) for dataset in by_dataset}
    partitions = {
        asset: by_dataset[dataset]
        for dataset, one in each.items()
        for asset in (one.raw_files, one.validated, one.quarantined_files, one.metrics)
    }
    with open_instance(services.settings) as instance:
        for dataset, own in by_dataset.items():
            # Retention may have purged the partition of a file that was ingested long ago.
            instance.add_dynamic_partitions(partitions_of(dataset), own)
        services.files.request_again(keys, datetime.now(UTC))
        launch_backfill(
            instance,
            request.action_id,
            with_services(services),
            partitions,
            title=f"Reprocess {len(keys)} files",
            description=f"{request.reason} ({request.who})",
            tags={"ingest/action": request.action_id},
        )
    address = f"{services.settings.dagster.webserver_url.rstrip('/')}/runs/b/{request.action_id}"
    return Outcome(tuple(keys), detail=f"Requested as one backfill: {address}")


def _requested(services: FileIngestResources, record: ActionRecord, keys: Sequence[str]) -> Collection[str]:
    from ingest_project.platform.dagster.control import open_instance  # imports Dagster

    with open_instance(services.settings) as instance:
        return keys if instance.get_backfill(record.action_id) else ()


REPROCESS = Action(
    name="reprocess-files",
    title="Reprocess files",
    noun="file",
    meaning="Lands, reads, checks and stores finished files again, as one backfill of their partitions in Dagster. "
    "Their stored rows count until that is done. A file that an unfinished backfill has requested is left to it.",
    parameters=(*PARAMETERS, STATE),
    select=_select_to_reprocess,
    apply=_reprocess,
    acted_on=_requested,
    kind="file",
)


def _select_corrected(services: FileIngestResources, request: ActionRequest) -> Selection:
    (key, *others) = request.lines("key")
    if others or is_pattern(key):
        raise ActionRefusedError("Name one file by its whole key: an upload corrects one file.")
    record = services.files.get(key)
    if record is None:
        raise ActionRefusedError(f"No file has the key {key!r}.")
    path = Path(request.parameters["file"])
    size = _suitable_size(path, record, services)
    if not record.state.finished:
        return Selection((), 1, in_progress={key: f"it is {record.state}"})
    with _refused_unless_readable(path), path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if services.files.is_corrected_by(record, sha256, size):
        return Selection((), 1, refused={key: TAKEN_BEFORE})
    return Selection((key,), 1)


def _suitable_size(path: Path, record: FileRecord, services: FileIngestResources) -> int:
    """Return the size of an upload, held to the rules of a file that a source offers: its type, dataset and size."""
    with _refused_unless_readable(path):
        size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise ActionRefusedError(f"{path.name} is no file.")
    if size == 0:
        raise ActionRefusedError(f"{path.name} is empty.")
    kind, given = record.event.kind, file_type_of(path.name)
    if given != kind:
        raise ActionRefusedError(
            f"{record.event.file_name} is corrected by a file of type {kind}, not {given or 'none'}."
        )
    if reason := services.datasets.refusal_of(record.event):
        raise ActionRefusedError(reason)
    limit = services.settings.file_ingest.max_file_bytes
    if size > limit:
        raise ActionRefusedError(f"The file has {size:,} bytes; at most {limit:,} are read (INGEST_MAX_FILE_BYTES).")
    return size


@contextmanager
def _refused_unless_readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ActionRefusedError(f"{path.name} cannot be read: {error.strerror}.") from error


def _upload(services: FileIngestResources, request: ActionRequest, keys: Sequence[str]) -> Outcome:
    (key,) = keys
    now = datetime.now(UTC)
    record = services.files.get(key)
    if record is None:
        return Outcome((), {key: "it is gone"})
    try:
        with Path(request.parameters["file"]).open("rb") as stream:
            landed = services.landing.land(stream, location=record.event.file_name)
    except (OSError, IngestError) as error:
        return Outcome((), {key: str(error)})
    new_key = services.files.correct(record, landed.sha256, landed.size_bytes, now)
    if new_key is None:
        return Outcome((), {key: TAKEN_BEFORE})
    detail = f"The corrected version is {new_key}; it replaces {key} as soon as it is accepted."
    return Outcome((key,), detail=detail, created={key: new_key})


UPLOAD = Action(
    name="upload-corrected-file",
    title="Upload a corrected file",
    noun="file",
    meaning="Uploads a corrected version of a file. It becomes a version of the same file, newer than the one that it "
    "corrects, is ingested like any other, and replaces that one once it is accepted. The same bytes are taken once.",
    parameters=(
        Parameter("key", "Whole key of the file that is corrected.", required=True),
        Parameter("file", "The corrected file, of the same type.", required=True, kind="file"),
    ),
    select=_select_corrected,
    apply=_upload,
    acted_on=lambda services, record, keys: reopened_since(services.engine, COLUMNS.corrects, keys, record.started_at),
    kind="file",
)

ACTIONS = (RELEASE, REPROCESS, UPLOAD)
