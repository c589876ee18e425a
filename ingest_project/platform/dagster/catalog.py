"""Describe data for Dagster: topics as external assets, tables as metadata, stored rows as inputs of other assets.

Dagster never materialises external assets. Each capability lists its topics, sources and views, so that the lineage
graph shows the whole path of the data: from a topic to an asset, from an asset to the next topic, and to a table.

An asset that takes one of this project's assets as an argument gets its rows, for one partition, several or all; the
argument's annotation selects the type. Each capability lists its tables. The I/O manager only reads: the project's own
assets store their rows themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import dagster as dg
import polars as pl
import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.dialects import postgresql

from ingest_project.contracts.tables import meaning_of
from ingest_project.core.items import end_of, parse_hour_key
from ingest_project.core.settings import Settings, TopicSettings
from ingest_project.platform.database import reading
from ingest_project.platform.database.sql import ExactDecimal, Texts, UtcTime, in_parts
from ingest_project.platform.delta.table import DeltaStore, query_events
from ingest_project.platform.runtime import Runtime

KAFKA = dg.AssetKey("kafka")
IO_MANAGER_KEY = "stored_rows"
ROWS_AT_A_TIME = 50_000
_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's dialects have no annotations


def broker(settings: Settings) -> dg.AssetSpec:
    """Describe the Kafka cluster that keeps the topics."""
    servers = settings.kafka.bootstrap_servers
    return dg.AssetSpec(
        KAFKA,
        description="The Kafka cluster that keeps the topics.",
        group_name="kafka",
        kinds={"kafka"},
        metadata={"dagster/uri": f"kafka://{servers}"} if servers else {},
    )


def topic_key(setting: str) -> dg.AssetKey:
    """Return the asset key of a topic, which does not depend on the topic's configured name.

    Args:
        setting: field of the topic settings, e.g. `polling_queue`.
    """
    return dg.AssetKey(["kafka", setting])


def topic_uri(settings: Settings, name: str) -> str:
    """Return the address of a topic of the main cluster; empty if no cluster is set."""
    servers = settings.kafka.bootstrap_servers
    return f"kafka://{servers}/{name}" if servers else ""


def topic(
    settings: Settings, setting: str, *, group: str, deps: Iterable[dg.AssetKey] = (), cluster: dg.AssetKey = KAFKA
) -> dg.AssetSpec:
    """Describe one topic.

    Args:
        settings: settings with the topic's name and the cluster's address.
        setting: field of the topic settings.
        group: asset group of the capability that reads or writes the topic.
        deps: assets that write to the topic.
        cluster: asset key of the cluster that stores the topic.
    """
    name = getattr(settings.topics, setting)
    address = topic_uri(settings, name)
    uri = {"dagster/uri": address} if address and cluster == KAFKA else {}
    return dg.AssetSpec(
        topic_key(setting),
        deps=[cluster, *deps],
        description=f"Topic {name}: {TopicSettings.model_fields[setting].description}.",
        group_name=group,
        kinds={"kafka"},
        metadata={"topic": name, **uri},
    )


def freshness_within(hours: float | None, warn_after_hours: float | None = None) -> dg.FreshnessPolicy | None:
    """Return a policy that fails after `hours` without a materialisation and warns at 5/8 of them by default."""
    if hours is None:
        return None
    warn_window = timedelta(hours=warn_after_hours or hours * 5 / 8)
    return dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=hours), warn_window=warn_window)


def running_schedule(
    name: str, job: dg.JobDefinition | dg.UnresolvedAssetJobDefinition, cron: str
) -> dg.ScheduleDefinition:
    """Return a schedule that is enabled by default."""
    return dg.ScheduleDefinition(
        name=name, job=job, cron_schedule=cron, default_status=dg.DefaultScheduleStatus.RUNNING
    )


def table_metadata(table: sa.Table) -> dict[str, Any]:
    """Return the name and the columns (with PostgreSQL's type names) of a warehouse table as an asset's metadata."""
    columns = [
        dg.TableColumn(
            column.name,
            column.type.compile(_DIALECT).lower(),
            description=column.doc or column.comment or meaning_of(table.name, column.name),
            constraints=dg.TableColumnConstraints(nullable=bool(column.nullable)),
        )
        for column in table.columns
    ]
    return {"dagster/table_name": table.name, "dagster/column_schema": dg.TableSchema(columns)}


def delta_metadata(name: str, schema: pa.Schema, descriptions: Mapping[str, str]) -> dict[str, Any]:
    """Return the name and the columns of a Delta table, as an asset's metadata.

    Args:
        name: name of the table.
        schema: columns of the table.
        descriptions: descriptions of the columns that a user declared.
    """
    columns = [
        dg.TableColumn(one.name, str(one.type), descriptions.get(one.name) or meaning_of(name, one.name))
        for one in schema
    ]
    return {"dagster/table_name": name, "dagster/column_schema": dg.TableSchema(columns)}


@dataclass(frozen=True)
class SqlTable:
    """Location of an asset's rows in the warehouse.

    Args:
        table: table that holds the rows.
        partition_column: column that identifies the partition; None if the asset has no partitions.
        partition_value: converts a partition key to the column's value.
    """

    table: sa.Table
    partition_column: str | None = None
    partition_value: Callable[[str], Any] = str

    def metadata(self) -> dict[str, Any]:
        """Return the table's name and columns for the asset's page."""
        return table_metadata(self.table)

    def read(self, services: Runtime, partitions: Sequence[str] | None) -> pl.DataFrame:
        """Read the rows of these partitions, or of all for None.

        Raises:
            DatabaseUnavailableError: the warehouse does not answer.
        """
        frames = [_frame(rows, self.table) for rows in self._rows(services.engine, partitions)]
        return exact_decimals(pl.concat(frames) if frames else _frame([], self.table), self.table)

    def _rows(self, engine: Engine, partitions: Sequence[str] | None) -> Iterator[Sequence[sa.Row[Any]]]:
        with reading(engine) as connection:
            streamed = connection.execution_options(stream_results=True)
            for query in self._queries(partitions):
                yield from streamed.execute(query).partitions(ROWS_AT_A_TIME)

    def _queries(self, partitions: Sequence[str] | None) -> Iterator[sa.Select[Any]]:
        query = sa.select(self.table)
        if partitions is None or self.partition_column is None:
            yield query
            return
        column = self.table.c[self.partition_column]
        for part in in_parts(partitions):
            yield query.where(column.in_([self.partition_value(key) for key in part]))


@dataclass(frozen=True)
class HourlyDeltaTable:
    """Location of the rows of an hourly partitioned asset in a Delta table.

    Args:
        name: name of the table.
        store: store of the table.
        schema: its columns.
        time_column: column with the time that determines a row's hour.
        day_column: column with the `yyyy-mm-dd` of that time, by which the table's files are sorted.
        descriptions: of declared columns.
    """

    name: str
    store: Callable[[Any], DeltaStore]
    schema: Callable[[], pa.Schema]
    time_column: str
    day_column: str
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """Return the table's name and columns for the asset's page."""
        return delta_metadata(self.name, self.schema(), self.descriptions)

    def read(self, services: Runtime, partitions: Sequence[str] | None) -> pl.DataFrame:
        """Read the rows of these hours, or of all for None.

        Raises:
            StoreUnavailableError: the table cannot be read.
        """
        where = "true" if partitions is None else " OR ".join(self._of_hour(key) for key in partitions) or "false"
        return _delta_rows(self.store(services), self.schema(), where)

    def _of_hour(self, partition: str) -> str:
        begin = parse_hour_key(partition)
        return (
            f"({self.day_column} = '{begin.date().isoformat()}' AND \"{self.time_column}\" >= '{begin.isoformat()}'"
            f" AND \"{self.time_column}\" < '{end_of(begin).isoformat()}')"
        )


@dataclass(frozen=True)
class DeltaTable:
    """Location of an asset's rows in a Delta table.

    Args:
        name: name of the table.
        store: store of the table.
        schema: its declared columns.
        partition_column: column that identifies the partition.
        descriptions: of declared columns.
    """

    name: str
    store: Callable[[], DeltaStore]
    schema: pa.Schema
    partition_column: str
    descriptions: Mapping[str, str] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """Return the table's name and columns for the asset's page."""
        return delta_metadata(self.name, self.schema, self.descriptions)

    def read(self, services: Runtime, partitions: Sequence[str] | None) -> pl.DataFrame:
        """Read the rows of some partitions; of all of them for None.

        Raises:
            StoreUnavailableError: the table cannot be read.
        """
        keys = ", ".join("'" + key.replace("'", "''") + "'" for key in partitions or ())
        where = "true" if partitions is None else f"{self.partition_column} IN ({keys})" if keys else "false"
        return _delta_rows(self.store(), self.schema, where)


def _delta_rows(store: DeltaStore, schema: pa.Schema, where: str) -> pl.DataFrame:
    batches = list(query_events(store, f"SELECT * FROM events WHERE {where}"))
    found: list[pa.Table | pa.RecordBatch] = [*batches] or [schema.empty_table()]
    return pl.concat([pl.DataFrame(pl.from_arrow(rows)) for rows in found])


StoredTable = SqlTable | HourlyDeltaTable | DeltaTable


class DagsterParts(NamedTuple):
    """The parts of a capability that Dagster loads.

    Args:
        definitions: its assets, checks, jobs, schedules and sensors.
        external_assets: creates the specs of the external data that it reads and writes, e.g. topics and sources.
        stored: tables whose rows other assets can load.
        locations: addresses, without secrets, of the data that assets without a table store.
    """

    definitions: dg.Definitions
    external_assets: Callable[[Settings], Sequence[dg.AssetSpec]] | None = None
    stored: Mapping[dg.AssetKey, StoredTable] = {}
    locations: Mapping[dg.AssetKey, str] = {}


class StoredRowsIOManager(dg.IOManager):
    """Loads the rows of this project's assets as inputs of other assets.

    The annotation of the input selects the type: `pandas.DataFrame` (also without an annotation),
    `polars.DataFrame`, `polars.LazyFrame` or `pyarrow.Table`.

    Args:
        tables: the tables by asset key.
        services: opens the warehouse and the Delta tables; by default those of the process's settings.
    """

    def __init__(self, tables: Mapping[dg.AssetKey, StoredTable], services: Callable[[], Runtime]) -> None:
        self._tables = tables
        self._services = services

    def load_input(self, context: dg.InputContext) -> Any:  # noqa: ANN401 - of the type that the annotation names
        """Read the rows of the input's partitions, or all rows if it has none.

        Raises:
            Failure: the asset has no rows to load.
            TypeError: rows cannot be converted to the annotated type.
        """
        table = self._tables.get(context.asset_key)
        if table is None:
            loadable = ", ".join(sorted(key.to_user_string() for key in self._tables))
            raise dg.Failure(f"{context.asset_key.to_user_string()} has no rows to load. These have: {loadable}.")
        partitions = list(context.asset_partition_keys) if context.has_asset_partitions else None
        return shaped(table.read(self._services(), partitions), context.dagster_type.typing_type)

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Refuse to store: this I/O manager only reads.

        Raises:
            Failure: always.
        """
        raise dg.Failure(
            f"The I/O manager {IO_MANAGER_KEY!r} only reads this project's own tables. Give "
            f"{context.asset_key.to_user_string()} an I/O manager of its own."
        )


def shaped(frame: pl.DataFrame, wanted: Any) -> Any:  # noqa: ANN401 - a type, and a value of it
    """Return the rows as the wanted type: pandas (the default), Polars (eager or lazy) or Arrow.

    Raises:
        TypeError: it is of another type.
    """
    name = f"{getattr(wanted, '__module__', '').split('.')[0]}.{getattr(wanted, '__name__', '')}"
    if name == "polars.DataFrame":
        return frame
    if name == "polars.LazyFrame":
        return frame.lazy()
    if name == "pyarrow.Table":
        return frame.to_arrow()
    if wanted is Any or name == "pandas.DataFrame":
        return frame.to_pandas()
    raise TypeError(f"Rows cannot be given as {name}. Annotate the input as a DataFrame or a pyarrow.Table.")


def _frame(rows: Sequence[sa.Row[Any]], table: sa.Table) -> pl.DataFrame:
    """Build a frame with the table's columns: JSON as text, exact decimals as their digits."""
    forms = [_form(column.type) for column in table.columns]
    schema = {column.name: form.polars_type for column, form in zip(table.columns, forms, strict=True)}
    converted = [[form.convert(value) for form, value in zip(forms, row, strict=True)] for row in rows]
    return pl.DataFrame(converted, schema=schema, orient="row")


@dataclass(frozen=True)
class _Form:
    """The Polars type of a column, and the conversion of its values."""

    polars_type: Any
    convert: Callable[[Any], Any] = lambda value: value


def _text_of(value: Any) -> str | None:  # noqa: ANN401 - any value of a column
    return None if value is None else str(value)


def _json_of(value: Any) -> str | None:  # noqa: ANN401 - any JSON
    return None if value is None else json.dumps(value, ensure_ascii=False)


_FORMS: tuple[tuple[type[sa.types.TypeEngine[Any]], _Form], ...] = (
    (UtcTime, _Form(pl.Datetime("us", "UTC"))),
    (ExactDecimal, _Form(pl.String, _text_of)),
    (sa.Integer, _Form(pl.Int64)),
    (sa.Double, _Form(pl.Float64)),
    (sa.Date, _Form(pl.Date)),
    (sa.LargeBinary, _Form(pl.Binary)),
    (sa.JSON, _Form(pl.String, _json_of)),
)


def _form(column_type: sa.types.TypeEngine[Any]) -> _Form:
    if column_type is Texts:
        return _Form(pl.List(pl.String))
    return next((form for kind, form in _FORMS if isinstance(column_type, kind)), _Form(pl.String))


def exact_decimals(frame: pl.DataFrame, table: sa.Table) -> pl.DataFrame:
    """Turn digits of exact decimals into decimals with the scale of the longest of them."""
    for column in table.columns:
        if isinstance(column.type, ExactDecimal):
            scales = [-int(Decimal(digits).as_tuple().exponent) for digits in frame[column.name].drop_nulls()]
            frame = frame.with_columns(pl.col(column.name).cast(pl.Decimal(38, max([0, *scales]))))
    return frame
