"""What everything that reads or writes events shares: the name of a partition's stream, sizes, and a lock."""

from __future__ import annotations

from ingest_project.streams.range_record import OffsetRange

EVENTS_OP = "store_user_activity"


MOST_UNFINISHED = 10_000


# The head of a partition cannot be skipped: what fails is asked for again until it is stored, and the checks tell.
NO_LAST_ATTEMPT = 2**31 - 1


# What is decoded at a time: the events of a chunk live as objects, those of a commit as columns.
CHUNK_MESSAGES = 10_000
CHUNK_BYTES = 16 * 1024**2

# Replacing, recovering and maintenance take turns: each looks at rows or files that another may be changing.
LOCK = "user_activity_events"
LOCK_WAIT_SECONDS = 900.0

# What the ledger counts the rows of a range as: committed by its run, or found in the table.
EVENTS, FOUND_STORED = "events", "found_stored"


def stream_of(offsets: OffsetRange) -> str:
    """The name under which the table remembers how far it is in a partition; another one in each life of the topic."""
    return f"ingest_project/user_activity/{offsets.topic}/{offsets.topic_id}/{offsets.partition}"
