"""Redrive dead letters: publish their original messages to their original topic again.

Key, value and headers are the original's, without the headers of the dead letter, and with three of our own:
`redrive.count` is the number of redrives of the message, `redrive.first-letter` the location of its first dead letter,
and `message-id` identifies the letter. A message that fails again keeps these headers in its new dead letter, so that a
message that can never be processed is refused after INGEST_MAX_REDRIVES instead of cycling forever.

The outbox records each letter by the topic's id, partition and offset before it is published: killed at any point and
called again, this publishes each letter exactly once. A header names the original topic, and anybody who can write to
the dead-letter topic can forge it: messages are published only to consumed topics whose dead-letter topic is this one.
For a dead attachment task, the attachment is replayed instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from ingest_project.attachments.queue import AttachmentRecord
from ingest_project.attachments.tables import AttachmentState
from ingest_project.contracts import trace_id_in
from ingest_project.contracts.attachments import attachment_key, decode_download_task
from ingest_project.core.console import counted
from ingest_project.core.errors import IngestError
from ingest_project.core.items import grouped, store_bisecting
from ingest_project.operations import SystemResources
from ingest_project.operations.snapshot import consumed_topics
from ingest_project.operations.topics import cluster_of
from ingest_project.platform.actions import (
    Action,
    ActionRecord,
    ActionRefusedError,
    ActionRequest,
    Outcome,
    Parameter,
    Selection,
)
from ingest_project.platform.capability import ConsumedTopic
from ingest_project.platform.errors import is_item_fault, reason_of
from ingest_project.platform.items import Position
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.dead_letters import (
    HEADER_PREFIX,
    DeadLetter,
    letter_of,
    letters_at,
    letters_in_order,
    newest_letters,
)
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.publisher import MESSAGE_ID_HEADER, publish_once, recover

NAME = "redrive-dead-letters"
REDRIVE_PREFIX = "redrive."
COUNT_HEADER, FIRST_LETTER_HEADER = f"{REDRIVE_PREFIX}count", f"{REDRIVE_PREFIX}first-letter"
# Prefixes of message ids that this system has added.
OWN_IDS = (b"dlq:", b"redrive:")
# Bounds the time of a selection, for which a person waits.
MAX_EXAMINED = 200_000


class InspectedLetter(DeadLetter, frozen=True, kw_only=True):
    """A dead letter, and the effect that redriving it would have.

    Args:
        redrives: number of earlier redrives of its message.
        redriven: True if this letter was redriven, or its attachment is no longer dead.
        refusal: why it cannot be redriven; None if it can.
    """

    redrives: int
    redriven: bool
    refusal: str | None

    @property
    def topic(self) -> str:
        """Return the topic of the letter."""
        return self.place.partition("/")[0]


def dead_letter_topics(services: SystemResources) -> dict[str, tuple[ConsumedTopic, ...]]:
    """Return the dead-letter topics in the order of the data flow, each with its original topics."""
    found: dict[str, list[ConsumedTopic]] = {topic: [] for topic in services.settings.topics.dead_letters}
    for consumed in consumed_topics(services):
        if consumed.dead_letters:
            found.setdefault(consumed.dead_letters, []).append(consumed)
    return {topic: tuple(consumed) for topic, consumed in found.items()}


def original_message(letter: ConsumerRecord) -> ProducerRecord:
    """Return the original message of a dead letter, with the headers of a redrive."""
    own = [
        (name, value)
        for name, value in letter.headers
        if not name.startswith((HEADER_PREFIX, REDRIVE_PREFIX))
        and not (name == MESSAGE_ID_HEADER and (value or b"").startswith(OWN_IDS))
    ]
    first = letter.header(FIRST_LETTER_HEADER) or str(position_of(letter)).encode()
    own += [(COUNT_HEADER, str(redrives_of(letter) + 1).encode()), (FIRST_LETTER_HEADER, first)]
    # Keep the partition: a producer with another hash may have chosen it, and the messages of a key stay together.
    origin = Position.parse(letter_of(letter).original_location or "")
    return ProducerRecord(letter.value, letter.key, tuple(own), origin.partition if origin else None)


def _placed(record: ProducerRecord, partitions: Collection[int]) -> ProducerRecord:
    """Clear a partition that the topic lacks (it was recreated, or a header is wrong): the key then chooses one."""
    return record if record.partition in partitions else msgspec.structs.replace(record, partition=None)


def position_of(letter: ConsumerRecord) -> Position:
    """Return the position of a letter."""
    return Position(letter.topic, letter.partition, letter.offset)


def redrives_of(letter: ConsumerRecord) -> int:
    """Return the number of redrives of a letter's message; 0 for a header that is not a number."""
    text = (letter.header(COUNT_HEADER) or b"")[:9]
    return int(text) if text.isdigit() else 0


