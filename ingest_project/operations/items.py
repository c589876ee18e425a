"""Find any item by any of its ids, and merge the capabilities' facts about it with its message in Kafka."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec
import sqlalchemy as sa

from ingest_project.core.console import counted
from ingest_project.core.errors import DatabaseUnavailableError, IngestError
from ingest_project.operations import CAPABILITIES, SystemResources
from ingest_project.operations.snapshot import consumed_topics
from ingest_project.operations.topics import topics_of_dead_letters
from ingest_project.platform.actions import actions_on_item
from ingest_project.platform.capability import Capability
from ingest_project.platform.database import fetch
from ingest_project.platform.items import (
    MAX_HITS,
    Content,
    Hit,
    ItemRef,
    ItemView,
    Moment,
    Position,
    Related,
    RowList,
    Search,
    listed,
)
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.dead_letters import (
    DeadLetter,
    as_text,
    letter_of,
    letters_naming,
    message_id_prefix,
    newest_letters,
    shown_text,
)
from ingest_project.platform.kafka.publisher import outbox
from ingest_project.platform.kafka.reader import RangeReader
from ingest_project.platform.tracing import context_prefix, trace_ids_of

OF_QUEUES = [one for one in CAPABILITIES if one.queues]
OF_STREAMS = [one for one in CAPABILITIES if not one.queues]
# Many letters contain a shorter text by chance.
SHORTEST_ID = 4
# Time in seconds for all searches of one text in dead letters.
LETTER_SECONDS = 1.0
SEARCHED = "names, keys and their hashes, ids, traces, SHA-256, ETags, URLs, paths and Kafka positions"
MAX_HEADERS = 50
MAX_HEADER_LENGTH = 500
MAX_SHOWN_TEXT = 2_000
# Number of the newest dead letters per partition among which to look for that of a message.
MAX_LETTERS = 1_000
# Maximum number of items whose history `trace` shows if a text identifies several.
MAX_TRACED = 10
_SECRET = re.compile(r"authori[sz]ation|cookie|secret|password|token|credential|api.?key", re.IGNORECASE)
Value = TypeVar("Value")


class Found(msgspec.Struct, frozen=True):
    """Result of a search.

    Args:
        searched: search text.
        hits: items, last changed first.
        more: True if there are further ones.
        problems: parts that could not be searched, with the reasons.
    """

    searched: str
    hits: tuple[Hit, ...]
    more: bool
    problems: tuple[str, ...]


class History(msgspec.Struct, frozen=True):
    """All recorded moments of a trace, in time order.

    Args:
        trace_id: id of the trace, or the search text if the items have none.
        problems: parts that could not be searched, and why.
    """

    trace_id: str
    moments: tuple[Moment, ...]
    problems: tuple[str, ...]


def find(services: SystemResources, text: str, broker_problem: str | None = None) -> Found:
    """Find the items that a text identifies, or if there are none, those whose names or keys begin with it.

    Args:
        services: the resources.
        text: any id of an item, see SEARCHED.
        broker_problem: known reason why Kafka is unavailable, which avoids waiting for it.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    search, problems = Search.of(text), list[str]()
    if not search.text:
        return Found("", (), more=False, problems=())
    hits = _searched(services, search, problems, OF_QUEUES)
    # A file's name identifies no other items, so do not search large tables of other rows for it.
    if not any(hit.key == search.text or (hit.kind == "file" and hit.name == search.text) for hit in hits):
        hits += _searched(services, search, problems, OF_STREAMS)
    letters = list[Hit]()
    if broker_problem is not None:
        problems.append(broker_problem)
    else:
        letters = [_hit_of(letter) for letter in _letters(services, search, problems)]
        hits = hits or _message_at(services, search.position, problems)
    # A dead letter that contains the text must not hide items whose names begin with it.
    hits = (hits or _searched(services, msgspec.structs.replace(search, by_prefix=True), problems)) + letters
    newest_first = sorted(hits, key=lambda hit: hit.at.timestamp() if hit.at else 0.0, reverse=True)
    return Found(search.text, tuple(newest_first[:MAX_HITS]), len(hits) > MAX_HITS, tuple(dict.fromkeys(problems)))


