"""What every stream uses."""

from __future__ import annotations

from functools import cached_property

from ingest_project.platform.runtime import Runtime
from ingest_project.streams.contiguous_intervals import StreamIntervals
from ingest_project.streams.ranges import StreamRangeLedger


class StreamResources(Runtime):
    """The offset ranges of streams."""

    @cached_property
    def stream_ranges(self) -> StreamRangeLedger:
        """What is known of every offset range of the topics that are read in ranges."""
        return StreamRangeLedger(self.engine)

    @cached_property
    def stream_intervals(self) -> StreamIntervals:
        """Offset ranges that follow one another, and what stays of those that are let go."""
        return StreamIntervals(self.engine)
