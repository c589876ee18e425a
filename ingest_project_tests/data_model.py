"""Generate docs/data-model.md from the SQLAlchemy metadata and the schemas of the Delta tables.

python -m ingest_project_tests.data_model > docs/data-model.md
"""

import sys
from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

import ingest_project.operations  # noqa: F401 - registers its tables
from ingest_project.contracts.tables import COMMON, MEANINGS
from ingest_project.definitions import STORED
from ingest_project.platform.dagster.catalog import HourlyDeltaTable
from ingest_project.platform.database.sql import metadata

DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


class Described(NamedTuple):
    """A table as the page describes it.

    Args:
        what: one row of it.
        select: an example.
        columns: meaning by column, where COMMON has none or another; that of an asset's columns is the product's.
    """

    what: str
    select: str
    columns: Mapping[str, str]


TABLES = {
    "raw_sensor_data": Described(
        "One accepted reading. The table has no primary key: a file's rows are found by `file_key`, which only "
        "a small BRIN index serves.",
        "SELECT timestamp, value, unit FROM raw_sensor_data WHERE device_id = 'sensor-01' ORDER BY timestamp",
        MEANINGS["raw_sensor_data"],
    ),
    "aggregated_metrics": Described(
        "The readings of one file, device and sensor type, summarised. The view `device_metrics` merges them over all "
        "files.",
        "SELECT device_id, min, max, mean, count FROM aggregated_metrics WHERE sensor_type = 'temperature'",
        MEANINGS["aggregated_metrics"],
    ),
    "file_statistics": Described(
        "What [baselines](monitoring.md#baselines) compare: one ingested file of recent weeks.",
        "SELECT source, count(*), avg(rows_read) FROM file_statistics GROUP BY source",
        {
            "dataset": "Dataset of the file",
            "source": "Its folder, with `*` for dates and numbers",
            "sample_order": "Random, but fixed for each file: the first values of a source are a sample",
            "arrived_at": "When the file first entered the work queue",
            "rows_read": "Rows of the file, bad ones included",
            "rows_quarantined": "Those in quarantine",
            "null_counts": "Nulls in accepted rows by column; columns without any are left out",
            "lateness_seconds": "From the last change of the file to its announcement; null where that time is unknown",
        },
    ),
    "quarantined_rows": Described(
        "One row of an otherwise accepted file that broke the contract. A file that is refused whole has its "
        "reason in `files`.",
        "SELECT file_key, line_number, raw_text, reasons FROM quarantined_rows ORDER BY file_key, line_number",
        MEANINGS["quarantined_rows"],
    ),
    "files": Described(
        "One version of one file, read by one profile: an entry of the work queue.",
        "SELECT state, count(*) FROM files GROUP BY state",
        {
            "location": "Canonical address, e.g. `local:/data/in/a.csv`",
            "location_key": "Hash of the location, for the index",
            "file_path": "Path in the terms of its source",
            "file_name": "Name, from which a profile may take values",
            "file_type": "As the event says it",
            "size_bytes": "Size in bytes as listed; null when the sender does not know",
            "modified_at": "Time of change as listed; null when the sender does not know",
            "etag": "The source's identifier of this version",
            "event_id": "Of the file event",
            "job_id": "Of the polling job that found the file",
            "discovered_at": "When a polling job found it",
            "metadata": "Carried along from the polling job; `format` names a profile",
            "source_config": "Where to read it again; never a secret",
            "profile": "Reader profile",
            "dataset": "Dataset that the file belongs to",
            "begun": "Number of runs that began it; if no earlier run did, none of its rows can be stored anywhere",
            "drifted": "True: its columns differ from those that its dataset declares",
            "version_at": "Time of change, never later than the announcement: the later version of a location counts",
            "announced_at": "When the version was announced; decides where `version_at` is equal",
            "pinned": "True: the event said which version it means",
            "stands": "True: this version of its location counts",
            "replaced_by": "Key of the version that replaced it",
            "corrects": "Key of the file that an operator corrected by uploading this one",
            "retry_group": "Files of a lost run are tried again in halves; the name of the half",
            "origin": "Origin for fair scheduling: the location that a job listed, or the folder",
            "landed_bytes": "Bytes in the landing store",
            "duplicate_of": "Key of the file with the same content and meaning",
            "rows_read": "Readings of the file, bad ones included",
            "rows_accepted": "Readings of the file that were accepted; 0 unless it is `ingested`",
            "rows_quarantined": "Rows in `quarantined_rows`",
            "rule_counts": "Number of rows by broken rule",
            "delta_version": "Version of the Delta table with the recorded rows; null for other targets",
        },
    ),
    "contents": Described(
        "The file whose rows represent a content: the same bytes, read in the same way, are stored once.",
        "SELECT file_key FROM contents WHERE sha256 = '...'",
        {"meaning": "Hash of everything besides the bytes that determines the rows"},
    ),
    "ignored_notifications": Described(
        "Records of storage notifications that announce no file, counted once however often a tick reads them.",
        "SELECT reason, sum(number) FROM ignored_notifications GROUP BY reason",
        {
            "reason": "`deleted`, `test`, `subscription`, `folder`, `incomplete_write` or `other_event`",
            "number": "Records since the beginning",
            "next_offset": "Offset of the first message that is not counted",
        },
    ),
    "polling_jobs": Described(
        "One request to list a source: an entry of the work queue.",
        "SELECT job_id, state, files_found, files_published FROM polling_jobs ORDER BY created_at DESC LIMIT 20",
        {
            "job_key": "Key of the request, and of its partition in Dagster",
            "job_id": "As the sender chose it",
            "request": "The polling job as it came",
            "priority": "`low`, `normal` or `high`",
            "urgency": "0 high, 1 normal, 2 low: the order in which jobs are claimed",
            "files_found": "Files that matched",
            "files_published": "File events published",
            "files_skipped": "Files left out",
            "skipped": "Some of them, with the reason",
        },
    ),
    "attachment_events": Described(
        "One event with attachments, kept whole: an entry of the work queue.",
        "SELECT hour, count(*), sum(addresses) FROM attachment_events GROUP BY hour ORDER BY hour",
        {
            "event_key": "Key of the event",
            "hour": "Hour of arrival, as Dagster names hourly partitions",
            "body": "The event as it came",
            "addresses": "Addresses found in it",
            "duplicates": "Those addresses that already were attachments",
        },
    ),
    "attachments": Described(
        "One attachment: an entry of the work queue.",
        "SELECT attachment_url, attempt, reason FROM attachments WHERE state = 'failed'",
        {
            "task": "The download task as it came, JSON",
            "destination_path": "Where to store it, relative to the attachment store",
            "event_key": "The event it was found in; null for a task that came over Kafka",
            "queue_name": "`pending` for a first attempt, `retry` for later ones",
            "attempt": "The next or last download attempt, the first being 1; `attempts` counts the claims since the "
            "last one ended, more than one where runs were lost",
            "first_failed_at": "When the first attempt failed",
            "stored_path": "Address of the stored file",
        },
    ),
    "download_outcomes": Described(
        "The result of one attempt, the source of its messages, its partition in Dagster and its row in Delta.",
        "SELECT count(*) FROM download_outcomes WHERE committed_at IS NULL",
        {
            "attempt": "Number of the attempt, the first being 1",
            "result": "The DownloadResult",
            "published_at": "When Kafka and Dagster had the result",
            "commit_number": "Number of the Delta commit that holds the row, given before the commit",
            "committed_at": "When the commit was made",
            "publish_error": "Why one of its messages was not published",
            "commit_error": "Why it is in no commit",
        },
    ),
    "attachment_replays": Described(
        "One replay of a dead attachment.",
        "SELECT attachment_key, asked_by, asked_at FROM attachment_replays ORDER BY asked_at DESC",
        {
            "replays": "Number of the replay, the first being 1",
            "asked_by": "Who replayed it",
            "asked_at": "When",
            "earlier_error_class": "Class of the error before the replay",
            "earlier_reason": "Reason before the replay",
        },
    ),
    "eventhouse_positions": Described(
        "The position of the Eventhouse query of one domain.",
        "SELECT domain, position, events, refused FROM eventhouse_positions",
        {
            "position": "Where the next page begins; opaque",
            "events": "Events published so far",
            "refused": "Rows that could not become events",
            "reason": "Why the last poll failed; null if it succeeded",
        },
    ),
    "sink_positions": Described(
        "How far one partition of a stream is stored. CRM rows and their position are one transaction; of a Delta table"
        " it is where the table was seen last.",
        "SELECT topic, partition, next_offset, attempts, reason FROM sink_positions ORDER BY epoch, partition",
        {
            "stream": "Name of the stream",
            "epoch": "0 for the first topic of this name, one more each time it was created again",
            "first_offset": "Where reading began",
            "next_offset": "The first offset that is not stored",
            "outcome": "Number of messages by outcome",
            "seconds": "Histograms of latency and processing time: observations by metric and bucket, and sums in "
            "seconds",
            "updated_at": "When the position moved last",
            "attempts": "Runs in a row that did not move the position",
            "run_id": "The run that stores the partition now",
            "reason": "Why the last run failed",
            "next_attempt_at": "When the next run may begin",
        },
    ),
    "lost_offsets": Described(
        "Offsets whose messages are in no table and no longer in Kafka.",
        "SELECT topic, partition, first_offset, end_offset, reason FROM lost_offsets ORDER BY found_at DESC",
        {
            "stream": "Name of the stream",
            "messages": "At most so many messages",
            "reason": "How they were lost",
            "found_at": "When that was found",
        },
    ),
    "skipped_offsets": Described(
        "Offsets that an operator wants skipped; their messages become dead letters unread.",
        "SELECT topic, partition, first_offset, end_offset, reason FROM skipped_offsets",
        {"asked_by": "Who skipped them", "asked_at": "When", "reason": "Why, as the operator says"},
    ),
    "outbox": Described(
        "One message that is to be published once: the intent is stored before the message is sent.",
        "SELECT topic, state, count(*) FROM outbox GROUP BY topic, state",
        {
            "message_id": "Id of the message",
            "state": "`intended`: may be on the topic; `sent`: is on the topic",
            "since": "End offset of each Kafka partition before the message was sent",
            "owner": "The publisher that may send it now",
        },
    ),
    "opportunities": Described(
        "One opportunity, in its newest version.",
        "SELECT stage, count(*), sum(amount) FROM opportunities GROUP BY stage",
        MEANINGS["opportunities"],
    ),
    "projects": Described(
        "One project, in its newest version.",
        "SELECT status, count(*), sum(budget) FROM projects GROUP BY status",
        MEANINGS["projects"],
    ),
    "unidentified_messages": Described(
        "One message of `sales_events` that is neither an opportunity nor a project.",
        "SELECT message_id, reason FROM unidentified_messages WHERE identified_at IS NULL ORDER BY received_at",
        MEANINGS["unidentified_messages"],
    ),
    "user_activity_hourly": Described(
        "One event type in one hour.",
        "SELECT event_type, events, users FROM user_activity_hourly WHERE hour = '2026-01-15 10:00:00+00:00'",
        MEANINGS["user_activity_hourly"],
    ),
    "stream_hours": Described(
        "One hour of a stream that has rows, and whether its figures are up to date.",
        "SELECT stream, hour FROM stream_hours WHERE changes > computed_changes",
        {
            "stream": "Name of the stream",
            "changes": "How often the rows of the hour changed",
            "changed_at": "When they last changed",
            "computed_changes": "Number of changes that the figures include",
            "computed_at": "When the figures were computed",
            "reported_changes": "Number of changes that are reported to Dagster",
        },
    ),
    "stream_hour_spans": Described(
        "Offsets from the first to the last that had rows of an hour of a stream, by pieces of 1,000,000 offsets.",
        "SELECT hour, topic, partition, first_offset, end_offset FROM stream_hour_spans",
        {"stream": "Name of the stream", "piece": "Number of the piece"},
    ),
    "metric_totals": Described(
        "One counter since the beginning. Purged entries stay counted.",
        "SELECT name, labels, value FROM metric_totals ORDER BY name",
        {"name": "Name of the counter", "value": "Its value"},
    ),
    "metric_minutes": Described(
        "One counter in one minute, for as long as the dashboard looks back.",
        "SELECT minute, name, labels, value FROM metric_minutes ORDER BY minute DESC LIMIT 60",
        {
            "minute": "Whole minutes since 1970, UTC, of what was counted",
            "name": "Name of the counter",
            "value": "Increase in that minute",
        },
    ),
    "metric_progress": Described(
        "The position up to which one table has been counted.",
        "SELECT source, counted_until FROM metric_progress",
        {"source": "Name of what is counted", "counted_until": "Everything that ended before is counted"},
    ),
    "operator_actions": Described(
        "One action of an operator, written before it changes anything and completed afterwards.",
        "SELECT started_at, who, action, reason, done, failed FROM operator_actions ORDER BY started_at DESC",
        {
            "action_id": "Chosen before the action: a request that is sent twice is performed once",
            "action": "Name of the action, e.g. `replay-attachments`",
            "who": "User and host on the command line, the name of the viewer in the browser",
            "reason": "Why, as the operator entered it",
            "parameters": "Values of the action's parameters, by name",
            "item_limit": "Maximum number of items to act on",
            "started_at": "When it began",
            "finished_at": "When it ended, or when the items of an interrupted action were determined; null until then",
            "outcome": "`started`, `done`, `partly done`, `failed`, `not done` or `interrupted`",
            "selected": "Number of items to act on",
            "remaining": "Number of items that matched beyond the limit",
            "done": "Number of items that it acted on",
            "failed": "Number of items that it could not act on",
            "detail": "Further details of the result",
        },
    ),
    "operator_action_items": Described(
        "One item of an action of an operator.",
        "SELECT item_key, outcome, reason FROM operator_action_items WHERE action_id = '0f3a' ORDER BY item_key",
        {
            "action_id": "The action",
            "item_key": "Key of the item, e.g. of a file",
            "outcome": "`done`, `failed`, `in progress` or `not done`; null until the action has ended",
            "reason": "Why it was not done",
        },
    ),
    "paused_capabilities": Described(
        "One capability that an operator has paused.",
        "SELECT capability, who, reason, paused_at FROM paused_capabilities",
        {
            "capability": "Name of the capability, as `INGEST_DISABLED_CAPABILITIES` takes it",
            "who": "Who paused it",
            "reason": "Why, as the operator entered it",
            "paused_at": "When its sensors were stopped",
            "sensors": "Names of the sensors that were stopped, a JSON list: these are started again",
        },
    ),
    "incidents": Described(
        "One incident: a condition that holds or has held.",
        "SELECT name, severity, opened_at, summary FROM incidents WHERE state = 'open' ORDER BY opened_at",
        {
            "incident_id": "Random",
            "name": "What is wrong, e.g. `quarantine/orders`; one incident of a name is unresolved at a time",
            "condition": "The condition that holds, e.g. `quarantine`",
            "severity": "`info`, `warning` or `critical`",
            "owner": "Its owner; null without one",
            "summary": "One sentence for people",
            "link": "Where to look",
            "value": "What was measured last; null where the condition has no measure",
            "threshold": "Value from which it is an incident",
            "examples": "The first few affected objects, a JSON list of texts",
            "state": "`pending` until it has held for long enough, then `open`, then `resolved`",
            "since": "When it was found first",
            "opened_at": "When it became an incident that is reported",
            "seen_at": "When it was found last",
            "gone_at": "Since when the condition no longer holds",
            "resolved_at": "When it was resolved",
        },
    ),
    "alert_messages": Described(
        "One message about an incident by one channel.",
        "SELECT channel, kind, state, attempts, reason FROM alert_messages WHERE state = 'waiting'",
        {
            "incident_id": "The incident",
            "kind": "`firing`, `resolved`, or `reminder/` with a number",
            "channel": "Name of the channel, e.g. `webhook` or `urls.1.slack`",
            "state": "`waiting`, `sent`, `dropped` (held back by quiet hours until it was over), `failed` (for a day)",
            "attempts": "How often it was sent",
            "reason": "Why the last attempt failed",
            "created_at": "When it was queued",
            "due_at": "When it is sent next",
            "claimed_until": "End of the lease of the process that sends it",
            "sent_at": "When the channel accepted it",
        },
    ),
    "alert_samples": Described(
        "A value whose history alerts need, from the moment of a change on.",
        "SELECT at, value FROM alert_samples WHERE series = 'lag/file-event-queue' ORDER BY at",
        {
            "series": "`lag/`, `end/` or `dead/` with a topic, or `expected/` with a dataset and source",
            "at": "When it changed, to the minute",
            "value": "Value from then on",
        },
    ),
    "alert_leases": Described(
        "The process that assesses the conditions of alerts.",
        "SELECT holder, until FROM alert_leases",
        {
            "name": "`conditions`",
            "holder": "Host, process and a random number",
            "until": "When another process may take over",
        },
    ),
}

