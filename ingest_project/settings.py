"""One typed tree of settings, and the only place that reads the environment.

A value comes from the first of these that has it: an environment variable, the `.env` file, `config.yaml`, the services
that `ingest dev` started on this machine, the default. Everything is checked at once, and an unknown name is an error
that proposes the nearest right one: a misspelt setting must not silently leave the default in force.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from dotenv import dotenv_values
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from ingest_project.errors import SettingsError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

OWN_PREFIXES = ("INGEST_", "KAFKA_")
# Names of the same family that belong to Kafka's own start scripts, not to us.
FOREIGN_NAMES = ("KAFKA_HOME", "KAFKA_HEAP_OPTS", "KAFKA_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS", "KAFKA_LOG4J_OPTS")
FOREIGN_FAMILIES = ("DAGSTER_", "AWS_", "AZURE_", "PG", "PYTHON")
SIMILAR_ENOUGH = 0.86


@dataclass(frozen=True)
class Env:
    """The environment variables that set a field, the first found wins."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaList = Annotated[list[str], BeforeValidator(_split_commas)]
PathList = Annotated[list[Path], BeforeValidator(_split_commas)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
    """How to reach Kafka, and how much to read from it at a time."""

    bootstrap_servers: Annotated[str, Env("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_BROKERS")] = Field(
        "", description="host:port of one or more brokers, comma-separated"
    )
    group_id: Annotated[str, Env("KAFKA_GROUP_ID")] = Field(
        "ingest-project", description="consumer group whose offsets follow the saved cursors, for lag displays"
    )
    auto_offset_reset: Annotated[Literal["earliest", "latest"], Env("AUTO_OFFSET_RESET")] = Field(
        "earliest", description="where a topic is first read from"
    )
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], Env("KAFKA_SECURITY_PROTOCOL")
    ] = Field("PLAINTEXT", description="how the connection is secured")
    sasl_mechanism: Annotated[str | None, Env("KAFKA_SASL_MECHANISM")] = Field(
        None, description="PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
    )
    sasl_username: Annotated[str | None, Env("KAFKA_SASL_USERNAME")] = Field(None, description="SASL user")
    sasl_password: Annotated[SecretStr | None, Env("KAFKA_SASL_PASSWORD")] = Field(None, description="SASL password")
    ssl_ca_location: Annotated[Path | None, Env("KAFKA_SSL_CA_LOCATION")] = Field(
        None, description="file with the certificate authorities to trust"
    )
    request_timeout_seconds: Annotated[float, Env("KAFKA_REQUEST_TIMEOUT_SECONDS")] = Field(
        10.0, gt=0, description="how long one request may take before the broker counts as away"
    )
    generation: Annotated[str, Env("KAFKA_GENERATION")] = Field(
        "", description="set by `ingest dev`: tells one life of the embedded broker from the next"
    )


class TopicSettings(_Section):
    """The name of every topic."""

    polling_queue: Annotated[str, Env("KAFKA_TOPIC_POLLING_QUEUE")] = Field(
        "polling-queue", description="jobs that ask us to look in a source"
    )
    polling_queue_dlq: Annotated[str, Env("KAFKA_TOPIC_POLLING_QUEUE_DLQ")] = Field(
        "polling-queue.dlq", description="unreadable polling jobs"
    )
    file_event_queue: Annotated[str, Env("KAFKA_TOPIC_FILE_EVENT_QUEUE")] = Field(
        "file-event-queue", description="files to ingest"
    )
    file_event_queue_dlq: Annotated[str, Env("KAFKA_TOPIC_FILE_EVENT_QUEUE_DLQ")] = Field(
        "file-event-queue.dlq", description="unreadable file events, of both file topics"
    )
    file_events: Annotated[str, Env("KAFKA_TOPIC_FILE_EVENTS")] = Field(
        "file_events", description="short file events of older producers"
    )


class WarehouseSettings(_Section):
    """The relational database that holds rows, metrics and the ledger."""

    database_url: Annotated[SecretStr, Env("DATABASE_URL")] = Field(
        SecretStr(""), description="SQLAlchemy URL, e.g. postgresql://user:password@host/database or sqlite:////path"
    )
    connect_timeout_seconds: Annotated[int, Env("INGEST_DATABASE_CONNECT_TIMEOUT_SECONDS")] = Field(
        10, gt=0, description="how long a connection may take"
    )


