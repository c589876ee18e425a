"""Report the outcome of each file, each attachment and both streams, from work queues and stores."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from rich.text import Text

from examples.demo.streams import DemoStreams, StreamsReport, show_streams
from ingest_project.attachments.attempts import Attempt, attempts_at
from ingest_project.attachments.queue import AttachmentRecord
from ingest_project.attachments.tables import AttachmentState
from ingest_project.contracts.files import file_key, version_of
from ingest_project.core.console import add_row, counts, say, shortened, show, table
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.warehouse import DeviceMetric
from ingest_project.operations import SystemResources
from ingest_project.sources import SourceFile
from ingest_project.sources.registry import SourceContext, open_source

if TYPE_CHECKING:
    from rich.table import Table

MAX_SHOWN_REASON = 70
STYLES = {FileState.INGESTED: "green", FileState.QUARANTINED: "yellow", FileState.DUPLICATE: "cyan"}


class DemoFile(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of one file.

    Args:
        state: None where the system does not know the file.
        earlier: an earlier demo had finished it already.
        rules: broken rule to number of rows.
    """

    file_name: str
    file_key: str
    state: FileState | None = None
    earlier: bool = False
    rows_accepted: int = 0
    rows_quarantined: int = 0
    rules: Mapping[str, int] = {}
    reason: str | None = None


class DemoAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of one attachment.

    Args:
        state: None where the system does not know the attachment.
        attempts: number of attempts, replays included.
        stored_path: its location.
        failure: of the last failed attempt, even if a later one succeeded.
    """

    file_name: str
    attachment_key: str
    state: AttachmentState | None = None
    attempts: int = 0
    replays: int = 0
    size_bytes: int | None = None
    stored_path: str | None = None
    failure: str | None = None


class TypeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The accepted readings of one sensor type, over all files of the demo."""

    sensor_type: str
    devices: int
    readings: int
    min: float
    mean: float
    max: float


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a demo.

    Args:
        files: one for each file that can be ingested.
        attachments: one for each attachment of the events that were sent.
        streams: user activity and CRM messages; None where they were left out.
        going_on: what was not finished in time.
    """

    files: tuple[DemoFile, ...]
    metrics: tuple[TypeSummary, ...] = ()
    attachments: tuple[DemoAttachment, ...] = ()
    streams: StreamsReport | None = None
    going_on: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """List what failed and what the system has no record of."""
        lost = [file.file_name for file in self.files if file.state not in STYLES]
        lost += [one.file_name for one in self.attachments if one.state is not AttachmentState.STORED]
        return lost + (self.streams.missing if self.streams else [])

    @property
    def as_hoped(self) -> bool:
        """Return whether there were files, and all of them are finished."""
        return bool(self.files) and not self.missing and not self.going_on


def expected_files(source_config: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """Return the files that a polling job for this source must find: partition key to name, by name.

    Raises:
        SourceNotFoundError: the folder does not exist.
    """
    source = open_source(source_config, SourceContext(settings))
    found = [file for file in source.list_files("*") if isinstance(file, SourceFile)]
    return {
        file_key(
            source.canonical_location(file.path),
            file.name,
            version_of(file.etag, file.size_bytes, file.modified_at),
            settings.file_ingest.default_profile,
        ): file.name
        for file in sorted(found, key=lambda file: file.name)
    }


def report_of(  # noqa: PLR0913, PLR0917 - three capabilities
    services: SystemResources,
    expected: Mapping[str, str],
    earlier: Collection[str],
    going_on: Sequence[str],
    attachments: Mapping[str, str],
    streams: DemoStreams | None,
) -> DemoReport:
    """Collect the outcome of files, attachments and streams.

    Args:
        services: work queues and warehouse.
        expected: files, partition key to name.
        earlier: keys of the files that were finished before the demo began.
        going_on: what was not finished in time.
        attachments: partition key to name.
        streams: the messages that were sent, or had been by an earlier demo.
    """
    records = {record.file_key: record for record in services.files.get_many(list(expected))}
    metrics = services.warehouse.metrics_of_files(list(expected))
    return DemoReport(
        files=tuple(_file(key, name, records.get(key), key in earlier) for key, name in expected.items()),
        metrics=summaries([metric for of_file in metrics.values() for metric in of_file]),
        attachments=tuple(_attachments(services, attachments)),
        streams=streams.report(services) if streams else None,
        going_on=tuple(going_on),
    )


def summaries(metrics: Sequence[DeviceMetric]) -> tuple[TypeSummary, ...]:
    """Merge metrics by file, device and type into one summary per type; the mean is that of all readings."""
    of_type: dict[str, list[DeviceMetric]] = {}
    for metric in metrics:
        of_type.setdefault(metric.sensor_type, []).append(metric)
    return tuple(_summary(sensor_type, of_type[sensor_type]) for sensor_type in sorted(of_type))


def files_table(report: DemoReport) -> Table:
    """Create the table of files: state, rows and reasons."""
    numbers = ("Accepted", "Refused")
    made = table("File", "State", *numbers, "Why", numbers=numbers)
    for file in report.files:
        state = _shown_state(file)
        why = counts(file.rules) if file.state is FileState.INGESTED else file.reason or counts(file.rules)
        add_row(
            made, file.file_name, state, file.rows_accepted, file.rows_quarantined, shortened(why, MAX_SHOWN_REASON)
        )
    return made


def metrics_table(report: DemoReport) -> Table:
    """Create the table of sensor types with their readings."""
    numbers = ("Devices", "Readings", "Min", "Mean", "Max")
    made = table("Sensor type", *numbers, numbers=numbers)
    for summary in report.metrics:
        add_row(
            made,
            summary.sensor_type,
            summary.devices,
            summary.readings,
            *(round(value, 3) for value in (summary.min, summary.mean, summary.max)),
        )
    return made


def attachments_table(report: DemoReport) -> Table:
    """Create the table of attachments: state, attempts, replays, bytes and location."""
    numbers = ("Attempts", "Replays", "Bytes")
    made = table("Attachment", "State", *numbers, "Where", numbers=numbers)
    for one in report.attachments:
        style = "green" if one.state is AttachmentState.STORED else "red"
        state = Text(str(one.state or "missing"), style)
        add_row(made, one.file_name, state, one.attempts, one.replays, one.size_bytes, one.stored_path)
    return made


def show_report(report: DemoReport) -> None:
    """Print the tables for a person."""
    show(files_table(report), "Files")
    if report.metrics:
        show(metrics_table(report), "Readings by sensor type")
    if report.attachments:
        _show_attachments(report)
    if report.streams:
        show_streams(report.streams)


def _show_attachments(report: DemoReport) -> None:
    show(attachments_table(report), "Attachments")
    for one in report.attachments:
        if one.failure:
            then = f"; replayed, it is {one.state}" if one.replays else ""
            say(f"{one.file_name} failed first: {one.failure.rstrip('.')}{then}.")


def _file(key: str, name: str, record: FileRecord | None, earlier: bool) -> DemoFile:  # noqa: FBT001 - private
    if record is None:
        return DemoFile(file_name=name, file_key=key, reason="The system does not know this file.")
    return DemoFile(
        file_name=name,
        file_key=key,
        state=record.state,
        earlier=earlier,
        rows_accepted=record.rows_accepted or 0,
        rows_quarantined=record.rows_quarantined or 0,
        rules=record.rule_counts or {},
        reason=record.reason,
    )


def _attachments(services: SystemResources, expected: Mapping[str, str]) -> Iterator[DemoAttachment]:
    records = {record.attachment_key: record for record in services.attachments.get_many(list(expected))}
    attempts = attempts_at(services.engine, list(expected))
    for key, name in expected.items():
        yield _attachment(key, name, records.get(key), attempts.get(key, ()))


def _attachment(key: str, name: str, record: AttachmentRecord | None, attempts: Sequence[Attempt]) -> DemoAttachment:
    if record is None:
        return DemoAttachment(file_name=name, attachment_key=key)
    return DemoAttachment(
        file_name=name,
        attachment_key=key,
        state=record.state,
        attempts=len(attempts),
        replays=record.replays,
        size_bytes=record.size_bytes,
        stored_path=record.stored_path,
        failure=next((one.error for one in reversed(attempts) if one.error), None),
    )


def _summary(sensor_type: str, metrics: Sequence[DeviceMetric]) -> TypeSummary:
    readings = sum(metric.count for metric in metrics)
    return TypeSummary(
        sensor_type=sensor_type,
        devices=len({metric.device_id for metric in metrics}),
        readings=readings,
        min=min(metric.min for metric in metrics),
        mean=sum((metric.mean or 0.0) * metric.count for metric in metrics) / readings,
        max=max(metric.max for metric in metrics),
    )


def _shown_state(file: DemoFile) -> Text:
    text = "missing" if file.state is None else f"already {file.state}" if file.earlier else str(file.state)
    return Text(text, STYLES.get(file.state, "red") if file.state else "red")
