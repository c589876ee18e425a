"""`unidentified_messages`: what is neither opportunity nor project, whole, and trying it again after a fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import dagster as dg
from sqlalchemy import Engine

from ingest_project.contracts.crm_event import CrmEvent, CrmKind
from ingest_project.core.batches import store_bisecting
from ingest_project.platform.dagster.external_assets import topic_key
from ingest_project.platform.database.engine import reading, writing
from ingest_project.streams.crm import unidentified_store as store
from ingest_project.streams.crm.classify import identify_payload
from ingest_project.streams.crm.records import PlacedEvent, upsert
from ingest_project.streams.crm.upsert import may_be_a_messages_fault, reason_of
from ingest_project.streams.ranges import StreamRangeLedger

UNIDENTIFIED_MESSAGES = dg.AssetKey("unidentified_messages")
MESSAGES_PER_TRANSACTION = 200

unidentified_messages = dg.AssetSpec(
    UNIDENTIFIED_MESSAGES,
    deps=[topic_key("sales_events")],
    description="Messages of sales_events that are neither opportunity nor project, whole, each with its reason.",
    group_name="crm",
    kinds={"postgres"},
    skippable=True,
)


class Retried(NamedTuple):
    """What trying again brought.

    Args:
        identified: ids of messages that are records now.
        unidentified: ids of those that are still none.
    """

    identified: tuple[str, ...] = ()
    unidentified: tuple[str, ...] = ()


def retry(engine: Engine, message_ids: Sequence[str] | None = None) -> Retried:
    """Look again at messages by today's rules; what is identified now is stored as if it had just come.

    Record and mark are one transaction, and a message is in the hands of one retry at a time: done twice, also at
    once, it becomes a record once. An older version still never overwrites a newer one.

    Args:
        engine: of the database.
        message_ids: which; None for all that are open.
    """
    identified: list[str] = []
    unidentified: list[str] = []

    def retry_part(ids: Sequence[str]) -> None:
        done = _retry_together(engine, ids)
        identified.extend(done.identified)
        unidentified.extend(done.unidentified)

    for ids in _open_ids(engine) if message_ids is None else _parts(message_ids):
        for message_id, error in store_bisecting(ids, retry_part, may_be_a_messages_fault):
            with writing(engine) as connection:
                store.mark_retried(connection, {message_id: reason_of(error)}, datetime.now(UTC))
            unidentified.append(message_id)
    return Retried(tuple(identified), tuple(unidentified))


def _retry_together(engine: Engine, message_ids: Sequence[str]) -> Retried:
    now, ledger = datetime.now(UTC), StreamRangeLedger(engine)
    epochs: dict[str, dict[str, int]] = {}
    with writing(engine) as connection:
        events: dict[str, PlacedEvent] = {}
        reasons: dict[str, tuple[str, str]] = {}
        for message in store.take_open(connection, message_ids):
            found = identify_payload(message.payload)
            if isinstance(found, tuple):
                reasons[message.message_id] = found
            else:
                place = message.position
                if place.topic not in epochs:
                    epochs[place.topic] = ledger.epochs(place.topic)
                place = place._replace(epoch=epochs[place.topic].get(place.topic_id, 0))
                events[message.message_id] = PlacedEvent(found, place, message.trace_id)
        for kind in CrmKind:
            upsert(connection, kind, [one for one in events.values() if one.event.kind is kind], now)
        store.mark_identified(connection, {key: _record(one.event) for key, one in events.items()}, now)
        store.mark_retried(connection, reasons, now)
    return Retried(tuple(events), tuple(reasons))


def _record(event: CrmEvent) -> tuple[CrmKind, str]:
    return event.kind, event.event_id


def _open_ids(engine: Engine) -> Iterator[list[str]]:
    after = ""
    while True:
        with reading(engine) as connection:
            found = store.find(connection, limit=MESSAGES_PER_TRANSACTION, after=after)
        if not found:
            return
        after = found[-1].message_id
        yield [message.message_id for message in found]


def _parts(message_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(message_ids), MESSAGES_PER_TRANSACTION):
        yield message_ids[start : start + MESSAGES_PER_TRANSACTION]
