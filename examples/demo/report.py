"""Report the outcome of each file, each attachment and both streams, as the commands show them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.text import Text

from examples.demo.attachments import EVENTS, DemoAttachments
from examples.demo.commands import ingest
from examples.demo.printing import say, show_table
from examples.demo.streams import StreamsReport, show_streams

MAX_SHOWN_REASON = 70
MAX_FILES = "10000"
# Of one list of a file, such as its metrics.
MAX_ROWS = "1000"
ENDINGS = (".csv", ".xls", ".xlsx")
STYLES = {"ingested": "green", "quarantined": "yellow", "duplicate": "cyan"}


class DemoFile(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of one file.

    Args:
        file_key: empty where the system does not know the file; then it has no state.
        earlier: an earlier demo had finished it already.
        rules: broken rule to number of rows.
    """

    file_name: str
    file_key: str = ""
    state: str | None = None
    earlier: bool = False
    rows_accepted: int = 0
    rows_quarantined: int = 0
    rules: Mapping[str, int] = {}
    reason: str | None = None


class DemoAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """Outcome of one attachment.

    Args:
        attachment_key: empty where the system does not know the attachment; then it has no state.
        attempts: number of attempts, replays included.
        stored_path: its location.
        failure: of the last failed attempt, even if a later one succeeded.
    """

    file_name: str
    attachment_key: str = ""
    state: str | None = None
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
        lost += [one.file_name for one in self.attachments if one.state != "stored"]
        return lost + (self.streams.missing if self.streams else [])

    @property
    def as_hoped(self) -> bool:
        """Return whether there were files, and all of them are finished."""
        return bool(self.files) and not self.missing and not self.going_on


def expected_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder that are ingested; none where there is no such folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if path.suffix in ENDINGS and path.is_file())


def known_files(names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return what the system knows of the sample files, by name: of several versions, the newest."""
    found = ingest("files", "list", "--limit", MAX_FILES)["files"]
    samples = [one for one in found if one["event"]["source_type"] == "dummy" and one["event"]["file_name"] in names]
    return {one["event"]["file_name"]: one for one in sorted(samples, key=lambda one: str(one["created_at"]))}


def file_outcomes(names: Sequence[str], earlier: Collection[str]) -> tuple[DemoFile, ...]:
    """Return the outcome of each file.

    Args:
        names: of the files.
        earlier: keys of those that were finished before the demo began.
    """
    known = known_files(names)
    return tuple(_file(name, known.get(name), earlier) for name in names)


def attachment_outcomes(attachments: DemoAttachments) -> tuple[DemoAttachment, ...]:
    """Return the outcome of each attachment."""
    found = attachments.found()
    return tuple(_attachment(name, found.get(name)) for _, names in EVENTS.values() for name in names)


def metrics_of(files: Sequence[DemoFile]) -> tuple[TypeSummary, ...]:
    """Return the readings of these files by sensor type."""
    pages = [ingest("files", "show", file.file_key, "--rows", MAX_ROWS) for file in files if file.rows_accepted]
    return summaries([metric for page in pages for metric in page["rows"]["metrics"]["rows"]])


def summaries(metrics: Sequence[Mapping[str, Any]]) -> tuple[TypeSummary, ...]:
    """Merge metrics by file, device and type into one summary per type; the mean is that of all readings."""
    of_type: dict[str, list[Mapping[str, Any]]] = {}
    for metric in metrics:
        of_type.setdefault(metric["sensor_type"], []).append(metric)
    return tuple(_summary(sensor_type, of_type[sensor_type]) for sensor_type in sorted(of_type))


def show_report(report: DemoReport) -> None:
    """Print the tables for a person."""
    show_table(
        "Files",
        ["File", "State", "#Accepted", "#Refused", "Why"],
        [
            (one.file_name, _shown_state(one), one.rows_accepted, one.rows_quarantined, _why(one))
            for one in report.files
        ],
    )
    if report.metrics:
        show_table(
            "Readings by sensor type",
            ["Sensor type", "#Devices", "#Readings", "#Min", "#Mean", "#Max"],
            [
                (one.sensor_type, one.devices, one.readings, *(f"{x:.3f}" for x in (one.min, one.mean, one.max)))
                for one in report.metrics
            ],
        )
    if report.attachments:
        _show_attachments(report.attachments)
    if report.streams:
        show_streams(report.streams)


def _show_attachments(attachments: Sequence[DemoAttachment]) -> None:
    show_table(
        "Attachments",
        ["Attachment", "State", "#Attempts", "#Replays", "#Bytes", "Where"],
        [
            (
                one.file_name,
                Text(one.state or "missing", "green" if one.state == "stored" else "red"),
                *(one.attempts, one.replays, one.size_bytes, one.stored_path),
            )
            for one in attachments
        ],
    )
    for one in attachments:
        if one.failure:
            then = f"; replayed, it is {one.state}" if one.replays else ""
            say(f"{one.file_name} failed first: {one.failure.rstrip('.')}{then}.")


def _file(name: str, record: Mapping[str, Any] | None, earlier: Collection[str]) -> DemoFile:
    if record is None:
        return DemoFile(file_name=name, reason="The system does not know this file.")
    return DemoFile(
        file_name=name,
        file_key=record["file_key"],
        state=record["state"],
        earlier=record["file_key"] in earlier,
        rows_accepted=record["rows_accepted"] or 0,
        rows_quarantined=record["rows_quarantined"] or 0,
        rules=record["rule_counts"] or {},
        reason=record["reason"],
    )


def _attachment(name: str, record: Mapping[str, Any] | None) -> DemoAttachment:
    if record is None:
        return DemoAttachment(file_name=name)
    attempts = ingest("attachments", "show", record["attachment_key"])["rows"]["attempts"]["rows"]
    return DemoAttachment(
        file_name=name,
        attempts=len(attempts),
        failure=next((one["problems"] for one in reversed(attempts) if one["problems"]), None),
        **{field: record[field] for field in ("attachment_key", "state", "replays", "size_bytes", "stored_path")},
    )


def _summary(sensor_type: str, metrics: Sequence[Mapping[str, Any]]) -> TypeSummary:
    readings = sum(metric["count"] for metric in metrics)
    return TypeSummary(
        sensor_type=sensor_type,
        devices=len({metric["device_id"] for metric in metrics}),
        readings=readings,
        min=min(metric["min"] for metric in metrics),
        mean=sum((metric["mean"] or 0.0) * metric["count"] for metric in metrics) / readings,
        max=max(metric["max"] for metric in metrics),
    )


def _why(file: DemoFile) -> str:
    rules = ", ".join(f"{rule} {rows:,}" for rule, rows in file.rules.items())
    why = rules if file.state == "ingested" else file.reason or rules
    return why if len(why) <= MAX_SHOWN_REASON else f"{why[: MAX_SHOWN_REASON - 1]}…"


def _shown_state(file: DemoFile) -> Text:
    text = "missing" if file.state is None else f"already {file.state}" if file.earlier else file.state
    return Text(text, STYLES.get(file.state or "", "red"))
