"""Generate docs/messages.md: every topic with its message, an example and the JSON Schema.

python -m ingest_project_tests.message_reference > docs/messages.md
"""

import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from ingest_project.contracts import MAX_MESSAGE_BYTES, decode
from ingest_project.contracts.attachments import (
    AttachmentEvent,
    CachedDownload,
    DeclaredAttachment,
    DownloadResult,
    DownloadTask,
    decode_attachment_event,
    decode_download_task,
)
from ingest_project.contracts.crm_event import COMMON_FIELDS, OPTIONAL_FIELDS, OWN_FIELDS, CrmKind, decode_crm_event
from ingest_project.contracts.enriched_event import EnrichedEvent, decode_enriched_event
from ingest_project.contracts.files import FileEvent, PollingJob, decode_file_event, decode_polling_job
from ingest_project.core.settings import TopicSettings

TOPICS = TopicSettings()


class Message(NamedTuple):
    """One message as the page describes it.

    Args:
        what: the meaning, in a sentence or two.
        decoder: that reads it, or would read it.
        schema: its JSON Schema; empty where it is that of the message before.
        example: one message.
    """

    name: str
    what: str
    decoder: Callable[[bytes], Any]
    schema: dict[str, Any]
    example: dict[str, Any]


class Topic(NamedTuple):
    """One topic as the page describes it.

    Args:
        setting: its field of TopicSettings.
        writers: who writes it.
        reader: the sensor that reads it, or who else does.
        asset: what comes of it.
        job: that runs it.
        dead_letters: its dead-letter topic, a field of TopicSettings.
    """

    setting: str
    messages: str
    writers: str
    reader: str
    asset: str
    job: str
    dead_letters: str

    @property
    def name(self) -> str:
        """Default name of the topic."""
        return str(getattr(TOPICS, self.setting))


ROUTES = (
    Topic(
        "polling_queue", "PollingJob", "anyone", "polling_queue_sensor", "discovered_files", "polling_batch",
        "polling_queue_dlq",
    ),
    Topic(
        "file_event_queue", "FileEvent", "`discovered_files`, anyone", "file_event_queue_sensor",
        "raw_files, validated_sensor_data, aggregated_metrics, quarantined_files", "file_batch", "file_event_queue_dlq",
    ),
    Topic(
        "file_events", "FileEvent, short form", "anyone", "file_events_sensor",
        "raw_files, validated_sensor_data, aggregated_metrics, quarantined_files", "file_batch", "file_event_queue_dlq",
    ),
    Topic(
        "events_raw", "AttachmentEvent", "`eventhouse_sensor`, anyone", "attachment_events_sensor",
        "attachment_events", "attachment_events_batch", "events_raw_dlq",
    ),
    Topic(
        "downloads_pending", "DownloadTask", "`attachment_events`, anyone", "downloads_pending_sensor",
        "onelake_attachments", "attachments_batch", "downloads_dlq",
    ),
    *(
        Topic(
            f"downloads_retry_{tier}", "DownloadTask", "`onelake_attachments`", "downloads_retry_sensor",
            "onelake_attachments", "attachments_batch", "downloads_dlq",
        )
        for tier in ("5m", "10m", "20m", "40m")
    ),
    Topic("downloads_cached", "CachedDownload", "`onelake_attachments`", "", "", "", ""),
    Topic("downloads_results", "DownloadResult", "`onelake_attachments`", "", "", "", ""),
    Topic(
        "user_activity_events", "EnrichedEvent", "anyone", "user_activity_events_sensor", "user_activity_events",
        "user_activity_batch", "user_activity_events_dlq",
    ),
    Topic(
        "sales_events", "OpportunityEvent or ProjectEvent", "anyone", "sales_events_sensor",
        "opportunities, projects, unidentified_messages", "crm_batch", "",
    ),
)  # fmt: skip

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_DATE_OR_NULL = {"type": ["string", "null"], "format": "date"}
_CRM_FIELDS: dict[str, dict[str, Any]] = {
    "event_id": {"type": "string", "minLength": 1, "maxLength": 200},
    "name": {"type": "string", "minLength": 1},
    "account_id": _TEXT_OR_NULL,
    "owner_id": _TEXT_OR_NULL,
    "meta_data": {
        "type": "object",
        "properties": {
            "source": _TEXT_OR_NULL,
            "last_modified": {"type": "string", "format": "date-time"},
            "tags": {"type": ["array", "null"], "items": _TEXT},
            "notes": _TEXT_OR_NULL,
        },
        "required": ["last_modified"],
    },
    "stage": _TEXT,
    "amount": _NUMBER_OR_NULL,
    "probability": _NUMBER_OR_NULL,
    "expected_close_date": _DATE_OR_NULL,
    "status": _TEXT,
    "start_date": _DATE_OR_NULL,
    "end_date": _DATE_OR_NULL,
    "budget": _NUMBER_OR_NULL,
}


