"""Rules for a Delta table's columns (types that any Delta reader knows, changes that only add), and its commits.

delta-rs itself would cast 1.5 to 1, wrap 200 into a signed byte, and for a time without a zone enable a table feature
that many readers lack. So every column is checked against the table before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from deltalake import Schema as DeltaSchema

from ingest_project.core.errors import SchemaConflictError
from ingest_project.platform.delta import TableFigures

WAY_OUT = "Declare the column as the table has it, or name another Delta table in the declaration"
BATCH_ROWS = 65_536
DECLARED_BITS = 64
IN_DECLARATIONS = {
    "string": "text",
    "bool": "boolean",
    "date32[day]": "date",
    "timestamp[us, tz=UTC]": "timestamp",
    "timestamp[us]": "timestamp without a time zone",
}
# Spark refuses a table with such a column name unless column mapping is on, which few readers support.
FORBIDDEN_IN_NAMES = re.compile(r"[ ,;{}()\n\t=]")
UTC_MICROSECONDS = pa.timestamp("us", "UTC")
SAME_IN_DELTA = (
    pa.types.is_boolean,
    pa.types.is_signed_integer,
    pa.types.is_float32,
    pa.types.is_float64,
    pa.types.is_date32,
    pa.types.is_decimal128,
)
AS_ONE_TYPE: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...] = (
    (pa.types.is_string, pa.string()),
    (pa.types.is_large_string, pa.string()),
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_binary, pa.binary()),
    (pa.types.is_large_binary, pa.binary()),
    (pa.types.is_binary_view, pa.binary()),
    (pa.types.is_fixed_size_binary, pa.binary()),
)
LIST_LIKE = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_fixed_size_list)
# These operations keep every row. Any other one, including an unknown one, may remove rows.
ONLY_ADDS = frozenset({"WRITE", "STREAMING UPDATE"})
KEEPS_ROWS = frozenset(
    {
        "CREATE TABLE",
        "OPTIMIZE",
        "VACUUM START",
        "VACUUM END",
        "SET TBLPROPERTIES",
        "UNSET TBLPROPERTIES",
        "ADD COLUMN",
        "ADD COLUMNS",
        "ADD CONSTRAINT",
        "DROP CONSTRAINT",
        "ADD FEATURE",
        "UPDATE TABLE METADATA",
        "UPDATE FIELD METADATA",
    }
)
MAX_NAMED = 5
# Reading a commit reads one file of the log: beyond this number, counting the rows is faster.
MAX_CHECKED = 1_000


def rows_to_append(data: pa.Table, table_schema: DeltaSchema, table: str) -> tuple[pa.RecordBatchReader, bool]:
    """Return the rows to write, and True if their columns differ from the table's.

    Args:
        data: the rows.
        table_schema: columns of the table.
        table: address of the table, for messages.

    Raises:
        SchemaConflictError: the rows do not fit the table.
    """
    held, given = pa.schema(table_schema), delta_schema(data.schema, table)
    check_only_adds(held, given, table)
    _check_required(held, given, table)
    rows = ready_to_append(data, given)
    # Pass batches: a partitioned write would copy a whole table, 830 MiB instead of 490 for a million rich rows.
    batches = rows.to_batches(max_chunksize=BATCH_ROWS)
    return pa.RecordBatchReader.from_batches(rows.schema, batches), column_paths(held) != column_paths(given)


def delta_schema(schema: pa.Schema, table: str) -> pa.Schema:
    """Return the columns as Delta stores them: all nullable, times in UTC, columns of the null type left out.

    Args:
        schema: schema of the data.
        table: address of the table, for messages.

    Raises:
        SchemaConflictError: a column has a type that Delta lacks, or a name that Delta readers refuse.
    """
    kept = [field for field in schema if not pa.types.is_null(field.type)]
    _check_names([field.name for field in kept], "", table)
    return pa.schema([pa.field(field.name, _delta_type(field.type, field.name, table)) for field in kept])


def check_only_adds(table_schema: pa.Schema, data_schema: pa.Schema, table: str) -> None:
    """Require that data fit a table or only add columns (or struct fields). Both schemas come from `delta_schema`.

    Raises:
        SchemaConflictError: a column has another type, or a new name differs from an existing one only in case.
    """
    _check_fields(list(table_schema), list(data_schema), "", table)


def column_paths(schema: pa.Schema) -> frozenset[str]:
    """Return the path of every column and of every field inside columns."""
    return frozenset(path for field in schema for path in _paths(field.type, field.name))


def ready_to_append(data: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the data with the columns of `delta_schema`; only columns that delta-rs cannot write are copied."""
    data = data.select(schema.names)
    for index, field in enumerate(schema):
        if _must_be_cast(data.schema.field(index).type):
            # Truncate nanoseconds to microseconds, Delta's resolution.
            data = data.set_column(index, field, data.column(index).cast(field.type, safe=False))
    return data


