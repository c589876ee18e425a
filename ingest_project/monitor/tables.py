"""What the Delta tables tell of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from ingest_project.errors import IngestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest_project.resources import Services
    from ingest_project.stores.delta_tables import DeltaStore


class DeltaFigures(msgspec.Struct, frozen=True):
    """One table that exists.

    Args:
        commits: ever made to it, upkeep included.
        rows: None where a writer left its files uncounted.
    """

    table: str
    commits: int
    rows: int | None
    files: int
    size_bytes: int


class TablesSeen(msgspec.Struct, frozen=True):
    """The tables that exist, and one sentence for each that does not answer."""

    figures: tuple[DeltaFigures, ...]
    problems: tuple[str, ...]


class TablesLook:
    """Reads the logs of the Delta tables."""

    def __init__(self, services: Services) -> None:
        self._stores: dict[str, Callable[[], DeltaStore]] = {
            "attachment_results": lambda: services.attachment_results,
            "user_activity_events": lambda: services.user_activity_events,
        }

    def __call__(self) -> TablesSeen:
        """Never raises: one store that is away says nothing about the others."""
        figures: list[DeltaFigures] = []
        problems: list[str] = []
        for name, store in self._stores.items():
            try:
                found = store().figures()
            except IngestError as error:
                problems.append(f"{name}: {error}")
                continue
            if found is not None:
                # The first commit makes version 0.
                commits = found.table_version + 1
                figures.append(DeltaFigures(name, commits, found.rows, found.files, found.size_bytes))
        return TablesSeen(tuple(figures), tuple(problems))
