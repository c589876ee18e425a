"""Where a topic has been read to, as it is kept in a sensor's cursor.

The saved cursor owns the positions; the consumer group's committed offsets only follow it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from ingest_project.errors import IngestError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Positions(msgspec.Struct, frozen=True):
    """The next offset to read of each partition, valid within one life of the topic.

    Args:
        generation: which life of the topic: its topic id where the broker tells it. Empty: unknown, never compared.
        next_offsets: partition to the offset of the first message not yet read.
    """

    generation: str
    next_offsets: Mapping[int, int]

    def to_cursor(self) -> str:
        """Compact JSON, the same text for the same positions."""
        return msgspec.json.encode(
            {"generation": self.generation, "next_offsets": dict(sorted(self.next_offsets.items()))}
        ).decode()

    @classmethod
    def from_cursor(cls, text: str | None) -> Positions | None:
        """The positions that a cursor holds, or None where nothing has been saved yet.

        Raises:
            IngestError: the cursor is not one of ours. Starting again silently would read everything twice, so a
                person decides.
        """
        if not text:
            return None
        try:
            positions = msgspec.json.decode(text, type=_Cursor)
        except (msgspec.MsgspecError, UnicodeEncodeError) as error:
            raise IngestError(
                f"The saved cursor {text[:80]!r} holds no Kafka positions: {error}. "
                "Reset the sensor's cursor to read the topic from its first message again."
            ) from error
        return cls(positions.generation, positions.next_offsets)


class _Cursor(msgspec.Struct, forbid_unknown_fields=True):
    generation: str
    next_offsets: dict[int, Annotated[int, msgspec.Meta(ge=0)]]