def redrive_id(letter: ConsumerRecord, topic_id: str) -> str:
    """Return the id under which a letter is published."""
    return f"redrive:{letter.topic}:{topic_id}:{letter.partition}:{letter.offset}"


class Redriver:
    """Redrives the letters of one topic.

    Args:
        services: Kafka, the outbox and the attachments.
        topic: dead-letter topic, or one of its original topics.

    Raises:
        ActionRefusedError: the topic does not exist.
    """

    def __init__(self, services: SystemResources, topic: str) -> None:
        self._services = services
        known = dead_letter_topics(services)
        self.topic = next((name for name, origins in known.items() if topic in {name, *_names(origins)}), "")
        if not self.topic:
            is_crm = topic == services.settings.topics.sales_events
            hint = " Messages of the CRM: ingest crm unidentified retry." if is_crm else ""
            raise ActionRefusedError(f"{topic} has no dead letters here. Those that have: {', '.join(known)}.{hint}")
        self._origins = {consumed.topic: consumed for consumed in known[self.topic]}

    def inspect(
        self, letters: Sequence[ConsumerRecord], topic_id: str, *, again: bool = False, with_values: bool = False
    ) -> list[InspectedLetter]:
        """Return each letter with the effect that redriving it would have.

        Args:
            letters: letters of the topic.
            topic_id: id of the topic, see `Positions`.
            again: allow redriving letters that were redriven before.
            with_values: include the values, which may be large.
        """
        attachments = self._attachments(letters)
        ids = [redrive_id(letter, topic_id) for letter in letters]
        unsent = set(ids) if again else set(self._services.outbox.unsent(ids))
        found = []
        for letter, message_id in zip(letters, ids, strict=True):
            record = attachments.get(position_of(letter))
            redriven = message_id not in unsent if record is None else record.state is not AttachmentState.FAILED
            refusal = self._refusal(letter) if record is None else self._exhausted(record)
            facts = msgspec.structs.asdict(letter_of(letter, with_value=with_values))
            found.append(InspectedLetter(**facts, redrives=redrives_of(letter), redriven=redriven, refusal=refusal))
        return found

    def newest(self, wanted: Callable[[ConsumerRecord], bool], limit: int) -> list[InspectedLetter]:
        """Return the newest letters that `wanted` selects, newest first."""
        found = list(newest_letters(self._services.range_reader, self.topic, limit, wanted))
        letters = self.inspect([letter for letter, _ in found], found[0][1]) if found else []
        return sorted(letters, key=failed_last, reverse=True)[:limit]

    def letter_at(self, place: Position) -> InspectedLetter | None:
        """Return the letter at a position with its value; None if it no longer exists."""
        found = list(letters_at(self._services.range_reader, self.topic, [place]))
        return self.inspect([found[0][0]], found[0][1], with_values=True)[0] if found else None

    def publish(
        self, letters: Sequence[tuple[ConsumerRecord, str]], who: str, *, again: bool = False
    ) -> dict[Position, str | None]:
        """Publish letters, or replay their attachments; return each letter's failure, or None.

        Killed at any point and called again, this publishes each letter only once.

        Args:
            letters: letters, each with the id of its topic.
            who: operator, for the record of replays.
            again: publish letters again that were published before.
        """
        outcome: dict[Position, str | None] = {}
        by_origin: dict[str, list[tuple[Position, tuple[str, ProducerRecord]]]] = defaultdict(list)
        of_attachments: dict[str, list[Position]] = defaultdict(list)
        attachments = self._attachments([letter for letter, _ in letters])
        for letter, topic_id in letters:
            place = position_of(letter)
            if place in attachments:
                of_attachments[attachments[place].attachment_key].append(place)
            elif refusal := self._refusal(letter):
                outcome[place] = refusal
            else:
                message_id = redrive_id(letter, topic_id)
                if again:
                    message_id = self._next_id(_origin(letter), message_id)
                by_origin[_origin(letter)].append((place, (message_id, original_message(letter))))
        outcome |= self._replay(of_attachments, who)
        for topic, messages in by_origin.items():
            outcome |= self._publish_to(self._origins[topic], messages)
        return outcome

    def redriven(self, letters: Sequence[tuple[ConsumerRecord, str]], again_since: datetime | None) -> list[str]:
        """Return the locations of the redriven letters, including those that a killed publisher had written.

        Args:
            letters: letters, each with the id of its topic.
            again_since: count only publications since this time; None if each letter was to be published once.
        """
        services, attachments = self._services, self._attachments([letter for letter, _ in letters])
        own = [(letter, topic_id) for letter, topic_id in letters if position_of(letter) not in attachments]
        published: set[str] = set()
        for origin, ids in grouped((_origin(letter), redrive_id(letter, of)) for letter, of in own).items():
            cluster = cluster_of(self._origins[origin], services)
            if again_since is not None:
                ids = services.outbox.ids(cluster.topic, f"redrive:{self.topic}:", again_since)  # noqa: PLW2901
            missing = recover(cluster.reader, services.outbox, cluster.topic, ids)
            published |= {message_id.partition("#")[0] for message_id in set(ids).difference(missing)}
        dead = {place for place, one in attachments.items() if one.state is AttachmentState.FAILED}
        return [
            str(place)
            for place, message_id in ((position_of(letter), redrive_id(letter, of)) for letter, of in letters)
            if message_id in published or place in attachments.keys() - dead
        ]

    def _publish_to(
        self, consumed: ConsumedTopic, messages: Sequence[tuple[Position, tuple[str, ProducerRecord]]]
    ) -> dict[Position, str | None]:
        outcome: dict[Position, str | None] = {place: None for place, _ in messages}
        services = self._services
        writer = services.writer
        try:
            cluster = cluster_of(consumed, services)
            if consumed.cluster:
                writer = TopicWriter(cluster.settings)
            partitions = cluster.reader.end_offsets(cluster.topic).keys()

            def publish(part: Sequence[tuple[Position, tuple[str, ProducerRecord]]]) -> None:
                records = [(message_id, _placed(record, partitions)) for _, (message_id, record) in part]
                publish_once(writer, cluster.reader, services.outbox, cluster.topic, records)

            outcome |= {
                place: reason_of(error) for (place, _), error in store_bisecting(messages, publish, is_item_fault)
            }
        except IngestError as error:
            # The outbox knows which of them are on the topic: a repeated redrive publishes the rest.
            outcome = dict.fromkeys(outcome, reason_of(error))
        finally:
            if writer is not services.writer:
                writer.close()
        return outcome

    def _replay(self, places: Mapping[str, Sequence[Position]], who: str) -> dict[Position, str | None]:
        if not places:
            return {}
        settings, queue = self._services.settings.attachments, self._services.attachments
        queue.replay(list(places), who, settings.max_replays, settings.replays_per_second, datetime.now(UTC))
        # An attachment that is still dead was not replayed; one that another process has replayed counts as done.
        return {
            place: self._exhausted(record) if record.state is AttachmentState.FAILED else None
            for record in queue.get_many(list(places))
            for place in places[record.attachment_key]
        }

    def _exhausted(self, record: AttachmentRecord) -> str | None:
        most = self._services.settings.attachments.max_replays
        return f"its attachment was replayed {most} times (INGEST_MAX_REPLAYS)" if record.replays >= most else None

    def _refusal(self, letter: ConsumerRecord) -> str | None:
        """Return why a letter must not be published; None if it may be."""
        origin = _origin(letter)
        if not origin:
            return f"it has no header {HEADER_PREFIX}original-topic"
        if origin not in self._origins:
            names = ", ".join(self._origins) or "none"
            return f"its header names {origin!r}, which has no dead letters on this topic; those that have: {names}"
        most = self._services.settings.retries.max_redrives
        if redrives_of(letter) >= most:
            return f"it was redriven {redrives_of(letter)} times and failed each time (INGEST_MAX_REDRIVES={most})"
        return None

    def _attachments(self, letters: Iterable[ConsumerRecord]) -> dict[Position, AttachmentRecord]:
        """Return the attachments of those letters that are dead attachment tasks."""
        if self.topic != self._services.settings.topics.downloads_dlq:
            return {}
        keys: dict[Position, str] = {}
        for letter in letters:
            try:
                task = decode_download_task(letter.value)
            except IngestError:
                continue
            keys[position_of(letter)] = attachment_key(task.trace_id, task.attachment_url)
        records = {one.attachment_key: one for one in self._services.attachments.get_many(sorted(set(keys.values())))}
        return {place: records[key] for place, key in keys.items() if key in records}

    def _next_id(self, topic: str, message_id: str) -> str:
        """Return the id for another publication of a letter; that of an interrupted publication is used first."""
        known = self._services.outbox.ids(topic, message_id)
        number = 1
        while (candidate := f"{message_id}#{number}" if number > 1 else message_id) in known:
            if self._services.outbox.unsent([candidate]):
                break
            number += 1
        return candidate


