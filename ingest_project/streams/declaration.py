"""Declared streams: a topic, how its messages are decoded, the contract of their rows, and where the rows go.

A declaration is a `defs.yaml` of the component `ingest_project.TopicStream` in the folder of declarations; its folder
names the stream. A broken one disables only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from ingest_project.contracts.columns import Owners, StreamColumn
from ingest_project.core.errors import SettingsError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings, TopicSettings
from ingest_project.core.yaml_models import AsWritten, ContradictionsError, Declared, nearest, yaml_content
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.readers.datasets import BrokenDeclaration, declaration_files, declared, read_declaration
from ingest_project.readers.declaration import OWN_TABLES
from ingest_project.streams.decoders import DECODERS, TEXT
from ingest_project.streams.delta.rows import StreamRows

logger = get_logger(__name__)

COMPONENT = "ingest_project.TopicStream"
NAME = r"^[a-z][a-z0-9_]{0,39}$"
TABLE = r"^[a-z_][a-z0-9_]{0,59}$"
KAFKA_TIME = "kafka_timestamp"
RESCUED = "rescued_data"
# Names of capabilities, assets, jobs or sensors: Dagster would load nothing at all. Topics are called as in settings.
TAKEN_NAMES = frozenset(
    {
        *("aggregated_metrics", "alerts", "attachment", "attachment_events", "attachment_results", "attachments"),
        *("crm", "device_metrics", "discovered_files", "downloads", "downloads_retry", "eventhouse", "file"),
        *("file_ingest", "file_sources", "kafka", "onelake_attachments", "opportunities", "polling", "projects"),
        *("quarantined_files", "raw_files", "retention", "standing_jobs", "unidentified_messages", "user_activity"),
        *("user_activity_hourly", "validated_sensor_data"),
        *TopicSettings.model_fields,
    }
)
DEAD_LETTERS = "_dlq"
# Columns that the engine adds to every table.
OWN_COLUMNS = frozenset({RESCUED, "trace_id", "event_day", "event_hour", "deleted_at", "stored_at"})
MIN_RETENTION_HOURS = 168


DecodeRows = Callable[[Sequence[ConsumerRecord], str], StreamRows]
"""Turns messages of a topic, given by its id, into rows. No message makes it fail."""


class DeltaTarget(Declared):
    """Rows are appended to a Delta table.

    Args:
        delta: folder, s3:// or OneLake address; a plain name is a folder in delta/ of the state folder.
        partition_by: parts of the folders of the table: the day, or day and hour of the event time.
        commit_messages: most messages of one commit.
        retention_hours: how long files stay that only old versions of the table have.
    """

    delta: str = ""
    partition_by: Literal["day", "hour"] = "day"
    commit_messages: int = Field(50_000, gt=0)
    retention_hours: int = Field(MIN_RETENTION_HOURS, ge=MIN_RETENTION_HOURS)


class SqlTarget(Declared):
    """Rows are stored by key in a table of the warehouse; the newest version of a key stays.

    Args:
        table: its name; that of the stream by default.
        key: the columns that identify a row.
        version: the column that orders versions of a row; without one, the offset in Kafka does. Of two rows with the
            same version the later offset stays.
        tombstones: a message without a value deletes the row of its key, marks it in `deleted_at`, or is ignored.
        key_decoder: decodes the key of a tombstone.
    """

    table: Annotated[str, Field(pattern=TABLE)] | None = None
    key: Annotated[tuple[str, ...], Field(min_length=1)]
    version: str | None = None
    tombstones: Literal["delete", "mark", "ignore"] = "delete"
    key_decoder: str = TEXT


def _kind_of_sink(sink: Any) -> str:  # noqa: ANN401 - whatever the file contains
    """Choose the kind of sink by its options, so that a mistake is reported for that kind only."""
    if isinstance(sink, dict):
        return "table" if sink.keys() & {"key", "table", "version", "tombstones", "key_decoder"} else "delta"
    return "table" if isinstance(sink, SqlTarget) else "delta"


Sink = Annotated[
    Annotated[DeltaTarget, Tag("delta")] | Annotated[SqlTarget, Tag("table")], Discriminator(_kind_of_sink)
]


class StreamDeclaration(Declared):
    """A topic whose messages become rows, each offset exactly once.

    Args:
        name: name of the stream, its asset and its table; that of its folder by default.
        description: shown to users.
        topic: topic of the messages.
        dead_letter_topic: topic of the messages that are no rows; `<topic>.dlq` by default.
        decoder: how the bytes of a message are read.
        columns: columns of a row, with the paths of their fields.
        model: a pandera model instead of rules, as `package.module:Class`; its columns are read from the fields of
            their names, or from those that `columns` gives a path.
        event_time: timestamp column with the time of the event; without one, Kafka's time of the message.
        sink: a Delta table, or with a `key` a table of the warehouse.
        drift: policy for undeclared fields: `rescue` keeps them as JSON in rescued_data, `evolve` adds
            a column of text to the table, `freeze` refuses the message.
        owners: addresses or teams, as Dagster has them.
        fresh_within_hours: its asset is overdue after so long without a message; null for never.
        warn_after_hours: its asset warns after so long without one; at five eighths of that by default.
        batch_messages: most offsets of one run.
        max_parallel_batches: runs at a time, each over partitions of its own.
        max_unfinished_seconds: messages that wait to be stored for longer fail the check no_gap_in_offsets.
        max_rejected_share: share of recent messages that became dead letters which fails the check contract_holds.
        max_implausible_share: share of recent rows with an impossible time that fails event_time_plausible.
    """

    name: Annotated[str, Field(pattern=NAME)] = ""
    description: str = ""
    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,245}$")]
    dead_letter_topic: str = ""
    decoder: str = "json"
    columns: tuple[StreamColumn, ...] = ()
    model: str | None = None
    event_time: str | None = None
    sink: Annotated[Sink, BeforeValidator(lambda given: {} if given is None else given)] = DeltaTarget()
    drift: Literal["rescue", "evolve", "freeze"] = "rescue"
    owners: Owners = ()
    fresh_within_hours: float | None = Field(24, ge=0.1, le=100_000)
    warn_after_hours: float | None = Field(None, gt=0)
    batch_messages: int = Field(1_000_000, gt=0)
    max_parallel_batches: int = Field(2, gt=0)
    max_unfinished_seconds: int = Field(900, gt=0)
    max_rejected_share: float = Field(0.05, ge=0, le=1)
    max_implausible_share: float = Field(0.01, ge=0, le=1)

    # A shipped stream has names that contracts and settings give it, a column of its own for fields that are not
    # declared, and columns that the history of a row shows.
    is_shipped: ClassVar[bool] = False
    rescued: ClassVar[str] = RESCUED
    shown: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if problems := [*self._name_problems(), *self._column_problems(), *self._sink_problems()]:
            raise ContradictionsError(problems)
        return self

    @cached_property
    def typed_columns(self) -> tuple[StreamColumn, ...]:
        """The columns of a row, those of the model with the paths that are declared here."""
        if self.model is None:
            return self.columns
        from ingest_project.contracts.validation import columns_of, model_named  # loads pandera

        declared = {column.name: column for column in self.columns}
        found = {column.name: column for column in columns_of(model_named(self.model))}
        if unknown := sorted(declared.keys() - found.keys()):
            raise ValueError(
                f"columns: the model {self.model} has no column {', '.join(unknown)}{nearest(unknown[0], found)}"
            )
        paths = {name: column.model_dump(include={"path", "epoch"}) for name, column in declared.items()}
        return tuple(StreamColumn.model_validate(one.model_dump() | paths.get(name, {})) for name, one in found.items())

    @property
    def source(self) -> str:
        """The name of its topic and its table in Dagster, and of its sensor."""
        return self.name

    @property
    def is_delta(self) -> bool:
        """The rows are appended to a Delta table."""
        return isinstance(self.sink, DeltaTarget)

    @property
    def id_columns(self) -> tuple[str, ...]:
        """Columns of text by which a row is looked up: the keys of a table, and those that are called an id."""
        keys = self.sink.key if isinstance(self.sink, SqlTarget) else ()
        texts = [column.name for column in self.typed_columns if column.kind == "text"]
        return tuple(name for name in texts if name in keys or name == "id" or name.endswith("_id"))

    @property
    def dlq(self) -> str:
        """The topic of dead letters."""
        return self.dead_letter_topic or f"{self.topic}.dlq"

    @property
    def time_column(self) -> str:
        """The column with the time of the event."""
        return self.event_time or KAFKA_TIME

    @property
    def retention_hours(self) -> int:
        """How long files stay that only old versions of a Delta table have."""
        return self.sink.retention_hours if isinstance(self.sink, DeltaTarget) else MIN_RETENTION_HOURS

    def delta_url(self, settings: Settings) -> str:
        """Return the address of the Delta table."""
        location = self.sink.delta if isinstance(self.sink, DeltaTarget) else ""
        if "://" in location or location.startswith("/"):
            return location
        return str(settings.state_dir.absolute() / "delta" / (location or self.name))

    def own_decoder(self) -> DecodeRows | None:
        """Return the function that makes a Delta table's rows instead of decoder and contract; None for these two."""
        return None

    def own_tables(self, settings: Settings) -> Any:  # noqa: ANN401 - an `SqlTarget` of rows of its own
        """Return the target in the warehouse if it is not one table by key."""

    def _name_problems(self) -> Iterator[str]:
        if self.is_shipped:
            return
        if self.warn_after_hours and self.warn_after_hours >= (self.fresh_within_hours or 0):
            yield "warn_after_hours must be less than fresh_within_hours"
        if self.name in TAKEN_NAMES or self.name.endswith(DEAD_LETTERS):
            yield f"{self.name!r} is a name of the system's own; choose another name"
        if self.dlq == self.topic:
            yield "dead_letter_topic: dead letters would be read again; name another topic"
        if self.decoder not in DECODERS:
            yield f"decoder: there is no decoder {self.decoder!r}; there are {', '.join(DECODERS)}" + nearest(
                self.decoder, DECODERS
            )

    def _column_problems(self) -> Iterator[str]:
        if not self.columns and not self.model:
            yield "declare columns or a model"
            return
        columns = self.typed_columns
        names = [column.name for column in columns]
        for name in sorted(OWN_COLUMNS.intersection(names)):
            yield f"{name!r} is a column of the engine's own; choose another name"
        yield from _duplicate_problems(columns)
        if self.decoder == TEXT and (len(columns) != 1 or columns[0].kind != "text"):
            yield "the decoder text fills one column of type text"
        kinds = {column.name: column.kind for column in columns}
        if self.event_time and kinds.get(self.event_time) != "timestamp":
            times = [name for name, kind in kinds.items() if kind == "timestamp"]
            yield f"event_time: {self.event_time} must be a column of type timestamp" + nearest(self.event_time, times)

    def _sink_problems(self) -> Iterator[str]:
        sink = self.sink
        if not isinstance(sink, SqlTarget) or not (self.columns or self.model):
            return
        columns = {column.name: column for column in self.typed_columns}
        for struct in (column for column in columns.values() if column.fields):
            path = ".".join(("$", *struct.steps, *struct.fields[0].steps))
            yield (
                f"a table of the warehouse has no structs such as {struct.name}; give columns the paths of its fields,"
                f" like {path}, or the type json"
            )
        named = [*(("key", name) for name in sink.key), *([("version", sink.version)] if sink.version else [])]
        for where, name in named:
            if name not in columns:
                yield f"sink.{where}: there is no column {name}" + nearest(name, columns)
            elif not columns[name].required:
                yield f"sink.{where}: the column {name} must be required"
            elif columns[name].kind in ("json", "boolean") or (where == "version" and columns[name].kind == "decimal"):
                yield f"sink.{where}: the column {name} is {columns[name].kind}, which does not serve as {where}"
        if (sink.table or self.name) in OWN_TABLES:
            yield f"the table {sink.table or self.name!r} belongs to the system; name another one as sink.table"
        if sink.key_decoder not in DECODERS:
            yield (
                f"sink.key_decoder: there is no decoder {sink.key_decoder!r}; there are {', '.join(DECODERS)}"
                + nearest(sink.key_decoder, DECODERS)
            )
        if sink.key_decoder == TEXT and len(sink.key) > 1 and sink.tombstones != "ignore":
            yield "sink.key_decoder: text is one column; name the decoder of the messages' keys, e.g. json"