def schema_of(message: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON Schema of a message, without the descriptions that the code's docstrings give it."""
    plain: dict[str, Any] = _plain(msgspec.json.schema(message))
    return plain


def _plain(schema: Any) -> Any:  # noqa: ANN401 - JSON of any shape
    if isinstance(schema, dict):
        return {name: _plain(value) for name, value in schema.items() if name != "description"}
    return [_plain(value) for value in schema] if isinstance(schema, list) else schema


def attachment_event_schema() -> dict[str, Any]:
    """Return the schema of an event; its entries are decoded one by one, so that its type alone does not show them."""
    schema = schema_of(AttachmentEvent)
    declared = schema_of(DeclaredAttachment)
    schema["$defs"].update(declared["$defs"])
    entry = {"anyOf": [_TEXT, {"$ref": "#/$defs/DeclaredAttachment"}]}
    schema["$defs"]["AttachmentEvent"]["properties"]["attachments"]["items"] = entry
    return schema


def enriched_event_schema() -> dict[str, Any]:
    """Return the schema of an event: `event_data` is an object of any shape, and further fields are kept."""
    fields = [
        ("event_data", dict[str, Any] | None, None)
        if field.name == "event_data"
        else (field.name, field.type)
        if field.required
        else (field.name, field.type, field.default)
        for field in msgspec.structs.fields(EnrichedEvent)
    ]
    schema = schema_of(msgspec.defstruct(EnrichedEvent.__name__, fields))
    for part in schema["$defs"].values():
        part.pop("additionalProperties", None)
    return schema


def crm_schema(kind: CrmKind) -> dict[str, Any]:
    """Return the schema of one kind of CRM message; its fields are those of the contract."""
    required = [*COMMON_FIELDS, *OWN_FIELDS[kind]]
    properties = {name: _CRM_FIELDS[name] for name in (*required, *OPTIONAL_FIELDS[kind])}
    return {"type": "object", "properties": properties, "required": required}


def decode_cached_download(raw: bytes) -> CachedDownload:
    """Decode a message that only others read."""
    return decode(raw, CachedDownload)


def decode_download_result(raw: bytes) -> DownloadResult:
    """Decode a message that only others read."""
    return decode(raw, DownloadResult)


_TASK = {
    "trace_id": "trace-4711",
    "domain": "claims",
    "attachment_url": "https://example.com/files/report.pdf",
    "destination_path": "claims/2026/01/15/trace-4711/report.pdf",
    "attempt": 1,
    "event_type": "claim.documents.received",
    "occurred_at": "2026-01-15T10:30:45Z",
    "expected_size": 5213,
    "checksum": None,
}
_SHA256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"

MESSAGES = (
    Message(
        "PollingJob",
        "Requests a listing of a source. It names stored credentials and never carries a secret.",
        decode_polling_job,
        schema_of(PollingJob),
        {
            "job_id": "job_123",
            "source_config": {"source_type": "dummy", "path": "./dummy_data"},
            "file_pattern": "*.csv",
            "priority": "normal",
            "metadata": {"format": "canonical"},
        },
    ),
    Message(
        "FileEvent",
        "Announces one version of one file. csv, xlsx and xls files are accepted, and the other types that the file's "
        "declared dataset accepts. Notifications of S3, MinIO and Azure Event Grid are accepted as well: "
        "[sources.md](sources.md#storage-notifications).",
        decode_file_event,
        schema_of(FileEvent),
        {
            "event_id": "0b5c5d9a",
            "job_id": "job_123",
            "source_type": "dummy",
            "file_path": "./dummy_data/sample_data_1.csv",
            "file_name": "sample_data_1.csv",
            "file_type": "csv",
            "size_bytes": 5213,
            "modified_at": "2026-01-15T10:30:45Z",
            "etag": None,
            "discovered_at": "2026-01-15T10:31:00Z",
            "trace_id": "trace-4711",
            "metadata": {},
        },
    ),
    Message(
        "FileEvent, short form",
        "The form of older producers. It announces a local file in the version present when the event is consumed.",
        decode_file_event,
        {},
        {"file_path": "./dummy_data/sample_data_1.csv", "file_name": "sample_data_1.csv"},
    ),
    Message(
        "AttachmentEvent",
        "An event of a business domain, with zero or more addresses of files. An entry is an address, or an object "
        "that describes the file; an entry that is neither fails alone.",
        decode_attachment_event,
        attachment_event_schema(),
        {
            "trace_id": "trace-4711",
            "event_type": "claim.documents.received",
            "domain": "claims",
            "occurred_at": "2026-01-15T10:30:45Z",
            "attachments": [
                "https://example.com/files/a.pdf",
                {"url": "https://example.com/files/b.jpg", "file_name": "b.jpg", "content_type": "image/jpeg"},
            ],
            "payload": {"claim": 17},
        },
    ),
    Message(
        "DownloadTask",
        "One file to download. On a retry topic the header `attempt` has the number of the next attempt; on "
        "`downloads.dlq` the headers of a dead letter say why.",
        decode_download_task,
        schema_of(DownloadTask),
        _TASK,
    ),
    Message(
        "CachedDownload",
        "A file that was downloaded and verified, and is about to be stored.",
        decode_cached_download,
        schema_of(CachedDownload),
        {
            **_TASK,
            "local_path": "/var/lib/ingest/cache/report.pdf",
            "size_bytes": 5213,
            "sha256": _SHA256,
            "content_type": "application/pdf",
        },
    ),
    Message(
        "DownloadResult",
        "How one attempt ended. The Delta table `attachment_results` has a row for each.",
        decode_download_result,
        schema_of(DownloadResult),
        {
            "trace_id": "trace-4711",
            "attachment_url": "https://example.com/files/report.pdf",
            "status": "success",
            "http_status": 200,
            "error_class": None,
            "error": None,
            "size_bytes": 5213,
            "sha256": _SHA256,
            "onelake_path": "/var/lib/ingest/attachments/claims/2026/01/15/trace-4711/report.pdf",
            "attempt": 1,
            "completed_at": "2026-01-15T10:31:02Z",
        },
    ),
    Message(
        "EnrichedEvent",
        "An action of a user. Types are strict; fields outside the contract are kept in `_rescued`.",
        decode_enriched_event,
        enriched_event_schema(),
        {
            "event_id": "5a9196f0-bd6b-481a-a8f6-e0bd0f977044",
            "request_id": "9556585e-a997-4351-b54a-09cde5cfedfa",
            "event_type": "page_view",
            "timestamp": "2026-01-15T10:30:45Z",
            "user_id": "user-123",
            "session_id": "session-456",
            "page_url": "https://example.com",
            "event_data": {"button_clicked": "submit"},
            "client_info": {"user_agent": "Mozilla/5.0", "screen_resolution": "1920x1080", "language": "en-US"},
            "service_info": {"service_name": "web", "service_version": "1.0.0", "environment": "development"},
            "processing_info": {
                "received_at": "2026-01-15T10:30:45.100Z",
                "processed_at": "2026-01-15T10:30:45.105Z",
                "processing_ms": 5,
            },
        },
    ),
    Message(
        "OpportunityEvent",
        "An opportunity changed in a CRM. Every field is required; most may be null. Numbers stay exact decimals.",
        decode_crm_event,
        crm_schema(CrmKind.OPPORTUNITY),
        {
            "event_id": "opp_123456789",
            "name": "Enterprise Software License Deal",
            "stage": "Negotiation",
            "amount": 50000.0,
            "probability": 75,
            "expected_close_date": "2026-06-30",
            "account_id": "acc_987654321",
            "owner_id": "usr_456789123",
            "meta_data": {
                "source": "Salesforce",
                "last_modified": "2026-03-24T20:40:35Z",
                "tags": ["enterprise"],
                "notes": "Procurement asks for a longer term.",
            },
        },
    ),
    Message(
        "ProjectEvent",
        "A project changed in a CRM. Its fields distinguish it from an opportunity.",
        decode_crm_event,
        crm_schema(CrmKind.PROJECT),
        {
            "event_id": "proj_123456789",
            "name": "Cloud Migration Project",
            "status": "In Progress",
            "start_date": "2026-03-01",
            "end_date": "2026-08-15",
            "budget": 150000.0,
            "account_id": "acc_987654321",
            "owner_id": "usr_456789123",
            "meta_data": {"source": "HubSpot", "last_modified": "2026-03-24T20:45:00Z", "tags": ["cloud"], "notes": ""},
        },
    ),
)

INTRODUCTION = f"""# Messages

Every message is JSON in UTF-8, at most {MAX_MESSAGE_BYTES // 1024**2} MiB, and no object in it has a name twice.
Topic names are the defaults; each one is a setting (`KAFKA_TOPIC_*`). With `EVENT_SOURCE=eventhub` the event hub is
read instead of `{TOPICS.events_raw}`.
`make messages` writes this page from the code; a test holds it against the code and decodes every example.

## Topics

| Topic | Message | Written by | Read by (sensor) | Job | Asset | Dead letters |
|---|---|---|---|---|---|---|
"""
DEAD_LETTERS = """
This project does not read `downloads.cached` and `downloads.results`: other programs do. A message of `sales_events`
that is neither an opportunity nor a project has no dead-letter topic: it is a row of `unidentified_messages`, whole,
with the reason.

## Dead letters

A dead letter is the original message, bytes and key unchanged. Its own headers are kept, and these are added:

| Header | Meaning |
|---|---|
| `dlq.original-topic`, `dlq.original-partition`, `dlq.original-offset`, `dlq.original-timestamp` | where it was |
| `dlq.error-class`, `dlq.reason` | why it is here |
| `dlq.attempt` | number of the attempt that failed |
| `dlq.trace-id` | its trace, where it has one |
| `dlq.first-failed-at`, `dlq.last-failed-at` | when it failed |

A redriven message has the headers `redrive.count`, how often, and `redrive.first-letter`, the position of its first
dead letter. Every published message carries the header `message-id`, the same in both copies if a message was ever
published twice. A message may carry its trace in the header `trace-id` or `traceparent`; messages that follow from it
carry both on, and `tracestate`: [monitoring.md](monitoring.md#traces-and-lineage). `ingest dlq messages` lists the
messages on the dead-letter topics, `ingest dlq redrive` publishes them to their topics again:
[operations.md](operations.md#dead-letters).
"""


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", ")) if names else ""


def _row(topic: Topic) -> str:
    dead = f"`{getattr(TOPICS, topic.dead_letters)}`" if topic.dead_letters else ""
    cells = (
        f"`{topic.name}`", topic.messages, topic.writers, _code(topic.reader) or "others", _code(topic.job),
        _code(topic.asset), dead,
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |\n"


def _section(message: Message) -> str:
    example = json.dumps(message.example, indent=2)
    schema = json.dumps(message.schema, indent=2)
    details = f"\n<details><summary>JSON Schema</summary>\n\n```json\n{schema}\n```\n\n</details>\n"
    return f"\n## {message.name}\n\n{message.what}\n\n```json\n{example}\n```\n" + (details if message.schema else "")


def page() -> str:
    """Return the whole page."""
    return INTRODUCTION + "".join(map(_row, ROUTES)) + DEAD_LETTERS + "".join(map(_section, MESSAGES))


if __name__ == "__main__":
    sys.stdout.write(page())