DELTA_TABLES = {
    "attachment_results": Described(
        "One attempt at one attachment. Partitioned by `domain` and `day`.",
        "SELECT status, count(*) FROM attachment_results GROUP BY status",
        MEANINGS["attachment_results"],
    ),
    "user_activity_events": Described(
        "One delivery of one event: one row for each Kafka offset that held an event. Partitioned by `event_day`. An "
        "event that was sent twice has two rows with one `event_id`.",
        "SELECT event_type, count(DISTINCT event_id) FROM user_activity_events WHERE event_day = '2026-01-15' "
        "GROUP BY event_type",
        MEANINGS["user_activity_events"],
    ),
}

INTRODUCTION = """# Data model

The relational tables are in the database of `DATABASE_URL`; types are PostgreSQL's. The shipped Delta tables are at
`INGEST_ATTACHMENT_RESULTS_URL` and `INGEST_USER_ACTIVITY_TABLE_URL`, by default in `delta/` of the state folder;
declared datasets and streams name their own.
All times are UTC.
`make data-model` writes this page from the code; a test holds it against the code.

Open PostgreSQL's shell with `ingest psql`. Words are explained in the [glossary](glossary.md).

## States

Files, polling jobs, attachment events and attachments are entries of one [work queue](glossary.md). A transient failure
or a lost run leads back to `pending`, with a time before which the entry is not claimed again (`next_attempt_at`); a
person may lead any finished entry back (release, replay, materialise). A stream has no entries: its position says what
is stored.

A file:

```mermaid
stateDiagram-v2
    [*] --> pending: event consumed
    pending --> requested: claimed for a batch
    requested --> ingesting: run begins
    requested --> pending: run lost
    ingesting --> pending: transient failure, run lost
    ingesting --> ingested: rows stored
    ingesting --> quarantined: refused whole
    ingesting --> duplicate: same content stored already
    ingesting --> superseded: changed before it was read
    ingesting --> failed: no attempt left
    ingested --> replaced: newer version accepted
    quarantined --> replaced
    duplicate --> replaced
    failed --> replaced
```

A polling job, and an attachment event:

```mermaid
stateDiagram-v2
    [*] --> pending: message consumed
    pending --> requested: claimed for a batch
    requested --> running: run begins
    requested --> pending: run lost
    running --> pending: transient failure, run lost
    running --> done
    running --> failed: no attempt left
```

An attachment. One in a retry tier is `pending` with a later `next_attempt_at`; a dead one is `failed`:

```mermaid
stateDiagram-v2
    [*] --> pending: address found, or task consumed
    pending --> requested: claimed for a batch
    requested --> downloading: run begins
    requested --> pending: run lost
    downloading --> pending: transient failure, next retry tier
    downloading --> stored
    downloading --> failed: permanent failure, or last retry tier
    failed --> pending: replay
```

## Tables
"""