class History:
    """The commits that a table's log still contains, read once and only as far back as needed.

    A restore, a delete or an overwrite, by any program, may remove rows. Delta keeps a stream's position through all of
    these, so the owner of a position checks the commits too.
    """

    def __init__(self, table: DeltaTable) -> None:
        self._table = table
        self._newest = table.version()
        self._commits: dict[int, dict[str, Any]] = {}
        self._read = 0

    def doubtful_commits(self, checked: int | None) -> tuple[str, ...]:
        """Return the commits after a version that may have removed rows, newest first, at most MAX_NAMED.

        Args:
            checked: the version up to which the commits have been checked; None to check the whole log.
        """
        wanted = self._newest - (-1 if checked is None else checked)
        self._read_back(min(wanted, MAX_CHECKED))
        oldest = min(self._commits, default=self._newest + 1) if checked is None else checked + 1
        found: list[str] = []
        for version in range(self._newest, oldest - 1, -1):
            if len(found) == MAX_NAMED:
                break
            if version not in self._commits:
                return (*found, f"version {version} and those before it were not checked")
            if not _keeps_rows(self._commits[version]):
                found.append(f"{self._commits[version].get('operation', 'unnamed')} (version {version})")
        return tuple(found)

    def _read_back(self, entries: int) -> None:
        if entries > self._read:
            self._commits = {int(entry["version"]): entry for entry in self._table.history(entries)}
            self._read = entries


def _keeps_rows(commit: dict[str, Any]) -> bool:
    operation, parameters = commit.get("operation"), commit.get("operationParameters") or {}
    if operation in ONLY_ADDS:
        return str(parameters.get("mode") or parameters.get("outputMode")).lower() == "append"
    return operation in KEEPS_ROWS


def figures_of(table: DeltaTable) -> TableFigures:
    """Return the figures of an open handle; reads nothing from the store."""
    adds = pa.table(table.get_add_actions(flatten=True))
    counts = adds["num_records"]
    rows = None if counts.null_count else pc.sum(counts).as_py() or 0
    return TableFigures(table.version(), adds.num_rows, rows, pc.sum(adds["size_bytes"]).as_py() or 0)


def _delta_type(arrow: pa.DataType, path: str, table: str) -> pa.DataType:
    if any(same(arrow) for same in SAME_IN_DELTA):
        return arrow
    for matches, one_type in AS_ONE_TYPE:
        if matches(arrow):
            return one_type
    if pa.types.is_timestamp(arrow) and arrow.tz is not None:
        return UTC_MICROSECONDS
    # A dictionary of string views cannot be decoded: pyarrow refuses, and delta-rs panics.
    if pa.types.is_dictionary(arrow) and not pa.types.is_string_view(arrow.value_type):
        return _delta_type(arrow.value_type, path, table)
    return _nested_type(arrow, path, table)


def _nested_type(arrow: pa.DataType, path: str, table: str) -> pa.DataType:
    if any(is_list(arrow) for is_list in LIST_LIKE):
        return pa.list_(_delta_type(arrow.value_type, f"{path}[]", table))
    if pa.types.is_map(arrow):
        return pa.map_(
            _delta_type(arrow.key_type, f"{path}.key", table), _delta_type(arrow.item_type, f"{path}.value", table)
        )
    if pa.types.is_struct(arrow) and arrow.num_fields:
        _check_names([field.name for field in arrow], f"{path}.", table)
        return pa.struct(
            [pa.field(field.name, _delta_type(field.type, f"{path}.{field.name}", table)) for field in arrow]
        )
    raise SchemaConflictError(table, path, f"{arrow} has no type in Delta; {_remedy(arrow)}")


