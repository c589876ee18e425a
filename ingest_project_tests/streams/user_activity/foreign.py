"""Writes of other programs to the Delta table of events, and faults of its storage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake

from ingest_project.operations import SystemResources


def table_of(services: SystemResources) -> DeltaTable:
    """The table, opened as another program opens it."""
    return DeltaTable(services.user_activity.store.url)


def remove_log_after(services: SystemResources, version: int) -> None:
    """Take the newest entries of the log away, as a file store does that is put back to yesterday's copy."""
    log = Path(services.user_activity.store.url) / "_delta_log"
    for entry in log.iterdir():
        number = entry.name.split(".")[0]
        if number == "_last_checkpoint" or (number.isdigit() and int(number) > version):
            entry.unlink()


def restore(services: SystemResources, version: int) -> None:
    """Put the table back, in a new commit."""
    table_of(services).restore(version)


def drop(services: SystemResources) -> None:
    """Remove the table with all its files."""
    shutil.rmtree(services.user_activity.store.url)


def delete(services: SystemResources, condition: str) -> None:
    """Delete rows."""
    table_of(services).delete(condition)


def empty(services: SystemResources) -> None:
    """Overwrite all rows with none."""
    table = table_of(services)
    write_deltalake(table, pa.schema(table.schema()).empty_table(), mode="overwrite")


def compact(services: SystemResources) -> None:
    """Merge its files."""
    table_of(services).optimize.compact()


def append_rows(services: SystemResources, **columns: list[object]) -> None:
    """Append rows of somebody else's, with columns of their own or some of ours."""
    write_deltalake(table_of(services), pa.table(columns), mode="append", schema_mode="merge")


def log_of(services: SystemResources) -> Path:
    """Where the table's log lies."""
    return Path(services.user_activity.store.url) / "_delta_log"