VIEW = """
### `device_metrics`

A view: `aggregated_metrics` of all files merged exactly, one row for each device and sensor type, without reading
a reading again. Columns: `device_id`, `sensor_type`, `min`, `max`, `mean`, `count`, `stddev`.

```sql
SELECT device_id, sensor_type, mean, count FROM device_metrics
```
"""


def meaning_of(described: Described, column: str) -> str:
    """Return what one column holds; raises KeyError where nobody wrote it down."""
    return described.columns[column] if column in described.columns else COMMON[column]


def _section(name: str, described: Described, rows: list[tuple[str, str, str, str]]) -> str:
    lines = "".join(f"| `{column}` | {kind} | {null} | {meaning} |\n" for column, kind, null, meaning in rows)
    return (
        f"\n### `{name}`\n\n{described.what}\n\n| Column | Type | Null | Meaning |\n|---|---|---|---|\n{lines}"
        f"\n```sql\n{described.select}\n```\n"
    )


def _of_table(table: sa.Table) -> str:
    described = TABLES[table.name]
    rows = [
        (
            column.name,
            column.type.compile(DIALECT).lower() + (", key" if column.primary_key else ""),
            "yes" if column.nullable else "",
            meaning_of(described, column.name),
        )
        for column in table.columns
    ]
    return _section(table.name, described, rows)


def _of_delta(name: str, schema: pa.Schema) -> str:
    described = DELTA_TABLES[name]
    rows = [(field.name, str(field.type), "yes", meaning_of(described, field.name)) for field in schema]
    return _section(name, described, rows)


def delta_schemas() -> dict[str, pa.Schema]:
    """Return the columns of every Delta table, by its name."""
    return {stored.name: stored.schema() for stored in STORED.values() if isinstance(stored, HourlyDeltaTable)}


def page() -> str:
    """Return the whole page."""
    ordered = [*TABLES, *sorted(set(metadata.tables) - set(TABLES))]
    tables = [_of_table(metadata.tables[name]) for name in ordered if name in metadata.tables]
    delta = [_of_delta(name, schema) for name, schema in delta_schemas().items()]
    return INTRODUCTION + "".join(tables) + VIEW + "\n## Delta tables\n" + "".join(delta)


if __name__ == "__main__":
    sys.stdout.write(page())