class DagsterSettings(_Section):
    """Where Dagster keeps its own records."""

    home: Annotated[Path | None, Env("DAGSTER_HOME")] = Field(
        None, description="folder of Dagster's own configuration and, without PostgreSQL, its records"
    )
    postgres_url: Annotated[SecretStr, Env("DAGSTER_POSTGRES_URL")] = Field(
        SecretStr(""), description="PostgreSQL URL of Dagster's storage; empty: SQLite in DAGSTER_HOME"
    )
    webserver_url: Annotated[str, Env("INGEST_WEBSERVER_URL")] = Field(
        "http://127.0.0.1:3000", description="where people reach the Dagster UI, for links"
    )
    webserver_port: Annotated[int, Env("INGEST_WEBSERVER_PORT")] = Field(
        3000, ge=0, le=65535, description="port of the UI that `ingest dev` starts; 0 picks a free one"
    )


class StorageSettings(_Section):
    """Where bytes are kept."""

    landing_url: Annotated[str, Env("INGEST_LANDING_URL")] = Field(
        "", description="folder or s3://bucket/prefix of the landing store; empty: landing/ in the state folder"
    )
    quarantine_url: Annotated[str, Env("INGEST_QUARANTINE_URL")] = Field(
        "", description="folder or s3://bucket/prefix of the quarantine; empty: quarantine/ in the state folder"
    )
    s3_endpoint_url: Annotated[str | None, Env("INGEST_S3_ENDPOINT_URL")] = Field(
        None, description="address of an S3 server other than Amazon's"
    )
    s3_region: Annotated[str | None, Env("INGEST_S3_REGION")] = Field(None, description="region of the buckets")
    s3_access_key_id: Annotated[str | None, Env("INGEST_S3_ACCESS_KEY_ID")] = Field(
        None, description="key id; without it boto3's own credential chain is used"
    )
    s3_secret_access_key: Annotated[SecretStr | None, Env("INGEST_S3_SECRET_ACCESS_KEY")] = Field(
        None, description="secret of that key"
    )


class PollingSettings(_Section):
    """What polling jobs may look at."""

    local_roots: Annotated[PathList, Env("INGEST_LOCAL_ROOTS")] = Field(
        default_factory=lambda: [Path("dummy_data")],
        description="folders that local file events and polling jobs may read, symlinks resolved",
    )
    dummy_root: Annotated[Path, Env("INGEST_DUMMY_ROOT")] = Field(
        Path("dummy_data"), description="the folder behind source_type dummy"
    )
    max_jobs_per_tick: Annotated[int, Env("INGEST_POLLING_MAX_JOBS_PER_TICK")] = Field(
        100, gt=0, description="polling jobs taken from Kafka in one sensor tick"
    )


class FileIngestSettings(_Section):
    """Limits and sizes of file ingest. Bytes are bytes on disk unless said otherwise."""

    profiles: Annotated[PathList, Env("INGEST_READER_PROFILES")] = Field(
        default_factory=list, description="YAML files or folders with reader profiles beside the shipped ones"
    )
    default_profile: Annotated[str, Env("INGEST_DEFAULT_PROFILE")] = Field(
        "canonical", description="profile of files whose event names none"
    )
    sensor_types: Annotated[Path | None, Env("INGEST_SENSOR_TYPES")] = Field(
        None, description="YAML file of known sensor types, units and limits; empty: the shipped one"
    )
    unknown_sensor_types: Annotated[Literal["accept", "quarantine"], Env("INGEST_UNKNOWN_SENSOR_TYPES")] = Field(
        "accept", description="what happens to readings of a type that is not listed"
    )
    future_tolerance_seconds: Annotated[int, Env("INGEST_FUTURE_TOLERANCE_SECONDS")] = Field(
        300, ge=0, description="how far ahead of now a timestamp may be"
    )
    max_rejected_share: Annotated[float, Env("INGEST_MAX_REJECTED_SHARE")] = Field(
        0.5, ge=0, le=1, description="a file with a greater share of bad rows is quarantined whole"
    )
    max_file_bytes: Annotated[int, Env("INGEST_MAX_FILE_BYTES")] = Field(
        4 * 1024**3, gt=0, description="larger files are quarantined"
    )
    max_row_bytes: Annotated[int, Env("INGEST_MAX_ROW_BYTES")] = Field(
        1024**2, gt=0, le=256 * 1024**2, description="longer rows are quarantined"
    )
    max_columns: Annotated[int, Env("INGEST_MAX_COLUMNS")] = Field(
        2_000, gt=0, description="files with more columns are quarantined"
    )
    max_excel_bytes: Annotated[int, Env("INGEST_MAX_EXCEL_BYTES")] = Field(
        100 * 1024**2, gt=0, description="larger workbooks are quarantined: a workbook is read whole"
    )
    max_excel_cells: Annotated[int, Env("INGEST_MAX_EXCEL_CELLS")] = Field(
        20_000_000, gt=0, description="workbooks with more cells are quarantined"
    )
    max_excel_memory_bytes: Annotated[int, Env("INGEST_MAX_EXCEL_MEMORY_BYTES")] = Field(
        1536 * 1024**2, gt=0, description="address space of the process that opens a workbook"
    )
    max_excel_seconds: Annotated[float, Env("INGEST_MAX_EXCEL_SECONDS")] = Field(
        60.0, gt=0, description="CPU time of the process that opens a workbook"
    )
    batch_files: Annotated[int, Env("INGEST_BATCH_FILES")] = Field(1_000, gt=0, description="files in one batch run")
    max_parallel_batches: Annotated[int, Env("INGEST_MAX_PARALLEL_BATCHES")] = Field(
        2, gt=0, description="batch runs asked for at a time"
    )
    tick_max_messages: Annotated[int, Env("INGEST_TICK_MAX_MESSAGES")] = Field(
        4_000, gt=0, description="file events taken from Kafka in one sensor tick"
    )
    tick_wait_seconds: Annotated[float, Env("INGEST_TICK_WAIT_SECONDS")] = Field(
        3.0, ge=0, le=30, description="how long a tick waits for a first message on a quiet topic"
    )
    max_waiting_seconds: Annotated[int, Env("INGEST_MAX_WAITING_SECONDS")] = Field(
        900, gt=0, description="a file unfinished for longer fails the check nothing_waits_too_long"
    )
    max_quarantine_share: Annotated[float, Env("INGEST_MAX_QUARANTINE_SHARE")] = Field(
        0.2, ge=0, le=1, description="share of recently finished files in quarantine that fails the check"
    )

    @property
    def future_tolerance(self) -> timedelta:
        """How far ahead of now a timestamp may be."""
        return timedelta(seconds=self.future_tolerance_seconds)