def describe(services: SystemResources, ref: ItemRef, broker_problem: str | None = None) -> ItemView | None:
    """Merge the capabilities' facts about an item, its related items, and its message in Kafka.

    Args:
        services: the resources.
        ref: the item.
        broker_problem: known reason why Kafka is unavailable, which avoids waiting for it.

    Returns:
        the description, with `problems` for parts that do not answer; None if there is no record of the item.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    problems: list[str] = []
    views = [view for one in CAPABILITIES if (view := _answer_of(lambda: one.item(services, ref), problems))]  # noqa: B023 - called at once
    if ref.kind == "message" and (position := Position.parse(ref.key)) and position.topic in _topics(services):
        view = views[0] if views else ItemView(ref=ref, name=str(position))
        views = [replace(view, position=position)]
    if not views:
        return ItemView(ref=ref, name=ref.key, state="unknown", problems=tuple(problems)) if problems else None
    view = _with_message(services, views[0], problems, broker_problem)
    if view is None:
        return None
    view = replace(view, moments=[*view.moments, *_actions_on(services, ref)])
    related = dict(view.related)
    for one in CAPABILITIES:
        related |= _answer_of(lambda: one.related(services, view), problems) or {}  # noqa: B023 - called at once
    if view.trace_id:
        known = {hit.ref for relation in related.values() for hit in relation.hits} | {ref}
        # Only items of the work queues: the page of the trace shows the messages of streams.
        of_trace = _searched(services, Search.of(view.trace_id), problems, OF_QUEUES)
        if others := [hit for hit in of_trace if hit.ref not in known]:
            related["of the same trace"] = Related(tuple(others[:MAX_HITS]), more=len(others) > MAX_HITS)
    return replace(view, related=related, problems=tuple(dict.fromkeys([*view.problems, *problems])))


def trace(services: SystemResources, text: str) -> History:
    """Return the history of a trace, or of the traces of the items that a text identifies.

    Raises:
        DatabaseUnavailableError: the database does not answer.
    """
    problems: list[str] = []
    moments, trace_id = _moments(services, text.strip(), problems), text.strip()
    if not moments:
        found = find(services, text)
        problems += found.problems
        views = [view for hit in found.hits[:MAX_TRACED] if (view := describe(services, hit.ref))]
        traces = list(dict.fromkeys(view.trace_id for view in views if view.trace_id))
        moments = [moment for one in traces for moment in _moments(services, one, problems)]
        # Add the item's own moments: dead letters, and records without a trace.
        moments += [moment for view in views for moment in view.moments]
        trace_id = traces[0] if len(traces) == 1 else trace_id
    else:
        letters = _letters(services, Search.of(text), problems)
        moments += [moment for letter in letters for moment in _moment_of(letter)]
    return History(trace_id, tuple(sorted(set(moments))), tuple(dict.fromkeys(problems)))


def _actions_on(services: SystemResources, ref: ItemRef) -> Iterator[Moment]:
    """Yield operators' actions on an item."""
    for record in actions_on_item(services.engine, ref.key):
        subject, what = f"{ref.kind.replace('_', ' ')} {ref.key}", f"{record.action}: {record.outcome}"
        yield Moment(record.started_at, subject, what, f"by {record.who}: {record.reason}")


def _searched(
    services: SystemResources,
    search: Search,
    problems: list[str],
    capabilities: Sequence[Capability[SystemResources]] = CAPABILITIES,
) -> list[Hit]:
    found: dict[ItemRef, Hit] = {}
    for capability in capabilities:
        for hit in _all_of(lambda: capability.find(services, search, MAX_HITS + 1), problems):  # noqa: B023 - used at once
            found.setdefault(hit.ref, hit)
    return list(found.values())