class LoadedStreams(NamedTuple):
    """The streams that are declared in a folder."""

    usable: tuple[StreamDeclaration, ...]
    broken: tuple[BrokenDeclaration, ...]


def load_streams(settings: Settings) -> LoadedStreams:
    """Load the streams that are declared in the folder of the settings; log a broken one and list it as broken."""
    usable: dict[str, StreamDeclaration] = {}
    broken: list[BrokenDeclaration] = []
    # Their jobs would have the same names, and Dagster would load neither.
    datasets = _names_of_datasets(settings)
    for path in declaration_files(settings.declarations):
        try:
            declaration = read_stream(path)
            if declaration is None:
                continue
            _require_distinct(declaration, usable.values(), datasets, path, settings)
            usable[declaration.name] = declaration
        except SettingsError as error:
            logger.warning("stream_broken", problem=str(error))
            broken.append(BrokenDeclaration(path.parent.name, str(error)))
    return LoadedStreams(tuple(usable.values()), tuple(broken))


def _names_of_datasets(settings: Settings) -> set[str]:
    names = set[str]()
    for path in declaration_files(settings.declarations):
        # A broken one has no name to take.
        with suppress(SettingsError):
            if (found := read_declaration(path)) is not None:
                names.add(found.name)
    return names


def read_stream(path: Path) -> StreamDeclaration | None:
    """Read the stream that one file declares; None if it declares something else.

    Raises:
        SettingsError: it cannot be read, or is not a declaration; names the file, the line and what is wrong.
    """
    content = yaml_content(path, "declaration", AsWritten)
    if not isinstance(content, dict) or str(content.get("type")) != COMPONENT:
        return None
    return declared(StreamDeclaration, "a stream", path, content)