class RetrySettings(_Section):
    """How often and when a job or file is tried again that failed for a reason which may pass."""

    max_attempts: Annotated[int, Env("MAX_RETRIES")] = Field(
        8, gt=0, description="attempts after which a job or file is failed with its reason"
    )
    delay_seconds: Annotated[float, Env("RETRY_DELAY")] = Field(
        5.0, ge=0, description="pause before the second attempt; doubles with each further one"
    )
    max_delay_seconds: Annotated[float, Env("INGEST_MAX_RETRY_DELAY_SECONDS")] = Field(
        600.0, ge=0, description="longest pause between two attempts"
    )
    launch_grace_seconds: Annotated[float, Env("INGEST_LAUNCH_GRACE_SECONDS")] = Field(
        60.0, ge=0, description="how long a run may take to appear after it was asked for"
    )

    def delay(self, attempts: int) -> timedelta:
        """The pause after so many attempts."""
        doubled = self.delay_seconds * 2.0 ** min(max(attempts - 1, 0), 30)
        return timedelta(seconds=min(doubled, self.max_delay_seconds))

    @property
    def launch_grace(self) -> timedelta:
        """How long a run may take to appear after it was asked for."""
        return timedelta(seconds=self.launch_grace_seconds)


class LoggingSettings(_Section):
    """How the project logs."""

    level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], Env("LOG_LEVEL")] = Field(
        "INFO", description="least severe level that is written"
    )
    format: Annotated[Literal["json", "console"], Env("LOG_FORMAT")] = Field(
        "json", description="one JSON object a line, or text for a person"
    )
    file: Annotated[Path | None, Env("LOG_FILE")] = Field(None, description="also write the log to this file")


class Settings(_Section):
    """Everything that can be set, with its default."""

    environment: Annotated[str, Env("ENVIRONMENT")] = Field("development", description="name of this deployment")
    state_dir: Annotated[Path, Env("INGEST_STATE_DIR")] = Field(
        Path(".ingest"), description="folder of the embedded services and local stores"
    )
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    warehouse: WarehouseSettings = WarehouseSettings()
    dagster: DagsterSettings = DagsterSettings()
    storage: StorageSettings = StorageSettings()
    polling: PollingSettings = PollingSettings()
    file_ingest: FileIngestSettings = FileIngestSettings()
    retries: RetrySettings = RetrySettings()
    logging: LoggingSettings = LoggingSettings()

    @property
    def landing_url(self) -> str:
        """Folder or s3:// address of the landing store."""
        return self.storage.landing_url or str(self.state_dir.absolute() / "landing")

    @property
    def quarantine_url(self) -> str:
        """Folder or s3:// address of the quarantine store."""
        return self.storage.quarantine_url or str(self.state_dir.absolute() / "quarantine")


