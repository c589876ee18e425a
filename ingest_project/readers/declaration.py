"""The declaration of one dataset, and the checks that it fits together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from ingest_project.contracts.columns import Column, Owners
from ingest_project.contracts.files import (
    INGESTIBLE_TYPES,
    SENSOR_READINGS,
    FileEvent,
    is_readable,
    profile_named,
    type_inside,
)
from ingest_project.core.errors import SettingsError
from ingest_project.core.yaml_models import ContradictionsError, Declared, nearest, within
from ingest_project.readers import READINGS, Target
from ingest_project.readers.profiles import Profiles, ReaderProfile
from ingest_project.readers.reading import READERS

NAME = r"^[a-z][a-z0-9_]{0,39}$"
TABLE = r"^[a-z_][a-z0-9_]{0,59}$"
# Names that are taken by a job, an operation or assets.
TAKEN_NAMES = frozenset(
    {
        *("attachment_events", "attachments", "crm", "downloads", "file", "file_ingest", "files", "kafka", "polling"),
        *("source", "user_activity", "user_activity_hourly"),
    }
)
OWN_TABLES = frozenset(
    {
        *("activity_hour_spans", "activity_hours", "aggregated_metrics", "alembic_version", "alert_leases"),
        *("alert_messages", "alert_samples", "attachment_events", "attachment_replays", "attachments", "contents"),
        *("device_metrics", "download_outcomes", "eventhouse_positions", "file_statistics", "files"),
        *("ignored_notifications", "incidents"),
        *("lost_offsets", "metric_minutes", "metric_progress", "metric_totals", "operator_action_items"),
        *("operator_actions", "opportunities", "outbox", "paused_capabilities", "polling_jobs", "projects"),
        *("quarantined_rows", "raw_sensor_data", "sink_positions", "skipped_offsets", "stream_hour_spans"),
        *("stream_hours", "unidentified_messages", "user_activity_hourly"),
    }
)
GROUPABLE = frozenset({"text", "integer", "boolean", "date"})
MEASURABLE = frozenset({"integer", "number", "decimal"})


OPTIONS_OF_READER = {
    "type": ["string", "object", "null"],
    "propertyNames": {"enum": sorted(ReaderProfile.model_fields.keys() - {"name", "dataset"})},
}


class Key(Declared):
    """The columns that identify a row.

    Args:
        columns: their names.
        unique: `file` rejects rows whose key another row of the file has; `table` also rejects a file with a key that
            is stored already.
    """

    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    unique: Literal["file", "table"] = "file"


class StoredIn(Declared):
    """Where the rows go: a table of the warehouse, or a Delta table.

    Args:
        table: in the warehouse; the name of the dataset by default.
        delta: folder, s3:// or OneLake address; a plain name is a folder in delta/ of the state folder.
        partition_by: columns whose values make the folders of the Delta table.
    """

    table: Annotated[str, Field(pattern=TABLE)] | None = None
    delta: str | None = None
    partition_by: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.table and self.delta:
            raise ValueError("name a table or a Delta table, not both")
        if self.partition_by and not self.delta:
            raise ValueError("partition_by is for Delta tables")
        return self


class Measures(Declared):
    """Numbers that are summarised for each file.

    Args:
        columns: the numbers.
        group_by: the columns to group by.
    """

    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    group_by: tuple[str, ...] = ()


class DatasetDeclaration(Declared):
    """A kind of file: its rows, their target, and the files that belong to it.

    Args:
        name: name of the dataset, its assets and its tables; that of its folder by default.
        description: shown to users.
        file_types: endings of the files that are accepted.
        reader: options of a reader profile, or the name of one.
        columns: columns of a row.
        model: a pandera model instead of columns, as `package.module:Class`.
        key: columns that identify a row.
        target: where the rows go.
        measures: numbers that are summarised for each file.
        max_rejected_share: a file with a greater share of bad rows is quarantined whole; else the setting.
        drift: policy for undeclared columns: `rescue` keeps them as JSON in rescued_data, `evolve`
            adds them to the table as text, `freeze` quarantines the file.
        fresh_within_hours: its assets are overdue after so long without a file, and warn at five eighths; null for
            never.
        owners: addresses or teams, as Dagster has them.
        jobs: polling jobs whose files belong to it, as patterns.
        paths: paths of files that belong to it, as patterns.
    """

    name: Annotated[str, Field(pattern=NAME)] = ""
    description: str = ""
    file_types: Annotated[tuple[str, ...], Field(min_length=1)] = INGESTIBLE_TYPES
    # Null where all options are comments.
    reader: Annotated[
        str | dict[str, Any], BeforeValidator(lambda given: given or {}), WithJsonSchema(OPTIONS_OF_READER)
    ] = Field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    model: str | None = None
    key: Key | None = None
    target: StoredIn = StoredIn()
    measures: Measures | None = None
    max_rejected_share: float | None = Field(None, ge=0, le=1)
    drift: Literal["rescue", "evolve", "freeze"] = "rescue"
    fresh_within_hours: float | None = Field(48, ge=0.1, le=100_000)
    owners: Owners = ()
    jobs: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*self._name_problems(), *self._column_problems(), *self._type_problems()]:
            raise ContradictionsError(problems)
        return self

    @cached_property
    def typed_columns(self) -> tuple[Column, ...]:
        """The columns of a row, declared here or in the model.

        Raises:
            ValueError: there is no such model.
        """
        if self.model is None:
            return self.columns
        from ingest_project.contracts.validation import columns_of, model_named  # loads pandera

        return columns_of(model_named(self.model))

    @property
    def table(self) -> str | None:
        """The table of the rows in the warehouse; None if they are in a Delta table."""
        return None if self.target.delta else self.target.table or self.name

    @property
    def metrics_table(self) -> str | None:
        """The table of the summaries; None where nothing is summarised."""
        return f"{self.name}_metrics" if self.measures else None

    @property
    def profile(self) -> str:
        """The name of the reader profile of files whose event names none."""
        return self.reader if isinstance(self.reader, str) else self.name

    @cached_property
    def read_as(self) -> Target:
        """The columns that are read of a file."""
        columns = self.typed_columns
        if self.name == SENSOR_READINGS:
            return READINGS
        return Target(
            columns=tuple(column.name for column in columns),
            required=frozenset(column.name for column in columns if column.required),
            keep_unknown=True,
            numbers=frozenset(column.name for column in columns if column.kind in MEASURABLE),
            documents=frozenset(column.name for column in columns if column.kind == "json"),
        )

    @cached_property
    def own_profile(self) -> ReaderProfile | None:
        """The reader profile that is declared here; None where another one is named."""
        if isinstance(self.reader, str):
            return None
        try:
            return ReaderProfile.model_validate({"name": self.name or "dataset", "dataset": self.name, **self.reader})
        except ValidationError as error:
            raise within("reader", error) from None

    def profile_of(self, metadata: Mapping[str, Any], default: str) -> str:
        """Return the name of a file's reader profile.

        Args:
            metadata: metadata of its event.
            default: profile of sensor readings whose event names none.
        """
        return profile_named(metadata, default if self.name == SENSOR_READINGS else self.profile)

    def profiles(self, known: Profiles) -> Profiles:
        """Return the known reader profiles that fit this dataset, and its own one.

        Raises:
            SettingsError: the profile that it names does not exist, or does not fit.
        """
        own = {self.name: self.own_profile} if self.own_profile else {}
        usable = known.of_dataset(self.name) | own
        if self.profile not in usable:
            other = f" (it has `dataset: {known[self.profile].dataset}`)" if self.profile in known else ""
            raise SettingsError(
                f"The dataset {self.name} names the reader profile {self.profile!r}, and there is no usable one of that"
                f" name with `dataset: {self.name}`{other or nearest(self.profile, usable)}."
            )
        for profile in usable.values():
            profile.require_fits(self.read_as)
        return Profiles(usable, known.broken)

    def accepts(self, event: FileEvent) -> bool:
        """Return True for a file of a type that is declared; a declared dataset takes it compressed as well."""
        is_declared = self.name != SENSOR_READINGS
        return event.kind in self.file_types or (is_declared and type_inside(event.kind) in self.file_types)

    def _name_problems(self) -> Iterator[str]:
        if self.name in TAKEN_NAMES or self.name.endswith("_metrics"):
            yield f"{self.name!r} is a name of the system's own; choose another name"
        for table in (self.table, self.metrics_table):
            if table in OWN_TABLES and self.name != SENSOR_READINGS:
                yield f"the table {table!r} belongs to the system; name another one as target.table"
        unknown = [kind for kind in self.file_types if not is_readable(kind)]
        for kind in unknown:
            guess = nearest(kind, READERS)
            yield f"file_types: no reader reads the file type {kind!r}{guess}; known: {', '.join(READERS)}"
        for kind in dict.fromkeys(map(type_inside, self.file_types)):
            if problem := READERS.problem_of(kind):
                yield f"file_types: the reader of {kind!r} is a plug-in that cannot be used: {problem}"

    def _column_problems(self) -> Iterator[str]:
        if self.name == SENSOR_READINGS:
            return
        if bool(self.columns) == bool(self.model):
            yield "declare columns or a model, one of the two"
            return
        names = [column.name for column in self.typed_columns]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"the column {name} is declared twice"
        named = {
            "key.columns": self.key.columns if self.key else (),
            "measures.columns": self.measures.columns if self.measures else (),
            "measures.group_by": self.measures.group_by if self.measures else (),
            "target.partition_by": self.target.partition_by,
        }
        for where, columns in named.items():
            for column in columns:
                if column not in names:
                    yield f"{where}: there is no column {column}" + nearest(column, names)
        if self.own_profile:
            self.own_profile.require_fits(self.read_as)
            exact = {column.name for column in self.typed_columns if column.kind in ("integer", "decimal")}
            for name, rule in self.own_profile.cells.items():
                if name in exact and rule.conversion and not rule.conversion.keeps_decimals:
                    yield f"reader.cells.{name}: the results of its conversion are no decimals; declare type: number"

    def _type_problems(self) -> Iterator[str]:
        kinds = {column.name: column.kind for column in self.typed_columns} if self.name != SENSOR_READINGS else {}
        measures = self.measures or Measures(columns=("",))
        for column in measures.columns:
            if kinds.get(column, "number") not in MEASURABLE:
                yield f"measures.columns: {column} is {kinds[column]}, not a number"
        for column in (*measures.group_by, *self.target.partition_by):
            if kinds.get(column, "text") not in GROUPABLE:
                yield f"{column} is {kinds[column]}: rows are grouped by {', '.join(sorted(GROUPABLE))} only"
        if {"measure", "min", "max", "mean", "count", "stddev"} & {*measures.group_by}:
            yield "measures.group_by: a column is called like one of the summaries; rename it"
        if self.key and self.key.unique == "table" and self.target.delta:
            yield "key.unique: a Delta table cannot keep keys unique; use unique: file, or a table of the warehouse"