@dataclass(frozen=True)
class LetterFilter:
    """Selects letters by the parameters of a request; None selects all."""

    places: frozenset[str]
    error_class: str | None
    text: str | None
    trace_id: str | None
    since: datetime | None
    until: datetime | None
    partition: int | None
    first: int | None
    last: int | None

    @classmethod
    def of(cls, request: ActionRequest) -> LetterFilter:
        """Create the filter from the request's parameters.

        Raises:
            ActionRefusedError: a number or a location is malformed.
        """
        partition, first, last = (_number(request, name) for name in ("partition", "first_offset", "last_offset"))
        if partition is None and (first is not None or last is not None):
            raise ActionRefusedError("Offsets are those of one partition: name it as well.")
        return cls(
            frozenset(request.lines("key")),
            request.value("error_class"),
            request.value("text"),
            request.value("trace_id"),
            request.time("since"),
            request.time("until"),
            partition,
            first,
            last,
        )

    def includes(self, record: ConsumerRecord) -> bool:
        """Return True if the filter selects a letter."""
        letter = letter_of(record)
        if self.partition is not None and not (
            record.partition == self.partition
            and (self.first is None or record.offset >= self.first)
            and (self.last is None or record.offset <= self.last)
        ):
            return False
        if self.places and not self.places & {letter.place, letter.original_location}:
            return False
        if self.error_class is not None and letter.error_class != self.error_class:
            return False
        if self.text is not None and self.text.casefold() not in (letter.reason or "").casefold():
            return False
        if self.trace_id is not None and not _names_trace(record, letter, self.trace_id):
            return False
        at = letter.failed_at
        return (self.since is None or (at is not None and at >= self.since)) and (
            self.until is None or (at is not None and at < self.until)
        )


