"""The declaration of user activity.

Its rows are made by its own decoder: it takes a tenth less time than the general one, and gives the reasons of the
contract of its messages.
"""

from __future__ import annotations

from ingest_project.core.settings import Settings
from ingest_project.streams.declaration import DecodeRows, DeltaTarget, StreamDeclaration
from ingest_project.streams.user_activity.event_table import COLUMNS, RESCUED, event_rows

NAME, TABLE = "user_activity", "user_activity_events"


class UserActivity(StreamDeclaration):
    """Events of users, in a Delta table."""

    is_shipped = True
    rescued = RESCUED
    shown = ("event_type",)

    topic: str

    @property
    def source(self) -> str:
        """The name of the table."""
        return TABLE

    @property
    def id_columns(self) -> tuple[str, ...]:
        """The id of an event; those of users and sessions are no key to one message."""
        return ("event_id",)

    def delta_url(self, settings: Settings) -> str:
        """Return the address that the settings give."""
        return settings.user_activity_url

    def own_decoder(self) -> DecodeRows | None:
        """Return the decoder of EnrichedEvents."""
        return event_rows


def user_activity_stream(settings: Settings) -> UserActivity:
    """Declare user activity from the settings."""
    own = settings.user_activity
    return UserActivity(
        name=NAME,
        description="The Delta table of what users did, by the hour in which they did it.",
        topic=settings.topics.user_activity_events,
        dead_letter_topic=settings.topics.user_activity_events_dlq,
        columns=COLUMNS,
        event_time="timestamp",
        sink=DeltaTarget(commit_messages=own.range_messages, retention_hours=own.retention_hours),
        fresh_within_hours=2,
        warn_after_hours=1,
        batch_messages=own.batch_messages,
        max_parallel_batches=own.max_parallel_batches,
        max_unfinished_seconds=own.max_unfinished_seconds,
        max_implausible_share=own.max_implausible_share,
    )