def _remedy(arrow: pa.DataType) -> str:
    if pa.types.is_timestamp(arrow):
        return "add a time zone"
    if pa.types.is_unsigned_integer(arrow):
        return "cast it to a signed type that holds all its values"
    return "cast it first"


def _check_names(names: list[str], prefix: str, table: str) -> None:
    folded: set[str] = set()
    for name in names:
        if not name or FORBIDDEN_IN_NAMES.search(name):
            raise SchemaConflictError(table, prefix + name, "its name is empty or has one of ' ,;{}()=' in it")
        if name.lower() in folded:
            raise SchemaConflictError(table, prefix + name, "another column has this name, but for its case")
        folded.add(name.lower())


def _check_fields(old: Iterable[pa.Field], new: Iterable[pa.Field], prefix: str, table: str) -> None:
    known = {field.name.lower(): field for field in old}
    for field in new:
        before = known.get(field.name.lower())
        if before is None:
            continue
        if before.name != field.name:
            raise SchemaConflictError(
                table, prefix + field.name, f"the table has {before.name!r}: only the case differs. {WAY_OUT}"
            )
        _check_type(before.type, field.type, prefix + field.name, table)


def _check_type(old: pa.DataType, new: pa.DataType, path: str, table: str) -> None:
    if pa.types.is_struct(old) and pa.types.is_struct(new):
        _check_fields(list(old), list(new), f"{path}.", table)
    elif pa.types.is_list(old) and pa.types.is_list(new):
        _check_type(old.value_type, new.value_type, f"{path}[]", table)
    elif pa.types.is_map(old) and pa.types.is_map(new):
        _check_type(old.key_type, new.key_type, f"{path}.key", table)
        _check_type(old.item_type, new.item_type, f"{path}.value", table)
    elif old != new:
        reason = f"the table holds {declared_type(old)}, the new rows {declared_type(new)}. {WAY_OUT}"
        raise SchemaConflictError(table, path, reason)


def declared_type(arrow: pa.DataType) -> str:
    """Return a type as declarations name it, or in similar words if declarations have no name for it.

    Args:
        arrow: type as `delta_schema` returns it.
    """
    if pa.types.is_decimal(arrow):
        return f"decimal({arrow.precision},{arrow.scale})"
    if pa.types.is_integer(arrow) or pa.types.is_floating(arrow):
        name = "number" if pa.types.is_floating(arrow) else "integer"
        return name if arrow.bit_width == DECLARED_BITS else f"{name} of {arrow.bit_width} bits"
    if pa.types.is_list(arrow):
        return f"list of {declared_type(arrow.value_type)}"
    if pa.types.is_map(arrow):
        return f"map of {declared_type(arrow.key_type)} to {declared_type(arrow.item_type)}"
    if pa.types.is_struct(arrow):
        return f"record of {', '.join(f'{one.name} {declared_type(one.type)}' for one in arrow)}"
    return IN_DECLARATIONS.get(str(arrow), str(arrow))


def _check_required(held: pa.Schema, given: pa.Schema, table: str) -> None:
    """Refuse rows without a column that the table requires."""
    for field in held:
        if not field.nullable and field.name not in given.names:
            raise SchemaConflictError(
                table, field.name, f"the table requires a value, and the new rows have none. {WAY_OUT}"
            )


def _paths(arrow: pa.DataType, path: str) -> Iterator[str]:
    yield path
    for index in range(arrow.num_fields):
        # Writers name the item field of a list differently.
        name = arrow.field(index).name if pa.types.is_struct(arrow) else str(index)
        yield from _paths(arrow.field(index).type, f"{path}.{name}")


def _must_be_cast(arrow: pa.DataType) -> bool:
    """Return True for times with another zone or unit, which delta-rs refuses, and for dictionaries."""
    if pa.types.is_timestamp(arrow):
        return bool(arrow != UTC_MICROSECONDS)
    if pa.types.is_dictionary(arrow):
        return True
    return any(_must_be_cast(arrow.field(index).type) for index in range(arrow.num_fields))