def select(services: SystemResources, request: ActionRequest) -> Selection:
    """Find the letters to redrive, oldest of each partition first, without those that were redriven before."""
    redriver, wanted = Redriver(services, _topic(request)), LetterFilter.of(request)
    again = request.value("again") == "yes"
    keys: list[str] = []
    refused: dict[str, str] = {}
    total = before = examined = 0
    notes = []
    for topic_id, part in _letters(services, redriver.topic, wanted):
        examined += len(part)
        for found in redriver.inspect([one for one in part if wanted.includes(one)], topic_id, again=again):
            if found.redriven:
                before += 1
                continue
            total += 1
            if len(keys) + len(refused) < request.limit:
                if found.refusal:
                    refused[found.place] = found.refusal
                else:
                    keys.append(found.place)
        if examined >= MAX_EXAMINED:
            notes.append(f"Only {examined:,} letters were examined; choose a partition and offsets for the others.")
            break
    if before:
        was, stay = ("was", "stays as it is") if before == 1 else ("were", "stay as they are")
        notes.append(f"{counted(before, 'letter')} {was} redriven before, and {stay}.")
    return Selection(tuple(keys), total, refused, tuple(notes))


def apply(services: SystemResources, request: ActionRequest, keys: Sequence[str]) -> Outcome:
    """Redrive the letters at these locations."""
    redriver = Redriver(services, _topic(request))
    places = [_place(key) for key in keys]
    found = list(letters_at(services.range_reader, redriver.topic, places))
    outcome = redriver.publish(found, request.who, again=request.value("again") == "yes")
    failed = {str(place): outcome.get(place, "it is not on the topic any more") for place in places}
    return Outcome(
        tuple(place for place, reason in failed.items() if reason is None),
        {place: reason for place, reason in failed.items() if reason is not None},
        f"Letters of {redriver.topic}.",
    )