def _moments(services: SystemResources, trace_id: str, problems: list[str]) -> list[Moment]:
    return [
        moment
        for capability in CAPABILITIES
        for moment in _all_of(lambda: capability.trace(services, trace_id), problems)  # noqa: B023 - used at once
    ]


def _letters(services: SystemResources, search: Search, problems: list[str]) -> list[DeadLetter]:
    """Return the dead letters that contain an id, as far as they can be searched."""
    return _answer_of(lambda: _examined(services, search, problems), problems) or []


def _examined(services: SystemResources, search: Search, problems: list[str]) -> list[DeadLetter]:
    if len(search.text) < SHORTEST_ID or search.position:
        return []
    ids, context = trace_ids_of(search.text), context_prefix(search.text)
    letters, give_up_at = list[DeadLetter](), time.monotonic() + LETTER_SECONDS
    for topic in topics_of_dead_letters(services, consumed_topics(services)):
        found, older = letters_naming(services.range_reader, topic, ids, context, give_up_at - time.monotonic())
        if older:
            problems.append(f"the oldest {counted(older, 'dead letter')} on {topic}; see: ingest dlq list")
        letters += found
    return letters


def _hit_of(letter: DeadLetter) -> Hit:
    name = f"dead letter of {letter.original_location or 'an unknown message'}"
    return Hit("message", letter.place, name, "dead letter", letter.failed_at)


def _moment_of(letter: DeadLetter) -> Iterator[Moment]:
    if letter.failed_at:
        subject = f"message {letter.original_location or letter.place}"
        yield Moment(letter.failed_at, subject, "dead-lettered", letter.reason or f"on {letter.place}")


def _message_at(services: SystemResources, position: Position | None, problems: list[str]) -> list[Hit]:
    """Return the message at a position without an entry in any queue."""
    if position is None or position.topic not in _topics(services):
        return []
    if found := _answer_of(lambda: _read(services, position, ""), problems):
        return [Hit("message", str(position), str(position), "in Kafka", found[1].timestamp)]
    ref = ItemRef("message", str(position))
    views = [view for one in CAPABILITIES if (view := _answer_of(lambda: one.item(services, ref), problems))]  # noqa: B023 - called at once
    return [Hit("message", ref.key, ref.key, one.state, None) for one in views if one.state != "waiting"]


def _with_message(
    services: SystemResources, view: ItemView, problems: list[str], broker_problem: str | None
) -> ItemView | None:
    """Add the message that announced an item: headers, bytes, and its dead letter."""
    position = view.position
    if position is None or broker_problem is not None:
        problems += [broker_problem] if broker_problem else []
        return view
    before = len(problems)
    found = _answer_of(lambda: _read(services, position, view.topic_id), problems)
    if found is None:
        if len(problems) > before:
            return view
        if view.ref.kind == "message" and view.state in ("", "waiting"):
            return None
        gone = "no: removed by retention, or the topic was created again"
        return replace(view, facts={**view.facts, "Still in Kafka": gone})
    reader, message = found
    letter = _answer_of(lambda: _dead_letter(services, reader, position), problems)
    view = replace(
        view,
        facts={**view.facts, **_message_facts(view, message)},
        contents={**view.contents, "message": _bytes_of(message)},
        rows={**view.rows, **_headers(message)},
    )
    if message.timestamp:
        written = Moment(message.timestamp, f"message {position}", "written to Kafka", str(position))
        view = replace(view, moments=[written, *view.moments])
    return _with_letter(view, letter, message)


def _read(services: SystemResources, position: Position, topic_id: str) -> tuple[RangeReader, ConsumerRecord] | None:
    """Read a message; return None if Kafka no longer has it."""
    reader = _reader_of(services, position.topic)
    message = reader.message(position.topic, position.partition, position.offset, topic_id)
    return None if message is None else (reader, message)


