"""Which waiting files are next: an equal share for each origin, so that one that sends much keeps no other waiting.

An origin is the place that a polling job looked in, or the folder of a file that was announced by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain, zip_longest
from typing import TypeVar

import sqlalchemy as sa

from ingest_project.contracts.file_event import FileEvent
from ingest_project.core.keys import digest_of
from ingest_project.file_ingest.tables import files
from ingest_project.platform.work_queue.states import PENDING

Item = TypeVar("Item")

# Those that wait longest; the others have their turn when these were asked for.
MOST_ORIGINS = 500


def origin_of(event: FileEvent, location: str) -> str:
    """Whose share a file takes: short, and the same for all files of one place.

    Args:
        event: that announced the file.
        location: its canonical address.
    """
    place = sorted(event.source_config.items()) or location.rpartition("/")[0]
    return digest_of(event.source_type, place)


def waiting_origins(connection: sa.Connection, queue_name: str, now: datetime) -> Sequence[str]:
    """Origins with files that are due, those first whose first file waits longest.

    The index is asked for one origin after the other: what it costs grows with the origins, not with the files.
    """
    is_waiting = sa.and_(files.c.kafka_topic == queue_name, files.c.state == sa.literal_column(f"'{PENDING}'"))
    first = sa.select(sa.func.min(files.c.origin).label("origin")).where(is_waiting)
    origins = first.cte("origins", recursive=True)
    after = sa.select(sa.func.min(files.c.origin)).where(is_waiting, files.c.origin > origins.c.origin)
    origins = origins.union_all(
        sa.select(after.correlate(origins).scalar_subquery()).where(origins.c.origin.is_not(None))
    )
    earliest = sa.func.min(files.c.next_attempt_at, type_=files.c.next_attempt_at.type)
    due_at = sa.select(earliest).where(is_waiting, files.c.origin == origins.c.origin)
    waiting = sa.select(origins.c.origin, due_at.correlate(origins).scalar_subquery().label("due_at")).subquery()
    query = sa.select(waiting.c.origin).where(waiting.c.due_at <= now).order_by(waiting.c.due_at).limit(MOST_ORIGINS)
    return connection.execute(query).scalars().all()


def in_turn(groups: Iterable[Iterable[Item]]) -> Iterator[Item]:
    """The first of each group, then the second of each, and so on."""
    missing = object()
    for item in chain.from_iterable(zip_longest(*groups, fillvalue=missing)):
        if item is not missing:
            yield item  # type: ignore[misc]  # what is missing was left out
