"""Which message is what: opportunities, projects, and the rest with the reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ingest_project.contracts.crm_event import CrmEvent, CrmKind, decode_crm_event
from ingest_project.contracts.decoding import trace_id_in
from ingest_project.core.errors import UnexpectedError, UnreadableMessageError
from ingest_project.core.logging import get_logger
from ingest_project.platform.kafka.records import ConsumerRecord
from ingest_project.streams.crm.records import MessageOrder, PlacedEvent
from ingest_project.streams.crm.unidentified_store import Unidentified

logger = get_logger(__name__)


@dataclass
class Identified:
    """Messages by what they are; each of them is in exactly one place.

    Args:
        messages: all of them, in their order.
        topic_id: which life of the topic they are from.
        epoch: the number of that life.
    """

    messages: Sequence[ConsumerRecord]
    topic_id: str
    epoch: int = 0
    events: dict[CrmKind, list[PlacedEvent]] = field(default_factory=lambda: {kind: [] for kind in CrmKind})
    unidentified: list[Unidentified] = field(default_factory=list)


def identify(messages: Sequence[ConsumerRecord], topic_id: str, epoch: int = 0) -> Identified:
    """Sort messages by what they are. No message makes it fail."""
    sorted_out = Identified(messages, topic_id, epoch)
    for message in messages:
        found = identify_payload(message.value)
        position = MessageOrder(message.topic, topic_id, message.partition, message.offset, epoch)
        if isinstance(found, tuple):
            sorted_out.unidentified.append(unidentified(message, position, *found))
        else:
            sorted_out.events[found.kind].append(PlacedEvent(found, position, trace_id_in(message.headers)))
    return sorted_out


def identify_payload(payload: bytes | None) -> CrmEvent | tuple[str, str]:
    """The event that a message carries, or the reason why it is none and the class of that error."""
    try:
        return decode_crm_event(payload)
    except UnreadableMessageError as error:
        return str(error), error.error_class
    except Exception as error:  # a defect of ours that one message found must not stop the others
        logger.exception("decoding_failed_unforeseen")
        failure = UnexpectedError("Reading the message", error)
        return str(failure), failure.error_class


def unidentified(message: ConsumerRecord, position: MessageOrder, reason: str, error_class: str) -> Unidentified:
    """A message as it is kept."""
    return Unidentified(
        position=position,
        timestamp=message.timestamp,
        key=message.key,
        headers=message.headers,
        payload=message.value,
        reason=reason,
        error_class=error_class,
    )
