"""The capability of attachments: what it provides to definitions, operations and commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import sqlalchemy as sa

from ingest_project.attachments import AttachmentResources
from ingest_project.attachments.attempts import attempts_at, replays_of
from ingest_project.attachments.queue import ATTACHMENT_QUEUE, EVENTHOUSE_SENSOR, RETRY_QUEUE, Pending, pending_at
from ingest_project.attachments.tables import (
    AttachmentState,
    attachment_events,
    attachment_replays,
    attachments,
    download_outcomes,
)
from ingest_project.contracts.attachments import KEY_HASH_LENGTH
from ingest_project.core.console import moment
from ingest_project.platform.actions import Action, ActionRefusedError, ActionRequest, Outcome, Parameter, Selection
from ingest_project.platform.capability import (
    Amount,
    Capability,
    Cluster,
    ConsumedTopic,
    CountedTable,
    Metric,
    PurgeStep,
    RetryTier,
    WorkState,
    counted_by_state,
    finished_states,
    latency,
    latency_columns,
    of_trace,
    queue_history,
    rows_where,
)
from ingest_project.platform.database import fetch, reading, writing
from ingest_project.platform.database.sql import rows_in
from ingest_project.platform.delta import TableFigures
from ingest_project.platform.http import redacted_url
from ingest_project.platform.items import (
    Content,
    ItemRef,
    ItemView,
    Moment,
    QueueView,
    RowList,
    RowPage,
    Search,
    records_page,
)
from ingest_project.platform.work_queue.queue import JobState
from ingest_project.platform.work_queue.selection import (
    Filter,
    entry_filters,
    equals,
    reopened_since,
    select_entries,
    taken,
)

COLUMNS = attachments.c
STATE = Parameter("state", "State that they are in; by default failed.", ("failed", "stored"))
RATE = Parameter("per_second", "How many become due a second; by default INGEST_REPLAYS_PER_SECOND.")


def _is_of_host(host: str) -> sa.ColumnElement[bool]:
    """Match addresses of a host, with any port."""
    url, rest = COLUMNS.attachment_url, ("/", ":", "?", "#")
    addresses = [f"{scheme}://{host}" for scheme in ("http", "https")]
    begins = [url.istartswith(address + end, autoescape=True) for address in addresses for end in rest]
    return sa.or_(*begins, sa.func.lower(url).in_([address.lower() for address in addresses]))


FILTERS = (
    *entry_filters(COLUMNS.attachment_key, "attachment"),
    equals("domain", COLUMNS.domain, "Business domain."),
    Filter(Parameter("host", "Host of the address."), _is_of_host),
    equals("trace_id", COLUMNS.trace_id, "Trace of its event."),
)


def conditions_of(request: ActionRequest) -> list[sa.ColumnElement[bool]]:
    """Return the condition of each filter that a request sets."""
    return [condition(value) for parameter, condition in FILTERS if (value := request.typed(parameter))]


def _select(services: AttachmentResources, request: ActionRequest) -> Selection:
    _rate(services, request)
    state = request.value(STATE.name) or AttachmentState.FAILED.value
    selection = select_entries(services.engine, COLUMNS.attachment_key, FILTERS, request, (state,))
    most = services.settings.attachments.max_replays
    query = sa.select(COLUMNS.attachment_key).where(COLUMNS.replays >= most)
    reason = f"it has been replayed {most} times (INGEST_MAX_REPLAYS)"
    with reading(services.engine) as connection:
        exhausted = {row[0]: reason for row in rows_in(connection, query, COLUMNS.attachment_key, selection.keys)}
    keys = tuple(key for key in selection.keys if key not in exhausted)
    return selection._replace(keys=keys, refused={**selection.refused, **exhausted})


def _replay(services: AttachmentResources, request: ActionRequest, keys: Sequence[str]) -> Outcome:
    settings, now, rate = services.settings.attachments, datetime.now(UTC), _rate(services, request)
    finished = ATTACHMENT_QUEUE.finished
    done = services.attachments.replay(keys, request.who, settings.max_replays, rate, now, finished)
    last = now + timedelta(seconds=max(0, len(done) - 1) / rate)
    detail = f"{rate:g} a second; the last one is due at {moment(last)}." if done else ""
    return Outcome(done, detail=detail, in_progress=taken(keys, done))


def _rate(services: AttachmentResources, request: ActionRequest) -> float:
    text = request.value(RATE.name)
    try:
        rate = float(text or services.settings.attachments.replays_per_second)
    except ValueError:
        rate = 0.0
    if not 0.001 <= rate <= 1e6:  # noqa: PLR2004 - the message names both
        raise ActionRefusedError("Per second is a number from 0.001 to 1,000,000.")
    return rate


REPLAY = Action(
    name="replay-attachments",
    title="Replay attachments",
    noun="attachment",
    meaning="Downloads attachments again that failed, or that are stored, at a bounded rate and a bounded number of "
    "times each. One that a run works on is left to it.",
    parameters=(*(one.parameter for one in FILTERS), STATE, RATE),
    select=_select,
    apply=_replay,
    acted_on=lambda services, record, keys: reopened_since(
        services.engine, COLUMNS.attachment_key, keys, record.started_at
    ),
    kind="attachment",
)


ATTACHMENT_EVENTS = "ingest_attachment_events"
ATTACHMENTS = "ingest_attachments"
DOWNLOADS = "ingest_downloads"
DOWNLOAD_FAILURES = "ingest_download_failures"
UPLOADED_BYTES = "ingest_uploaded_bytes"


def _attachments_found_by(search: Search) -> Iterator[sa.ColumnElement[bool]]:
    columns, text = attachments.c, search.text
    # It begins with the name of the file.
    yield from search.equals(columns.attachment_key)
    if search.by_prefix:
        return
    yield columns.sha256 == text.lower()
    yield columns.attachment_url == text
    yield columns.stored_path == text


def _event_history(row: sa.RowMapping) -> Iterator[Moment]:
    found = f"{row['addresses'] or 0} addresses, {row['duplicates'] or 0} of them known"
    return queue_history(f"event {row['domain']} {row['event_type']}".strip(), row, row["reason"] or found)


def _attachment_history(row: sa.RowMapping) -> Iterator[Moment]:
    return queue_history(_subject(row), row, row["reason"] or row["stored_path"] or "")


def _subject(row: sa.RowMapping) -> str:
    return f"attachment {row['attachment_key']}"


EVENT_VIEW = QueueView(
    "attachment_event", attachment_events, JobState, attachment_events.c.event_type, lambda _: (), _event_history
)
ATTACHMENT_VIEW = QueueView(
    "attachment",
    attachments,
    AttachmentState,
    attachments.c.attachment_key,
    _attachments_found_by,
    _attachment_history,
    KEY_HASH_LENGTH,
    expiring_states=("stored",),
    partitions="attachments",
    asset="onelake_attachments",
)


def event_amounts(row: sa.RowMapping) -> Iterator[Amount]:
    """Yield the amounts that a finished attachment event adds to the counters."""
    yield Amount(ATTACHMENT_EVENTS, (row["state"],), 1)


def attachment_amounts(row: sa.RowMapping) -> Iterator[Amount]:
    """Yield the amounts that a finished attachment adds to the counters."""
    yield Amount(ATTACHMENTS, (row["state"],), 1)
    if row["state"] == AttachmentState.STORED:
        yield from latency("attachments", row)


def download_amounts(row: sa.RowMapping) -> Iterator[Amount]:
    """Yield the amounts that one download attempt adds to the counters."""
    result: Mapping[str, Any] = row["result"]
    status = str(result.get("status"))
    yield Amount(DOWNLOADS, (status, str(row["attempt"])), 1)
    if status == "success":
        yield Amount(UPLOADED_BYTES, (row["domain"],), result.get("size_bytes") or 0)
    else:
        yield Amount(DOWNLOAD_FAILURES, (result.get("error_class") or "unknown",), 1)


class Attachments(Capability[AttachmentResources]):
    """Events with addresses to downloaded files and their results."""

    name = "attachments"
    queues = (EVENT_VIEW, ATTACHMENT_VIEW)
    metrics = (
        Metric(
            ATTACHMENT_EVENTS,
            ("outcome",),
            "Events that ended: their addresses were extracted, or they failed.",
            tuple((state,) for state in finished_states(EVENT_VIEW.states)),
            unit="events",
        ),
        Metric(
            ATTACHMENTS,
            ("outcome",),
            "Attachments that ended: stored or failed.",
            tuple((state,) for state in finished_states(AttachmentState)),
            unit="attachments",
        ),
        Metric(
            DOWNLOADS,
            ("status", "attempt"),
            "Download attempts by end (success, failed_transient, failed_permanent) and number of the attempt.",
            unit="attempts",
        ),
        Metric(DOWNLOAD_FAILURES, ("reason",), "Download attempts that failed, by class of error.", unit="attempts"),
        Metric(UPLOADED_BYTES, ("domain",), "Bytes of attachments stored.", unit="bytes"),
    )
    counted = (
        *counted_by_state(EVENT_VIEW, (attachment_events.c.state,), event_amounts),
        *counted_by_state(ATTACHMENT_VIEW, (attachments.c.state, *latency_columns(attachments)), attachment_amounts),
        CountedTable(
            download_outcomes.name,
            download_outcomes,
            None,
            download_outcomes.c.completed_at,
            (download_outcomes.c.attempt, download_outcomes.c.domain, download_outcomes.c.result),
            download_amounts,
        ),
    )

    actions = (REPLAY,)

    def sensors_without_topic(self, services: AttachmentResources) -> Mapping[str, Callable[[datetime], bool]]:
        """Return the sensor of Eventhouse, which only its own ticks can query for new events."""
        is_source = services.settings.attachments.event_source == "eventhouse"
        return {EVENTHOUSE_SENSOR: lambda _: is_source}

    def topics(self, services: AttachmentResources) -> tuple[ConsumedTopic, ...]:
        """Return the topics of events and of download tasks."""
        settings = services.settings
        events = ConsumedTopic(
            settings.topics.events_raw, "attachment_events_sensor", dead_letters=settings.topics.events_raw_dlq
        )
        if settings.attachments.event_source == "eventhub":
            hub = settings.eventhubs.topic or "Event Hubs"
            events = events._replace(topic=hub, cluster=lambda: _event_hub(services))
        dead = settings.topics.downloads_dlq
        return (
            events,
            ConsumedTopic(settings.topics.downloads_pending, "downloads_pending_sensor", dead_letters=dead),
            *(
                ConsumedTopic(topic, "downloads_retry_sensor", dead_letters=dead)
                for topic in settings.topics.downloads_retry
            ),
        )

    def read_work(self, services: AttachmentResources, *, detailed: bool) -> WorkState:
        """Count events and attachments; an attachment that waits for a later attempt is no work until it is due."""
        now = datetime.now(UTC)
        events, downloads = super().read_work(services, detailed=detailed).queues
        pending = pending_at(services.engine, now)
        due = sum(one.due for one in pending)
        later = [one for one in pending if one.waiting > one.due]
        # The two queries ran at different times: use the pending entries of the second one.
        counts = {**downloads.counts, "pending": sum(one.waiting for one in pending)}
        return WorkState(
            queues=(events, msgspec.structs.replace(downloads, counts=counts, due=due)),
            retry_tiers=retry_tiers(pending, services.settings.topics.downloads_retry),
            later=counts["pending"] - due,
            next_due_at=min((one.next_due_at for one in later), default=None),
            facts={"Not yet in Delta": services.outcomes.uncommitted()} if detailed else {},
        )

    def delta_tables(self, services: AttachmentResources) -> Mapping[str, Callable[[], TableFigures | None]]:
        """Return the table of download results."""

        def results() -> TableFigures | None:
            return services.attachment_results.figures()

        return {"attachment_results": results}

    def purge_steps(self, services: AttachmentResources, now: datetime) -> Sequence[PurgeStep]:
        """Find the bodies of events that ended before the retention period; the counts are kept."""
        columns, cutoff = attachment_events.c, now - timedelta(days=services.settings.retention.event_days)
        old = sa.and_(columns.state == JobState.DONE, columns.finished_at < cutoff, columns.body != "")
        number = int(fetch(services.engine, sa.select(sa.func.count()).where(old)).scalar_one())

        def remove() -> None:
            with writing(services.engine) as connection:
                connection.execute(sa.update(attachment_events).where(old).values(body=""))

        return [PurgeStep("bodies of attachment events", number, [], remove)]

    def trace(self, services: AttachmentResources, trace_id: str) -> Sequence[Moment]:
        """Return the history of the events and attachments of a trace, with attempts and replays."""
        moments = [*super().trace(services, trace_id)]
        with reading(services.engine) as connection:
            found = rows_where(connection, attachments, of_trace(attachments, trace_id))
            return [*moments, *_ends_of_attempts(connection, [row["attachment_key"] for row in found])]

    def completed(
        self, services: AttachmentResources, connection: sa.Connection, view: ItemView, row: sa.RowMapping
    ) -> ItemView:
        """Describe an event, or an attachment with its attempts and its stored file."""
        if view.ref.kind == EVENT_VIEW.item_kind:
            return _event_view(connection, view, row)
        return _attachment_view(services, connection, view, row)


def retry_tiers(pending: Sequence[Pending], topics: Sequence[str]) -> tuple[RetryTier, ...]:
    """Return the retry topics with what waits in each.

    Args:
        pending: attachments by queue and attempt.
        topics: the one after the first failed attempt first.
    """
    last = len(topics) - 1
    waiting: list[list[Pending]] = [[] for _ in topics]
    for one in pending:
        if one.queue_name == RETRY_QUEUE:
            # Attempt 2 follows the first retry topic; with more attempts than topics, tasks wait in the last one.
            waiting[min(max(one.attempt - 2, 0), last)].append(one)
    return tuple(
        RetryTier(
            topic,
            attempt,
            waiting=sum(one.waiting for one in tier),
            due=sum(one.due for one in tier),
            next_due_at=min((one.next_due_at for one in tier), default=None),
        )
        for attempt, (topic, tier) in enumerate(zip(topics, waiting, strict=True), start=2)
    )


def _event_hub(services: AttachmentResources) -> Cluster:
    return Cluster(services.event_hub.topic, services.event_hub_reader, services.event_hub.settings)


def _attempt(row: sa.RowMapping) -> Moment:
    result: Mapping[str, Any] = row["result"]
    detail = result.get("error") or f"{result.get('size_bytes')} bytes"
    return Moment(row["completed_at"], _subject(row), f"attempt {row['attempt']}: {result['status']}", detail)


def _ends_of_attempts(connection: sa.Connection, keys: Sequence[str]) -> Iterator[Moment]:
    """Yield the attempts at some attachments and their replays."""
    yield from map(_attempt, rows_where(connection, download_outcomes, download_outcomes.c.attachment_key.in_(keys)))
    for row in rows_where(connection, attachment_replays, attachment_replays.c.attachment_key.in_(keys)):
        yield Moment(row["asked_at"], _subject(row), "replayed", f"by {row['asked_by']}")


def _event_view(connection: sa.Connection, view: ItemView, row: sa.RowMapping) -> ItemView:
    found = ATTACHMENT_VIEW.related(connection, attachments.c.event_key == view.ref.key)
    return replace(
        view,
        name=view.name or view.ref.key,
        facts={
            "Domain": row["domain"],
            "Event type": row["event_type"],
            "Addresses": row["addresses"],
            "Known before": row["duplicates"],
            **view.facts,
        },
        asset="attachment_events",
        partition=row["hour"],
        related={**({"attachments": found} if found.hits else {}), **view.related},
    )


def _attachment_view(
    services: AttachmentResources, connection: sa.Connection, view: ItemView, row: sa.RowMapping
) -> ItemView:
    attempts = row["attempt"] if row["replays"] == 0 else f"{row['attempt']}, replayed {row['replays']} times"
    contents = {}
    if row["state"] == AttachmentState.STORED:
        domain, path = row["domain"], row["destination_path"]
        contents["stored"] = Content(
            "the attachment as it is stored",
            path.rpartition("/")[2],
            row["size_bytes"],
            lambda: services.attachment_store(domain).local_path(path),
        )
    return replace(
        view,
        facts={
            "Domain": row["domain"],
            # A signed address is a secret as long as it is valid.
            "Address": redacted_url(row["attachment_url"]),
            "Event": ItemRef("event", row["event_key"]) if row["event_key"] else None,
            "Attempt": attempts,
            "First failure": row["first_failed_at"],
            "HTTP status": row["http_status"],
            "Bytes": row["size_bytes"],
            "SHA-256": row["sha256"],
            "Content type": row["content_type"],
            "Stored at": row["stored_path"],
            "Destination": row["destination_path"],
            **view.facts,
        },
        moments=[*view.moments, *_ends_of_attempts(connection, [view.ref.key])],
        rows={
            "attempts": RowList(None, partial(_attempts, services.engine, view.ref.key)),
            "replays": RowList(None, partial(_replays, services.engine, view.ref.key)),
        },
        contents=contents,
    )


def _attempts(engine: sa.Engine, key: str, first: int, limit: int) -> RowPage:
    columns = ("replays", "attempt", "status", "completed_at", "http_status", "size_bytes", "next_attempt_at")
    return records_page((*columns, "problems"), attempts_at(engine, [key]).get(key, ()), first, limit)


def _replays(engine: sa.Engine, key: str, first: int, limit: int) -> RowPage:
    columns = ("replays", "asked_by", "asked_at", "earlier_reason")
    return records_page(columns, replays_of(engine, key), first, limit)
