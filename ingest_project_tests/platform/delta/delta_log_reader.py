"""A reader of Delta tables of our own, from the protocol's text alone: the log replayed here, the files read by DuckDB.

It knows no table feature at all, so a table that it can read is one that any Delta reader can.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq


def live_files(table: Path) -> dict[str, dict[str, str | None]]:
    """The data files of the newest version: path below the table, and the values of its partition."""
    files: dict[str, dict[str, str | None]] = {}
    for action in _actions(table / "_delta_log"):
        if protocol := action.get("protocol"):
            assert protocol["minReaderVersion"] == 1, "readable without any table feature"
        if added := action.get("add"):
            files[unquote(added["path"])] = dict(added["partitionValues"] or {})
        if removed := action.get("remove"):
            files.pop(unquote(removed["path"]), None)
    return files


def rows_of(table: Path) -> pa.Table:
    """Every row of the newest version, the columns of its partition as text."""
    selects = []
    for path, partition in live_files(table).items():
        values = "".join(
            f", {'NULL' if value is None else repr(value)} AS {column}" for column, value in partition.items()
        )
        selects.append(f"SELECT *{values} FROM read_parquet('{table / path}', hive_partitioning = false)")
    with duckdb.connect() as connection:
        return connection.sql(" UNION ALL BY NAME ".join(selects)).to_arrow_table()


def _actions(log: Path) -> Iterator[dict[str, Any]]:
    start = 0
    if (pointer := log / "_last_checkpoint").exists():
        start = int(json.loads(pointer.read_text())["version"])
        yield from pq.read_table(log / f"{start:020}.checkpoint.parquet").to_pylist(maps_as_pydicts="strict")
        start += 1
    for entry in sorted(log.glob("*.json")):
        if int(entry.stem) >= start:
            yield from map(json.loads, entry.read_text().splitlines())
