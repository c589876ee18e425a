"""The requirements on the files of a declared dataset, and the tables of its rows and metrics."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import msgspec
import pandera.polars as pandera
import polars as pl
import pyarrow as pa
import sqlalchemy as sa

from ingest_project.contracts.columns import OWN_NAMES, Column
from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.contracts.validation import ValidatedRows, needs_whole_files, row_check, schema_of, validate
from ingest_project.core.errors import SchemaConflictError, SettingsError, StoreUnavailableError
from ingest_project.core.items import digest_of
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.aggregation import NO_INSTANTS, SUMMARY_COLUMNS, summarise
from ingest_project.file_ingest.contract import Contract, Policy, SensorContract, counts_of, location_of, meaning_of
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.warehouse.delta_rows import DeltaRows, delta_store
from ingest_project.file_ingest.warehouse.sql import SENSOR_TABLES, DatasetTables, Schema, SqlWarehouse
from ingest_project.platform.database import open_engine
from ingest_project.platform.database.declared_tables import DeclaredTables, TableKind, View, columns_of_table, sql_type
from ingest_project.platform.database.sql import Double, Json
from ingest_project.readers import RESCUED, Target
from ingest_project.readers.casting import matched_name
from ingest_project.readers.declaration import DatasetDeclaration
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.matching import column_name, spelling_of
from ingest_project.readers.profiles import Profiles, ReaderProfile, load_profiles
from ingest_project.readers.typed_columns import cast_columns

# The row's file and line, and its undeclared columns.
ENGINE_COLUMNS: Schema = {"file_key": pl.String, "line_number": pl.Int64, RESCUED: pl.String}
SUMMARY_SCHEMA: Schema = dict.fromkeys(SUMMARY_COLUMNS, pl.Float64) | {"count": pl.Int64}
TABLES = TableKind(proof="file_key", setting="target.table")
# Columns that drift may add to one table; any further one stays in rescued_data.
MAX_EVOLVED_COLUMNS = 200
LONGEST_NAME = 63
# Name of a repeated column, such as `Temp [2]`: see `readers.matching`.
REPEATED = re.compile(r"(.+) \[[0-9]+\]'*", re.DOTALL)
# A partition is a folder, whose name with the column's has up to 255 bytes; characters other than these take three.
MAX_PARTITION_BYTES, AS_THEY_ARE = 190, r"[A-Za-z0-9_.\-]"
# An entry of a PostgreSQL index has at most 2,704 bytes, including those of numbers and times.
MAX_KEY_BYTES = 2_400
# Delta reads this partition value as null.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# PostgreSQL refuses a whole statement where one product leaves the range of a double. Values below LEAST
# count as zero; a group with a figure above the maximum has no mean or deviation instead of a wrong one.
LEAST, MOST_TO_SUM, MOST_TO_SQUARE = "1e-150", "1e290", "1e145"


@dataclass(frozen=True)
class DeclaredContract(Contract):
    """Requirements on the files of a declared dataset.

    Args:
        declaration: declaration of the dataset.
        profiles: reader profiles that fit it.
        limits: limits of sizes and counts.
        tables: tables of its rows and metrics.
        largest_share: share of bad rows, if it declares none.
        undeclared: columns of the table of rows that are not declared, and whether they are of text.
    """

    declaration: DatasetDeclaration
    profiles: Profiles
    limits: ReadLimits
    tables: DatasetTables
    largest_share: float
    undeclared: dict[str, bool] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, declaration: DatasetDeclaration, settings: Settings) -> DeclaredContract:
        """Return the requirements of a declaration.

        Raises:
            SettingsError: the reader profile that it names does not exist, or does not fit.
        """
        own = settings.file_ingest
        return cls(
            declaration,
            declaration.profiles(load_profiles(own.profiles)),
            ReadLimits.from_settings(own),
            tables_of(declaration, settings),
            own.max_rejected_share,
        )

    @property
    def name(self) -> str:  # type: ignore[override]  # the contract of the shipped dataset has a constant
        """The name of the dataset."""
        return self.declaration.name

    @property
    def target(self) -> Target:  # type: ignore[override]
        """The columns that are read of a file."""
        return self.declaration.read_as

    @property
    def drift(self) -> Policy:  # type: ignore[override]
        """What happens to columns that are not declared."""
        return self.declaration.drift

    @property
    def max_rejected_share(self) -> float:
        """A file with a greater share of bad rows is quarantined whole."""
        share = self.declaration.max_rejected_share
        return self.largest_share if share is None else share

    @property
    def share_setting(self) -> str:  # type: ignore[override]
        """Where the greatest share of bad rows is set."""
        own = self.declaration.max_rejected_share
        return super().share_setting if own is None else f"max_rejected_share of {self.name}"

    @cached_property
    def schema(self) -> pandera.DataFrameSchema:
        """The pandera schema of the rows, with the key, and with the names of partitions that a folder can have."""
        declared = self.declaration
        schema = copy.copy(schema_of(declared.columns, declared.model))
        texts = [one.name for one in declared.typed_columns if one.kind == "text"]
        partitions = [name for name in texts if name in declared.target.partition_by]
        schema.checks = [
            *schema.checks,
            *(row_check(f"{name}_not_a_partition", _is_a_partition(name)) for name in partitions),
        ]
        if declared.key is not None:
            sized = [name for name in declared.key.columns if name in texts]
            if declared.key.unique == "table" and sized:
                schema.checks = [*schema.checks, row_check("key_too_long", _fits_an_index(sized))]
            unique: Any = schema.unique or []
            others = [unique] if unique and isinstance(unique[0], str) else unique
            keys: Any = [*others, list(declared.key.columns)]
            schema.unique = keys
        return schema

    @property
    def needs_whole_files(self) -> bool:
        """True if a rule looks at more than one row: then no file can be checked in parts."""
        return needs_whole_files(self.schema)

    def prepare_tables(self, engine: sa.Engine) -> DatasetTables:
        """Create the tables, or add what is new to them; see `declared_tables`."""
        tables = self.tables
        # Each file reports an unavailable store itself.
        with suppress(StoreUnavailableError):
            self.undeclared.update(self._columns_outside())
        self._in_database(tables).ensure(engine)
        if self.drift == "evolve" and tables.rows is not None:
            self.undeclared.update(
                {name: held == "TEXT" for name, held in columns_of_table(engine, tables.rows.name).items()}
            )
        for name in tables.row_schema:
            self.undeclared.pop(name, None)
        return tables

    def require_fit(self, engine: sa.Engine) -> None:
        """Require that the tables, as far as they exist, take what is declared; nothing is changed."""
        self._columns_outside()
        self._in_database(self.tables).due_changes(engine)

    def _in_database(self, tables: DatasetTables) -> DeclaredTables:
        return DeclaredTables(tables.stored, TABLES, tables.view, evolving=self.drift == "evolve")

    def _columns_outside(self) -> dict[str, bool]:
        """Return the columns of the table outside the database, which must fit, and whether they are of text."""
        elsewhere = self.tables.elsewhere
        present = elsewhere.fitted_columns(self.tables.row_schema) if elsewhere else pa.schema([])
        return {column.name: column.type == pa.string() for column in present}

    def widened(self, engine: sa.Engine, names: Sequence[str]) -> DatasetTables:
        """Return the tables with columns for what drift adds; create those that do not exist."""
        columns = dict.fromkeys(self._evolved_columns(names).values())
        if not columns:
            return self.tables
        tables = with_columns(self.tables, [*columns])
        self._in_database(tables).ensure(engine)
        return tables

    def validated(self, rows: pl.DataFrame, profile: ReaderProfile) -> ValidatedRows:
        """Give the columns their types, and separate the good rows from the bad ones."""
        return validate(cast_columns(rows, self.declaration.typed_columns, profile), self.schema)

    def evolved(self, rows: pl.DataFrame, names: Sequence[Sequence[str]]) -> pl.DataFrame:
        """Move undeclared columns from rescued_data to columns of their own, see `_evolved_columns`."""
        columns = self._evolved_columns([name for own in names for name in without_repeated(own)])
        if not columns:
            return rows
        of_files = [names_of_columns(own, columns) for own in names]
        texts = rows[RESCUED].to_list()
        # Keep numbers as written: a float would change 0.10 and integers above 2^53.
        members = [{} if text is None else msgspec.json.decode(text, type=dict[str, msgspec.Raw]) for text in texts]
        pairs = [(one, of_files[index]) for one, index in zip(members, rows["file_index"], strict=True)]
        moved = [
            pl.Series(column, [_take_text(one, own.get(column)) for one, own in pairs], pl.String)
            for column in dict.fromkeys(columns.values())
        ]
        left = [msgspec.json.encode(one).decode() if one else None for one in members]
        return rows.with_columns(*moved, pl.Series(RESCUED, left, pl.String))

    def rescued(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the undeclared columns of a file that stay in rescued_data although the dataset evolves."""
        if self.drift != "evolve":
            return ()
        moved = names_of_columns(names, self._evolved_columns(without_repeated(names))).values()
        return tuple(name for name in names if name not in moved)

    def _evolved_columns(self, names: Iterable[str]) -> dict[str, str]:
        """Return the column of each undeclared one that gets any; spellings of one name have the same column.

        A name that cannot be a column's has none, nor one of a column of the table that is no text, nor one beyond
        MAX_EVOLVED_COLUMNS.
        """
        if self.drift != "evolve":
            return {}
        taken = {*OWN_NAMES, *(column.name for column in self.declaration.typed_columns)}
        present = {name for name, is_text in self.undeclared.items() if is_text}
        taken |= self.undeclared.keys() - present
        found: dict[str, str] = {}
        forms: dict[str, str] = {}
        for name in sorted(names):
            column = column_name(name)
            usable = column and len(column) <= LONGEST_NAME and column not in taken and not column.startswith("kafka_")
            # A column's name drops characters that it cannot have; names that differ in those are different columns.
            if usable and forms.setdefault(column, spelling_of(name)) == spelling_of(name):
                found[name] = column
        # Of the same table as when this run began: the rows of a group and its tables must have the same columns.
        kept = {*sorted(forms.keys() - present)[: max(0, MAX_EVOLVED_COLUMNS - len(present))]} | present
        return {name: column for name, column in found.items() if column in kept}

    def summarised(self, accepted: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Summarise the measures of each file by their groups."""
        measures = self.declaration.measures
        if measures is None:
            return pl.DataFrame(schema=self.tables.metric_schema), NO_INSTANTS
        return summarise(accepted, ["file_key", *measures.group_by], measures.columns), NO_INSTANTS

    def broken_by_stored(self, rows: pl.DataFrame) -> Mapping[str, int]:
        """Count how often each rule is broken by stored rows."""
        return counts_of(validate(rows, self.schema).rejected)

    def meaning_of(self, profile: ReaderProfile, record: FileRecord) -> str:
        """Hash everything but the bytes that determines the rows of a file."""
        return meaning_of(profile, location_of(record), record.event.kind, self._checked_as)

    @cached_property
    def _checked_as(self) -> Mapping[str, object]:
        """The declaration's rules for checking, which the files of a batch share."""
        return self.declaration.model_dump(mode="json", include={"name", "columns", "model", "key", "drift"})


def tables_of(declaration: DatasetDeclaration, settings: Settings) -> DatasetTables:
    """Return the tables of a dataset; migrations make those of the shipped one."""
    if declaration.name == SENSOR_READINGS:
        return SENSOR_TABLES
    columns = declaration.typed_columns
    row_schema: Schema = {**{column.name: column.polars_type for column in columns}, **ENGINE_COLUMNS}
    table, metrics = declaration.table, _metrics_table(declaration)
    return DatasetTables(
        declaration.name,
        None if table is None else _rows_table(declaration, table),
        metrics,
        row_schema,
        _metric_schema(declaration),
        None if table is not None else DeltaRows(delta_store(declaration, settings)),
        None if metrics is None else merged_view(metrics, f"{metrics.name}_merged"),
    )


def merged_view(metrics: sa.Table, name: str) -> View:
    """Return the view that merges the summaries of all files exactly, as `device_metrics` does, see the migrations."""
    keys = [column.name for column in metrics.columns if column.name not in {"file_key", *SUMMARY_COLUMNS}]
    groups = ", ".join(f'"{key}"' for key in keys)
    # No group can have the name of what is computed on the way: names of columns have no spaces.
    within = _square("stddev")
    between = _square('("mean" - "grand mean")')
    query = f"""
        SELECT {groups}, MIN("min") AS "min", MAX("max") AS "max", MAX("grand mean") AS "mean",
            CAST(SUM("count") AS BIGINT) AS "count",
            CASE WHEN SUM("count") > 1 AND MAX(ABS("mean" - "grand mean")) <= {MOST_TO_SQUARE}
                    AND MAX(COALESCE(ABS(stddev), 0)) <= {MOST_TO_SQUARE} THEN
                SQRT(SUM(("count" - 1) * {within} + "count" * {between}) / (SUM("count") - 1))
            END AS stddev
        FROM (SELECT summed.*,
                CASE WHEN MAX(ABS("mean")) OVER merged <= {MOST_TO_SUM} THEN
                    SUM("own weight") OVER merged / SUM("count") OVER merged
                END AS "grand mean"
            FROM (SELECT {metrics.name}.*,
                    CASE WHEN ABS("mean") BETWEEN {LEAST} AND {MOST_TO_SUM} THEN "mean" * "count"
                        ELSE 0 END AS "own weight"
                FROM {metrics.name}) AS summed
            WINDOW merged AS (PARTITION BY {groups})) AS each_file
        GROUP BY {groups}"""
    return View(name, metrics.name, query, (*keys, *SUMMARY_COLUMNS))


def _square(value: str) -> str:
    return f"CASE WHEN ABS({value}) BETWEEN {LEAST} AND {MOST_TO_SQUARE} THEN {value} * {value} ELSE 0 END"


def with_columns(tables: DatasetTables, names: Sequence[str]) -> DatasetTables:
    """Return the tables with further columns of text."""
    row_schema = dict(tables.row_schema) | dict.fromkeys(names, pl.String)
    if tables.rows is None:
        return replace(tables, row_schema=row_schema)
    columns = [sa.Column(column.name, column.type, nullable=column.nullable) for column in tables.rows.columns]
    table = _table(tables.rows.name, [*columns, *(sa.Column(name, sa.Text) for name in names)], "brin")
    for index in (index for index in tables.rows.indexes if index.unique):
        _keep_unique(table, [column.name for column in index.columns])
    return replace(tables, row_schema=row_schema, rows=table)


def without_repeated(names: Sequence[str]) -> list[str]:
    """Return the undeclared columns of a file but those of a name that occurs before: `temp [2]` next to `Temp`."""
    known = {matched_name(name) for name in names}
    repeated = {name: match[1] for name in names if (match := REPEATED.fullmatch(name))}
    return [name for name in names if name not in repeated or matched_name(repeated[name]) not in known]


def names_of_columns(names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the one undeclared column of a file that each column of the table takes.

    Of two spellings of one name it is the very name of the column, else the first one.

    Args:
        names: names of the undeclared columns of the file, in order.
        columns: the column of each that has one.
    """
    found: dict[str, str] = {}
    for name in without_repeated(names):
        column = columns.get(name)
        if column is not None and (column not in found or name == column):
            found[column] = name
    return found


def _take_text(fields: dict[str, msgspec.Raw], name: str | None) -> str | None:
    """Take a field out of others: a JSON text as its characters, anything else as JSON."""
    written = "null" if name is None else bytes(fields.pop(name, b"null")).decode().strip()
    if written == "null":
        return None
    return str(msgspec.json.decode(written)) if written.startswith('"') else written


def _sql_column(column: Column) -> sa.Column[Any]:
    return sa.Column(column.name, sql_type(column), nullable=not column.required, doc=column.description or None)


def _rows_table(declaration: DatasetDeclaration, name: str) -> sa.Table:
    table = _table(name, [*map(_sql_column, declaration.typed_columns), *_engine_columns()], "brin")
    if declaration.key and declaration.key.unique == "table":
        _keep_unique(table, declaration.key.columns)
    return table


def _keep_unique(table: sa.Table, columns: Sequence[str]) -> None:
    sa.Index(_index_of(table.name, "key"), *(table.c[name] for name in columns), unique=True)


def _index_of(table: str, ending: str) -> str:
    """Return the name of an index; a longer one than PostgreSQL takes begins with a hash of the table's name."""
    name = f"{table}_{ending}"
    return name if len(name) <= LONGEST_NAME else f"table_{digest_of(table)}_{ending}"


def _engine_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("file_key", sa.Text, nullable=False),
        sa.Column("line_number", sa.BigInteger, nullable=False),
        sa.Column(RESCUED, Json),
    ]


def _table(name: str, columns: Sequence[sa.Column[Any]], index: str) -> sa.Table:
    """Return a table with an index of its files; of the rows one that costs nothing to write, see the migration."""
    bloom: Any = {}
    if index == "brin":
        bloom = {
            "postgresql_using": "brin",
            "postgresql_ops": {"file_key": "text_bloom_ops (n_distinct_per_range = 256)"},
            "postgresql_with": {"pages_per_range": 64, "autosummarize": "on"},
        }
    by_file = sa.Index(_index_of(name, "by_file"), "file_key", *(("line_number",) if index == "brin" else ()), **bloom)
    return sa.Table(name, sa.MetaData(), *columns, by_file)


def _metric_schema(declaration: DatasetDeclaration) -> Schema:
    types = {column.name: column.polars_type for column in declaration.typed_columns}
    groups = declaration.measures.group_by if declaration.measures else ()
    grouped: Schema = {"file_key": pl.String, **{name: types[name] for name in groups}, "measure": pl.String}
    return {**grouped, **SUMMARY_SCHEMA}


def _metrics_table(declaration: DatasetDeclaration) -> sa.Table | None:
    if declaration.metrics_table is None or declaration.measures is None:
        return None
    columns = {column.name: column for column in declaration.typed_columns}
    groups = [
        _sql_column(columns[name].model_copy(update={"required": False})) for name in declaration.measures.group_by
    ]
    figures = [sa.Column(name, sa.BigInteger if name == "count" else Double) for name in SUMMARY_COLUMNS]
    key = sa.Column("file_key", sa.Text, nullable=False)
    return _table(declaration.metrics_table, [key, *groups, sa.Column("measure", sa.Text), *figures], "btree")


def contract_of(services: FileIngestResources, dataset: str) -> Contract:
    """Return the requirements on the files of a dataset.

    Raises:
        SettingsError: its reader profile, or the file of sensor types, cannot be used.
    """
    if dataset == SENSOR_READINGS:
        return SensorContract.from_settings(services.settings.file_ingest)
    return DeclaredContract.of(services.datasets[dataset], services.settings)


def refused_by_tables(declarations: Iterable[DatasetDeclaration], settings: Settings) -> Iterator[str]:
    """Yield the conflicts of existing tables with declarations, without changing anything.

    Raises:
        DatabaseUnavailableError, StoreUnavailableError: the database, or the store of a Delta table, does not answer.
    """
    engine = open_engine(settings.warehouse.database_url, settings.warehouse.connect_timeout_seconds)
    try:
        for declaration in declarations:
            try:
                DeclaredContract.of(declaration, settings).require_fit(engine)
            except (SchemaConflictError, SettingsError) as error:
                yield f"The dataset {declaration.name}: {error}"
    finally:
        engine.dispose()


def warehouse_of(services: FileIngestResources, dataset: str) -> SqlWarehouse | None:
    """Return the warehouse with the tables of a dataset; None where it is not declared any more."""
    declaration = services.datasets.get(dataset)
    return None if declaration is None else services.warehouse.of(tables_of(declaration, services.settings))


def _fits_an_index(names: Sequence[str]) -> pl.Expr:
    return pl.sum_horizontal(pl.col(name).str.len_bytes() for name in names) <= MAX_KEY_BYTES


def _is_a_partition(name: str) -> pl.Expr:
    text = pl.col(name)
    size = text.str.len_bytes().cast(pl.Int64) * 3 - text.str.count_matches(AS_THEY_ARE).cast(pl.Int64) * 2
    return ((size <= MAX_PARTITION_BYTES) & (text != NULL_PARTITION)).fill_null(value=True)