def _with_letter(view: ItemView, letter: tuple[Moment, dict[str, object]] | None, message: ConsumerRecord) -> ItemView:
    own = letter_of(message)
    if own.original_location:
        facts: dict[str, object] = {
            "Original message": ItemRef("message", own.original_location),
            "Error": own.error_class,
        }
        state = view.state or "dead letter"
        return replace(
            view,
            facts={**view.facts, **facts},
            state=state,
            reason=own.reason,
            trace_id=view.trace_id or own.trace_id,
            moments=[*view.moments, *_moment_of(own)],
        )
    if letter is None:
        return view
    moment, of_letter = letter
    reason = view.reason if view.ref.kind != "message" else moment.detail
    state = "dead letter" if view.ref.kind == "message" else view.state
    return replace(view, moments=[*view.moments, moment], facts={**view.facts, **of_letter}, state=state, reason=reason)


def _message_facts(view: ItemView, message: ConsumerRecord) -> dict[str, object]:
    traceparent = message.header("traceparent")
    facts: dict[str, object] = {
        "Written to Kafka": message.timestamp,
        "Traceparent": as_text(traceparent),
        "Kafka key": shown_text(message.key, MAX_HEADER_LENGTH) or None,
    }
    if view.ref.kind == "message":
        text = shown_text(message.value, MAX_SHOWN_TEXT)
        facts["Bytes"] = len(message.value or b"")
        facts["Begins"] = "a tombstone: it has no value" if text is None else text
    return facts


def _headers(message: ConsumerRecord) -> dict[str, RowList]:
    rows = tuple(
        (name, "********" if _SECRET.search(name) else shown_text(value, MAX_HEADER_LENGTH) or "")
        for name, value in message.headers[:MAX_HEADERS]
    )
    return {"headers": listed(("header", "value"), rows)} if rows else {}


def _bytes_of(message: ConsumerRecord) -> Content:
    value = message.value or b""
    name = f"{message.topic}-{message.partition}-{message.offset}.bin"
    return Content("the message's bytes", name, len(value), lambda: value)


def _dead_letter(
    services: SystemResources, reader: RangeReader, position: Position
) -> tuple[Moment, dict[str, object]] | None:
    """Return the time and location of a message's dead letter; None without one."""
    topic_id = services.reader.topic_id(position.topic)
    message_id = f"{message_id_prefix(position.topic, topic_id, position.partition)}{position.offset}"
    found = fetch(services.engine, sa.select(outbox).where(outbox.c.message_id == message_id)).mappings().first()
    if found is None:
        return None
    letters = (letter_of(one) for one, _ in newest_letters(reader, found["topic"], MAX_LETTERS, lambda _letter: True))
    letter = next((one for one in letters if one.original_location == str(position)), None)
    reason = (letter and letter.reason) or ""
    moment = Moment(found["created_at"], f"message {position}", "dead-lettered", reason or f"on {found['topic']}")
    place = ItemRef("message", letter.place) if letter else found["topic"]
    return moment, {"Dead letter": place, "Error": letter and letter.error_class}


def _reader_of(services: SystemResources, topic: str) -> RangeReader:
    """Return the reader of the cluster that stores a topic."""
    for one in consumed_topics(services):
        if one.cluster is not None and one.topic == topic:
            return RangeReader(one.cluster().settings)
    return services.range_reader


def _topics(services: SystemResources) -> set[str]:
    """Return the topics of this system; pages show messages of no other topic."""
    consumed = consumed_topics(services)
    named = {*(one.topic for one in consumed), *(one.dead_letters for one in consumed)}
    for value in services.settings.topics.model_dump().values():
        named.update([value] if isinstance(value, str) else value)
    return named - {""}


def _answer_of(ask: Callable[[], Value], problems: list[str]) -> Value | None:
    try:
        return ask()
    except DatabaseUnavailableError:
        # Every other part needs the database too, and each attempt would wait for the timeout.
        raise
    except IngestError as error:
        problems.append(str(error))
        return None


def _all_of(ask: Callable[[], Iterable[Value]], problems: list[str]) -> Iterator[Value]:
    try:
        yield from ask()
    except DatabaseUnavailableError:
        raise
    except IngestError as error:
        problems.append(str(error))
