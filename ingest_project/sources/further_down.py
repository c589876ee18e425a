"""Files that a pattern does not reach because they lie in folders: what a look that found nothing can say of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ingest_project.errors import IngestError
from ingest_project.sources.protocol import SourceFile
from ingest_project.sources.selection import ANY_DEPTH

if TYPE_CHECKING:
    from ingest_project.sources.protocol import Source

MOST_ENTRIES = 1_000
MOST_SECONDS = 20.0


def files_further_down(source: Source, pattern: str) -> dict[str, int]:
    """How many files the pattern would take if it reached all folders: reason to number; empty where there are none.

    It looks for a while and no longer, and what goes wrong meanwhile is no failure of the look that found nothing.
    """
    parts = pattern.split("/")
    if ANY_DEPTH in parts:
        return {}
    deeper = "/".join([*parts[:-1], ANY_DEPTH, parts[-1] or "*"])
    found, until = 0, time.monotonic() + MOST_SECONDS
    try:
        for number, entry in enumerate(source.list_files(deeper), 1):
            found += isinstance(entry, SourceFile)
            if number >= MOST_ENTRIES or time.monotonic() > until:
                break
    except IngestError:
        pass
    return {f"In a folder that the pattern {pattern!r} does not reach; {deeper!r} takes it.": found} if found else {}