def acted_on(services: SystemResources, record: ActionRecord, keys: Sequence[str]) -> Collection[str]:
    """Return the letters that an interrupted action had redriven."""
    redriver = Redriver(services, _topic(record.request))
    letters = list(letters_at(services.range_reader, redriver.topic, [_place(key) for key in keys]))
    return redriver.redriven(letters, record.started_at if record.parameters.get("again") == "yes" else None)


REDRIVE: Action[SystemResources] = Action(
    name=NAME,
    title="Redrive dead letters",
    noun="dead letter",
    kind="message",
    meaning="Publishes the original messages to their topic again, after a fix. A letter that was redriven before "
    "is left out; for a dead attachment task, the attachment is replayed.",
    parameters=(
        Parameter("topic", "Dead-letter topic, or the original topic. Required without keys."),
        Parameter("key", "TOPIC/PARTITION/OFFSET of the letter or of its original message.", kind="lines"),
        Parameter("error_class", "Class of the error, e.g. UnreadableMessageError."),
        Parameter("text", "Text in the reason."),
        Parameter("trace_id", "Trace id of the message."),
        Parameter("since", "Failed at this time or later.", kind="time"),
        Parameter("until", "Failed before.", kind="time"),
        Parameter("partition", "Only this partition of the dead-letter topic."),
        Parameter("first_offset", "With a partition: first offset."),
        Parameter("last_offset", "With a partition: last offset."),
        Parameter("again", "Include letters that were redriven before.", ("yes", "no")),
    ),
    select=select,
    apply=apply,
    acted_on=acted_on,
)


def failed_last(letter: DeadLetter) -> float:
    """Return the sort key of letters: the time of the last failure, in seconds since 1970."""
    return letter.failed_at.timestamp() if letter.failed_at else 0.0


def _names(topics: Iterable[ConsumedTopic]) -> Iterator[str]:
    return (consumed.topic for consumed in topics)


def _origin(letter: ConsumerRecord) -> str:
    return (letter.header(f"{HEADER_PREFIX}original-topic") or b"").decode("utf-8", "replace")


def _names_trace(record: ConsumerRecord, letter: DeadLetter, trace_id: str) -> bool:
    """Return True if headers name a trace, or the bytes of an unreadable message contain its id."""
    return trace_id in {letter.trace_id, trace_id_in(record.headers)} or trace_id.encode() in (record.value or b"")


def _topic(request: ActionRequest) -> str:
    """Return the topic of a request, or else that of its keys."""
    topics = {_place(key).topic for key in request.lines("key")}
    if topic := request.value("topic"):
        return topic
    if len(topics) != 1:
        raise ActionRefusedError(f"{NAME} needs a topic, or keys of one topic.")
    return topics.pop()


def _letters(
    services: SystemResources, topic: str, wanted: LetterFilter
) -> Iterator[tuple[str, Sequence[ConsumerRecord]]]:
    """Yield letters of a topic that the filter may select, in chunks, each with the topic's id."""
    places = [_place(key) for key in wanted.places]
    if places and all(place.topic == topic for place in places):
        return ((topic_id, [letter]) for letter, topic_id in letters_at(services.range_reader, topic, places))
    end = None if wanted.last is None else wanted.last + 1
    return letters_in_order(services.range_reader, topic, wanted.partition, wanted.first, end)


def _number(request: ActionRequest, name: str) -> int | None:
    text = request.value(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):  # noqa: PLR2004 - 64 bits
        raise ActionRefusedError(f"{name} is a number, not {text[:20]!r}.")
    return int(text)


def _place(text: str) -> Position:
    if (position := Position.parse(text)) is None:
        raise ActionRefusedError(f"{text[:100]!r} is no location. Example: events.raw.dlq/0/17.")
    return position
