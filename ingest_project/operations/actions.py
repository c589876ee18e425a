"""All actions of operators: those of single capabilities, and those across capabilities."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime

from ingest_project.core.errors import IngestError
from ingest_project.core.yaml_models import nearest_or_known
from ingest_project.operations import CAPABILITIES, SystemResources
from ingest_project.operations.pausing import PAUSE, RESUME
from ingest_project.operations.redrive import REDRIVE
from ingest_project.operations.snapshot import consumed_topics
from ingest_project.operations.topics import cluster_of, saved_positions
from ingest_project.platform.actions import (
    Action,
    ActionRecord,
    ActionRefusedError,
    ActionRequest,
    Outcome,
    Parameter,
    Selection,
    perform,
)
from ingest_project.platform.capability import ConsumedTopic
from ingest_project.platform.dagster.records import DagsterRecordsUnavailableError
from ingest_project.platform.kafka.dead_letters import SkippedOffsets

__all__ = ["ACTIONS", "action_named", "actions_by_capability", "perform"]

MAX_SKIPPED = 100_000


def _number(request: ActionRequest, name: str, least: int, most: int, default: int | None = None) -> int:
    text = request.value(name)
    if text is None and default is not None:
        return default
    if not str(text).isdecimal() or not least <= int(str(text)) <= most:
        raise ActionRefusedError(f"{name.capitalize()} is a number from {least:,} to {most:,}.")
    return int(str(text))


def _offsets(request: ActionRequest) -> tuple[str, int, int, int]:
    """Return topic, partition, first offset and number of the messages."""
    largest = 2**63 - 1
    return (
        request.parameters["topic"],
        _number(request, "partition", 0, 2**31 - 1),
        _number(request, "offset", 0, largest),
        _number(request, "count", 1, MAX_SKIPPED, 1),
    )


def _select_messages(services: SystemResources, request: ActionRequest) -> Selection:
    topic, partition, offset, count = _offsets(request)
    consumed = _consumed_topic(services, topic)
    cluster = cluster_of(consumed, services)
    notes = _require_ahead(services, consumed, cluster.topic, partition, offset)
    _require_existing(cluster.reader.end_offsets(cluster.topic), topic, partition, offset + count)
    last = f" to {offset + count - 1}" if count > 1 else ""
    return Selection((f"{topic}/{partition}/{offset}{last}",), 1, notes=notes)


def _skip(services: SystemResources, request: ActionRequest, keys: Sequence[str]) -> Outcome:
    topic, partition, offset, count = _offsets(request)
    cluster = cluster_of(_consumed_topic(services, topic), services)
    skipped = SkippedOffsets(
        topic=cluster.topic,
        topic_id=cluster.reader.topic_id(cluster.topic),
        partition=partition,
        first_offset=offset,
        end_offset=offset + count,
        reason=request.reason,
        asked_by=request.who,
        asked_at=datetime.now(UTC),
    )
    added = services.skipped_offsets.add(skipped)
    return Outcome(tuple(keys), detail="" if added else "These are skipped already.")


def _skipped(services: SystemResources, record: ActionRecord, keys: Sequence[str]) -> Collection[str]:
    topic, partition, offset, count = _offsets(record.request)
    cluster = cluster_of(_consumed_topic(services, topic), services)
    ranges = services.skipped_offsets.of(cluster.topic, cluster.reader.topic_id(cluster.topic))
    last = offset + count - 1
    return keys if any(one.covers(partition, offset) and one.covers(partition, last) for one in ranges) else ()


def _consumed_topic(services: SystemResources, name: str) -> ConsumedTopic:
    topics = consumed_topics(services)
    found = next((topic for topic in topics if topic.topic == name), None)
    if found is None:
        known = ", ".join(topic.topic for topic in topics if topic.skippable)
        streams = ", ".join(topic.topic for topic in topics if not topic.skippable)
        raise IngestError(
            f"{name} is not read here. Messages of these topics can be skipped: {known}. Those of streams "
            f"({streams}) need not be: what cannot be stored becomes a dead letter or is kept apart."
        )
    if not found.skippable:
        raise IngestError(
            f"{name} is a stream, where a message that cannot be stored becomes a dead letter or is kept apart. "
            "There is nothing to skip."
        )
    return found


def _require_ahead(
    services: SystemResources, consumed: ConsumedTopic, topic: str, partition: int, offset: int
) -> tuple[str, ...]:
    """Raise IngestError if the saved cursor has passed the offset; return a note if the cursor is unknown."""
    from ingest_project.platform.dagster.run_records import DagsterRecords  # imports Dagster

    try:
        sensors = DagsterRecords(services.settings).sensors()
    except DagsterRecordsUnavailableError as error:
        return (f"{error} It is unknown if these messages have been consumed already.",)
    positions = saved_positions(consumed.sensor, topic, sensors)
    reached = positions.next_offsets.get(partition, 0) if positions else 0
    if offset < reached:
        raise IngestError(
            f"{topic}[{partition}] has been read to offset {reached}: {offset} has been consumed already."
        )
    return ()


def _require_existing(ends: Mapping[int, int], topic: str, partition: int, end: int) -> None:
    if partition not in ends:
        raise IngestError(f"{topic} has no partition {partition}.")
    if end > ends[partition]:
        raise IngestError(f"{topic}[{partition}] ends before offset {ends[partition]}: name messages that exist.")


SKIP = Action(
    name="skip-messages",
    title="Skip messages that stop a topic",
    noun="message range",
    meaning="Makes messages dead letters, bytes and headers unchanged, when the next tick reads them, and the topic "
    "goes on. Skipping them again changes nothing.",
    parameters=(
        Parameter("topic", "Topic that is read, e.g. file-event-queue.", required=True),
        Parameter("partition", "Of the topic.", required=True),
        Parameter("offset", "Of the first message to skip.", required=True),
        Parameter("count", "How many messages to skip; by default 1."),
    ),
    select=_select_messages,
    apply=_skip,
    acted_on=_skipped,
)
# Name of the group of actions across capabilities.
GENERAL: tuple[Action[SystemResources], ...] = (PAUSE, RESUME, SKIP, REDRIVE)


def actions_by_capability() -> Mapping[str, tuple[Action[SystemResources], ...]]:
    """Return the actions by the name of their capability, or `operations` for those across capabilities."""
    every = {capability.name: capability.actions for capability in CAPABILITIES} | {"operations": GENERAL}
    return {name: actions for name, actions in every.items() if actions}


ACTIONS: Mapping[str, Action[SystemResources]] = {
    action.name: action for actions in actions_by_capability().values() for action in actions
}


def action_named(name: str) -> Action[SystemResources]:
    """Return an action.

    Raises:
        ActionRefusedError: no action has this name; the message proposes the nearest one.
    """
    if name not in ACTIONS:
        raise ActionRefusedError(f"There is no action {name[:50]!r}{nearest_or_known(name, ACTIONS)}")
    return ACTIONS[name]