def _require_distinct(
    one: StreamDeclaration,
    others: Iterable[StreamDeclaration],
    datasets: AbstractSet[str],
    path: Path,
    settings: Settings,
) -> None:
    if one.name in datasets:
        raise SettingsError(f"{path}, line 1: a dataset is called {one.name!r}; choose another name.")
    for other in others:
        if one.name == other.name:
            raise SettingsError(f"{path}, line 1: another stream is called {one.name!r}.")
        if (one.dlq, other.dlq) == (other.topic, one.topic):
            raise SettingsError(f"{path}, line 1: the stream {other.name} reads its dead letters, and it reads those.")
        if _storage_of(one, settings) == _storage_of(other, settings):
            raise SettingsError(f"{path}, line 1: the stream {other.name} stores in {_storage_of(one, settings)}.")
        if (one.topic, one.dlq) == (other.topic, other.dlq):
            raise SettingsError(f"{path}, line 1: the stream {other.name} {_reads_too(one)}")
    if one.topic in settings.topics.model_dump().values() and one.dlq in settings.topics.dead_letters:
        raise SettingsError(f"{path}, line 1: a capability of the system {_reads_too(one)}")


def _reads_too(one: StreamDeclaration) -> str:
    return (
        f"reads {one.topic} as well, and its dead letters go to {one.dlq} too, where those of the same message would be"
        " one; name another dead_letter_topic."
    )


def _storage_of(one: StreamDeclaration, settings: Settings) -> str:
    return one.sink.table or one.name if isinstance(one.sink, SqlTarget) else one.delta_url(settings)


def _duplicate_problems(columns: Sequence[StreamColumn]) -> Iterator[str]:
    """Find names that occur twice, and paths to the same field or into that of another column, also in structs."""
    names = [column.name for column in columns]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"the column {name} is declared twice"
    steps = {column.steps: column.name for column in columns}
    if len(steps) < len(columns):
        yield "two columns have the same path"
    for path, name in steps.items():
        for length in range(1, len(path)):
            if path[:length] in steps:
                yield f"the path of {name} leads into the field of {steps[path[:length]]}"
    for column in columns:
        yield from (f"column {column.name}: {problem}" for problem in _duplicate_problems(column.fields))