class Origin(StrEnum):
    """Where a value came from."""

    ENVIRONMENT = "environment"
    DOTENV = ".env"
    YAML = "config.yaml"
    EMBEDDED = "ingest dev"
    DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One setting as it is in force.

    Args:
        path: place in the tree, e.g. ``kafka.group_id``; config.yaml uses the same names, nested.
        env_names: environment variables that set it.
        description: what it means, with its unit.
        value: the effective value; secrets are wrapped and print as asterisks.
        origin: where the value came from.
    """

    path: str
    env_names: tuple[str, ...]
    description: str
    value: object
    origin: Origin


@dataclass(frozen=True)
class LoadedSettings:
    """The settings and where each came from."""

    settings: Settings
    origins: Mapping[str, Origin]

    def each(self) -> Iterator[Setting]:
        """Every setting, in the order of the tree."""
        for path, field in _leaves(Settings):
            value: Any = self.settings
            for name in path.split("."):
                value = getattr(value, name)
            yield Setting(
                path, _env_names(field), field.description or "", value, self.origins.get(path, Origin.DEFAULT)
            )


def load_settings(environ: Mapping[str, str] | None = None, folder: Path | None = None) -> LoadedSettings:
    """Read and check every setting.

    Args:
        environ: environment variables; the process's own by default.
        folder: where `.env` and `config.yaml` are looked for; INGEST_CONFIG_DIR or the current folder by default.

    Raises:
        SettingsError: a value is malformed or a name is unknown; the message lists all of them.
    """
    environ = os.environ if environ is None else environ
    folder = folder or Path(environ.get("INGEST_CONFIG_DIR", "."))
    dotenv = {name: value for name, value in dotenv_values(folder / ".env").items() if value is not None}
    yaml_values = _flatten(_read_yaml(folder / "config.yaml"))
    problems = [
        *_unknown_variables(environ, Origin.ENVIRONMENT),
        *_unknown_variables(dotenv, Origin.DOTENV),
        *_unknown_yaml_names(yaml_values),
    ]
    if problems:
        raise SettingsError("\n".join(problems))

    values: dict[str, object] = {}
    origins: dict[str, Origin] = {}
    for path, field in _leaves(Settings):
        for origin, found in (
            (Origin.ENVIRONMENT, _first(environ, _env_names(field))),
            (Origin.DOTENV, _first(dotenv, _env_names(field))),
            (Origin.YAML, yaml_values.get(path)),
        ):
            if found is not None and found != "":
                values[path], origins[path] = found, origin
                break
    state_dir = Path(str(values.get("state_dir", Settings.model_fields["state_dir"].default)))
    for path, address in embedded_services(state_dir).items():
        if path not in values:
            values[path], origins[path] = address, Origin.EMBEDDED
    return LoadedSettings(_build(values, origins), origins)


@cache
def current_settings() -> Settings:
    """The settings of this process, read once."""
    return load_settings().settings


def embedded_services(state_dir: Path) -> dict[str, object]:
    """Addresses of the services that `ingest dev` runs on this machine, by setting; empty when it does not run."""
    try:
        services = json.loads((state_dir / "services.json").read_text())
        os.kill(int(services["pid"]), 0)
        addresses: dict[str, object] = services["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return addresses


def _build(values: Mapping[str, object], origins: Mapping[str, Origin]) -> Settings:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *sections, name = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        fields = dict(_leaves(Settings))
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            path = ".".join(str(part) for part in problem["loc"][:2] if isinstance(part, str))
            known_as = _env_names(fields[path])[0] if path in fields else path
            lines.append(f"{known_as} (from {origins.get(path, Origin.DEFAULT)}): {problem['msg']}.")
        raise SettingsError("\n".join(lines)) from None


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, _Section):
            yield from _leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _env_names(field: FieldInfo) -> tuple[str, ...]:
    return next((mark.names for mark in field.metadata if isinstance(mark, Env)), ())


@cache
def _known_variables() -> frozenset[str]:
    return frozenset(name for _, field in _leaves(Settings) for name in _env_names(field)) | {"INGEST_CONFIG_DIR"}


def _first(values: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((values[name] for name in names if values.get(name)), None)


def _unknown_variables(variables: Mapping[str, str], origin: Origin) -> Iterator[str]:
    known = _known_variables()
    for name in sorted(variables):
        if name in known or name in FOREIGN_NAMES or name.startswith(FOREIGN_FAMILIES):
            continue
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR_ENOUGH)
        ours = name.startswith(OWN_PREFIXES)
        # A shell's environment is full of other programs' names; a .env file beside the project is not.
        if ours or origin is Origin.DOTENV:
            guess = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {guess[0]}?" if guess else " `ingest config` lists every setting."
            yield f"Unknown setting {name} in {origin}.{hint}"
        elif nearest and len(name) > len("ENVIRON"):
            yield f"Unknown setting {name} in {origin}. Did you mean {nearest[0]}?"


def _unknown_yaml_names(values: Mapping[str, object]) -> Iterator[str]:
    known = [path for path, _ in _leaves(Settings)]
    for path in values:
        if path not in known:
            guess = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
            hint = f" Did you mean {guess[0]}?" if guess else " `ingest config` lists every setting."
            yield f"Unknown setting {path} in {Origin.YAML}.{hint}"


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold names and values, not {type(content).__name__}.")
    return content


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
