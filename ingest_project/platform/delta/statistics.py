"""What a Delta table's log tells of it, for metadata and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deltalake import DeltaTable


@dataclass(frozen=True)
class TableFigures:
    """A table at one version. `rows` is None when a writer left its files uncounted."""

    table_version: int
    files: int
    rows: int | None
    size_bytes: int


def figures_of(table: DeltaTable) -> TableFigures:
    """The figures of an open handle; reads nothing from the store."""
    import pyarrow as pa  # noqa: PLC0415 - heavy
    import pyarrow.compute as pc  # noqa: PLC0415

    adds = pa.table(table.get_add_actions(flatten=True))
    counts = adds["num_records"]
    rows = None if counts.null_count else pc.sum(counts).as_py() or 0
    return TableFigures(table.version(), adds.num_rows, rows, pc.sum(adds["size_bytes"]).as_py() or 0)
