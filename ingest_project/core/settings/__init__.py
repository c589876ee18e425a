"""One typed tree of settings, and the only code that reads the environment.

A value comes from the first of these sources that has it: environment variables, the `.env` file, `config.yaml`, the
services that `ingest dev` started on this machine, the defaults. One error reports all mistakes. An unknown name is an
error that proposes the nearest known one: a misspelt setting must not silently leave the default in force.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, reduce
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, DotEnvSettingsSource, InitSettingsSource, PydanticBaseSettingsSource

from ingest_project.core.errors import SettingsError
from ingest_project.core.secrets import FILE, SecretReference, file_text, holds_secrets, is_in_vault, is_secret, set_ttl
from ingest_project.core.settings.alerts import AlertSettings
from ingest_project.core.settings.capabilities import (
    AttachmentSettings,
    ConfiguredSource,
    Credential,
    CrmSettings,
    DownloadSettings,
    EventhouseSettings,
    EventHubsSettings,
    FileIngestSettings,
    OneLakeSettings,
    PollingSettings,
    UserActivitySettings,
)
from ingest_project.core.settings.platform import (
    BackpressureSettings,
    DagsterSettings,
    DeltaSettings,
    KafkaSettings,
    LineageSettings,
    LoggingSettings,
    MonitorSettings,
    OidcSettings,
    RetentionSettings,
    RetrySettings,
    SchemaRegistrySettings,
    StorageSettings,
    TopicSettings,
    TraceSettings,
    WarehouseSettings,
    database_of,
)
from ingest_project.core.yaml_models import (
    FILE_ENDING,
    AsJson,
    Env,
    EnvFamily,
    Section,
    descriptions,
    family_of,
    leaves,
    variables_of,
    yaml_content,
)

OWN_PREFIXES = ("INGEST_", "KAFKA_", "ONELAKE_")
# Names in the .env files of the services that this project replaces: they are ignored.
IGNORED_NAMES = (
    *("KAFKA_TOPIC", "KAFKA_TOPICS", "KAFKA_CLIENT_ID", "KAFKA_ENABLE_AUTO_COMMIT", "ENABLE_AUTO_COMMIT"),
    *(f"DB_{part}" for part in ("HOST", "PORT", "NAME", "USER", "PASSWORD")),
    *(f"POSTGRES_{part}" for part in ("HOST", "PORT", "DB", "USER", "PASSWORD")),
)
FOREIGN_FAMILIES = ("DAGSTER_", "AWS_", "AZURE_", "PG", "PYTHON")
# Variables of Kafka's own start scripts and of the images of brokers, registries and their user interfaces.
OF_A_BROKER = re.compile(
    r"KAFKA_(HOME|OPTS|PORT|HOST|VERSION|IMAGE|TAG|\w+_OPTS|(CFG|KRAFT|CLUSTER|NODE|BROKER|PROCESS|CONTROLLER|LISTENERS?"
    r"|ADVERTISED|INTER|ZOOKEEPER|LOG|LOG4J|NUM|OFFSETS|TRANSACTION|SHARE|DEFAULT|MIN|MESSAGE|REPLICA|CREATE|DELETE"
    r"|AUTO_CREATE|AUTHORIZER|SUPER|ALLOW|GROUP_(INITIAL|MIN|MAX|COORDINATOR)|HEAP|JVM|JMX|METRIC|CONFLUENT|UI|REST"
    r"|CONNECT|SCHEMA|SASL_(ENABLED|JAAS)|SSL_(KEY|KEYSTORE|TRUSTSTORE|CLIENT|SECRETS))(_\w+)?)"
)
# Variables that Kubernetes sets in every container for a Service called `kafka`, `ingest-...` or `onelake-...`.
SERVICE_LINK = re.compile(r"[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")
SERVICE_ADDRESS = ("tcp://", "udp://")
SIMILAR_ENOUGH = 0.86
# Other services have their own settings for Kafka and OneLake: only a name close to one of ours counts as misspelt.
SHARED_PREFIXES = ("KAFKA_", "ONELAKE_")
SIMILAR_TO_OURS = 0.76
# Another program's variable like this may be meant for us: log its name, but raise no error.
SIMILAR_TO_NAME = 0.8
LEAST_SIMILAR = 0.5


class Settings(Section):
    """Everything that can be set, with its default.

    Args:
        environment: name of this deployment.
        state_dir: folder of the embedded services and local stores.
        declarations: folder of declared datasets and streams; a relative one is next to config.yaml.
        vault_ttl_seconds: a secret of a vault is read again when its value is older.
        credentials: stored credentials by the name that jobs and hosts use; in a variable as one JSON object.
        sources: sources by name, those with every_seconds polled automatically; in a variable as JSON.
    """

    environment: Annotated[str, Env("ENVIRONMENT", "APP_ENV")] = "development"
    state_dir: Annotated[Path, Env("INGEST_STATE_DIR")] = Path(".ingest")
    declarations: Annotated[Path, Env("INGEST_DECLARATIONS")] = Path("ingest_project_defs")
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicSettings = TopicSettings()
    schema_registry: SchemaRegistrySettings = SchemaRegistrySettings()
    warehouse: WarehouseSettings = WarehouseSettings()
    dagster: DagsterSettings = DagsterSettings()
    storage: StorageSettings = StorageSettings()
    delta: DeltaSettings = DeltaSettings()
    polling: PollingSettings = PollingSettings()
    file_ingest: FileIngestSettings = FileIngestSettings()
    attachments: AttachmentSettings = AttachmentSettings()
    downloads: DownloadSettings = DownloadSettings()
    onelake: OneLakeSettings = OneLakeSettings()
    eventhouse: EventhouseSettings = EventhouseSettings()
    eventhubs: EventHubsSettings = EventHubsSettings()
    user_activity: UserActivitySettings = UserActivitySettings()
    crm: CrmSettings = CrmSettings()
    monitor: MonitorSettings = MonitorSettings()
    oidc: OidcSettings = OidcSettings()
    retries: RetrySettings = RetrySettings()
    backpressure: BackpressureSettings = BackpressureSettings()
    alerts: AlertSettings = AlertSettings()
    retention: RetentionSettings = RetentionSettings()
    logging: LoggingSettings = LoggingSettings()
    vault_ttl_seconds: Annotated[float, Env("INGEST_VAULT_TTL_SECONDS")] = Field(300.0, ge=1)
    traces: TraceSettings = TraceSettings()
    lineage: LineageSettings = LineageSettings()
    credentials: Annotated[dict[str, Credential], AsJson, Env("INGEST_CREDENTIALS")] = Field(default_factory=dict)
    sources: Annotated[dict[str, ConfiguredSource], AsJson, Env("INGEST_SOURCES")] = Field(default_factory=dict)

    @property
    def landing_url(self) -> str:
        """Return the folder, s3:// or OneLake address of the landing store."""
        return self.storage.landing_url or str(self.state_dir.absolute() / "landing")

    @property
    def quarantine_url(self) -> str:
        """Return the folder, s3:// or OneLake address of the quarantine store."""
        return self.storage.quarantine_url or str(self.state_dir.absolute() / "quarantine")

    @property
    def attachments_url(self) -> str:
        """Return the folder, s3:// or OneLake address of the attachment store."""
        return self.attachments.store_url or str(self.state_dir.absolute() / "attachments")

    @property
    def attachment_results_url(self) -> str:
        """Return the folder, s3:// or OneLake address of the Delta table of download results."""
        return self.attachments.results_url or str(self.state_dir.absolute() / "delta" / "attachment_results")

    @property
    def user_activity_url(self) -> str:
        """Return the folder, s3:// or OneLake address of the Delta table of user activity."""
        return self.user_activity.table_url or str(self.state_dir.absolute() / "delta" / "user_activity_events")

    @property
    def cache_dir(self) -> Path:
        """Return the folder for files during their download."""
        return self.state_dir.absolute() / "cache"


class Origin(StrEnum):
    """The source of a value."""

    ENVIRONMENT = "environment"
    DOTENV = ".env"
    YAML = "config.yaml"
    EMBEDDED = "ingest dev"
    DEFAULT = "default"


@dataclass(frozen=True)
class Setting:
    """One setting with its effective value.

    Args:
        path: path in the tree, e.g. ``kafka.group_id``; config.yaml uses the same names, nested.
        env_names: environment variables that set it.
        description: its meaning, with the unit.
        value: the effective value; secrets are wrapped and print as asterisks.
        origin: where the value came from.
    """

    path: str
    env_names: tuple[str, ...]
    description: str
    value: object
    origin: Origin

    @property
    def reference(self) -> str | None:
        """Return the reference of a secret; None for any other value."""
        return self.value.reference if isinstance(self.value, SecretReference) else None


@dataclass(frozen=True)
class LoadedSettings:
    """The settings, the origin of each that is not a default, and ignored names, which have no effect here."""

    settings: Settings
    origins: Mapping[str, Origin]
    ignored: tuple[str, ...] = ()

    def each(self) -> Iterator[Setting]:
        """Yield every setting, in the order of the tree."""
        for path, field in leaves(Settings):
            *sections, name = path.split(".")
            section: Section = reduce(getattr, sections, self.settings)
            family = family_of(field)
            names = (str(family),) if family else variables_of(field)
            origin = self.origins.get(path, Origin.DEFAULT)
            yield Setting(
                path, names, descriptions(type(section) if sections else Settings)[name], getattr(section, name), origin
            )


def load_settings(environ: Mapping[str, str] | None = None, folder: Path | None = None) -> LoadedSettings:
    """Read and check every setting.

    Args:
        environ: environment variables; the process's own by default.
        folder: folder of `.env` and `config.yaml`; INGEST_CONFIG_DIR or the current folder by default.

    Raises:
        SettingsError: values are malformed or names unknown (the message lists all of them), or the warehouse and
            Dagster would share one database.
    """
    if environ is None:
        # Copy it: libraries that other threads import set variables temporarily.
        environ = {name: value for name in os.environ if (value := os.environ.get(name)) is not None}
    folder = folder or Path(environ.get("INGEST_CONFIG_DIR", "."))
    variables = _Environment(_SettingsInForce, {})
    variables.env_vars = environ
    dotenv = _Dotenv(_SettingsInForce, env_file=folder / ".env", case_sensitive=True)
    yaml = _Yaml(_SettingsInForce, _yaml_tree(folder / "config.yaml"))
    sources = (variables, dotenv, yaml, _EmbeddedServices(_SettingsInForce, {}))
    if problems := [*variables.problems(), *dotenv.problems(), *yaml.problems()]:
        raise SettingsError("\n".join(problems))
    origins: dict[str, Origin] = {}
    for source in sources:
        source.origins = origins
    try:
        settings = _SettingsInForce(sources=sources)
    except ValidationError as error:
        raise SettingsError(_invalid_values(error, origins)) from None
    set_ttl(settings.vault_ttl_seconds)
    _require_two_databases(settings)
    settings = settings.model_copy(update={"declarations": folder / settings.declarations})
    given = {**dotenv.env_vars, **environ}
    return LoadedSettings(settings, origins, _ignored({name: value for name, value in given.items() if value}))


@cache
def current_settings() -> Settings:
    """Return the settings of this process, which are read once."""
    return load_settings().settings


def build_model() -> None:
    """Build the validation of all settings, which the first `load_settings` of a process does otherwise."""
    _SettingsInForce.model_rebuild()


def embedded_services(state_dir: Path) -> dict[str, object]:
    """Return the addresses of the services that `ingest dev` runs on this machine, by setting; empty if none runs."""
    try:
        services = json.loads((state_dir / "services.json").read_text())
        os.kill(int(services["pid"]), 0)
        addresses: dict[str, object] = services["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return addresses


class _SettingsInForce(Settings, BaseSettings):  # type: ignore[misc]  # BaseSettings' configuration has more options
    """The tree, filled from the sources that are its only argument."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources: tuple[PydanticBaseSettingsSource, ...] = init_settings()["sources"]
        return sources


class _Layer(PydanticBaseSettingsSource):
    """A source that sets values that earlier sources left unset, and records itself as their origin."""

    origin: ClassVar[Origin]
    origins: dict[str, Origin]

    @abstractmethod
    def values_by_path(self) -> Mapping[str, object]:
        """Return the values in this source; an empty text counts as not set."""

    def __call__(self) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for path, value in self.values_by_path().items():
            if path not in self.origins and value is not None and value != "":
                self.origins[path] = self.origin
                *sections, name = path.split(".")
                reduce(lambda branch, section: branch.setdefault(section, {}), sections, tree)[name] = value
        return tree


class _Variables(_Layer):
    env_vars: Mapping[str, str | None]

    def values_by_path(self) -> Mapping[str, object]:
        return {path: self._value(field) for path, field in self._set_fields()}

    def problems(self) -> Iterator[str]:
        """Describe each variable that is meant for us, judging by its name, but sets nothing or sets a value twice."""
        for _, field in self._set_fields():
            for name in variables_of(field):
                if self.env_vars.get(name) and holds_secrets(field.annotation) and self.env_vars.get(_file_of(name)):
                    yield f"{name} and {_file_of(name)} are both set in {self.origin}. Set one of them."
        for name in sorted(name for name, value in self.env_vars.items() if value is not None):
            nearest = _nearest(name, SIMILAR_ENOUGH)
            if name in _known_variables() or _is_foreign(name, self.env_vars[name] or "", nearest):
                continue
            # A shell's environment contains many names of other programs, and a .env file is often shared with them.
            if name.startswith(SHARED_PREFIXES):
                if guess := _family_of_misspelt(name) or _nearest(name, SIMILAR_TO_OURS):
                    yield _unknown(name, self.origin, guess)
            elif name.startswith(OWN_PREFIXES):
                yield _unknown(name, self.origin, _nearest(name, LEAST_SIMILAR))
            elif nearest and len(name) > len("ENVIRON"):
                yield _unknown(name, self.origin, nearest)

    def _set_fields(self) -> list[tuple[str, FieldInfo]]:
        """Return the settings with a variable that is set, and those with a family of variables."""
        return [(path, field) for path, field, names in _names() if not names or any(map(self.env_vars.get, names))]

    def _value(self, field: FieldInfo) -> object:
        if family := family_of(field):
            return {
                entry: value for name, value in self.env_vars.items() if value and (entry := family.entry(name))
            } or None
        for name in variables_of(field):
            if value := self.env_vars.get(name):
                return value
            path = holds_secrets(field.annotation) and self.env_vars.get(_file_of(name))
            if path and is_secret(field.annotation):
                return f"{FILE}://{Path(path).absolute()}"
            if path:
                return _content(_file_of(name), Path(path))
        return None


class _Environment(_Variables, InitSettingsSource):
    origin = Origin.ENVIRONMENT


class _Dotenv(_Variables, DotEnvSettingsSource):
    origin = Origin.DOTENV


class _Yaml(_Layer, InitSettingsSource):
    origin = Origin.YAML

    def values_by_path(self) -> Mapping[str, object]:
        values = _flatten(self.init_kwargs, _paths())
        for path in [path for path in values if path.removesuffix(FILE_ENDING) in _secret_paths()]:
            if path.endswith(FILE_ENDING) and (file := values.pop(path)):
                values.setdefault(path.removesuffix(FILE_ENDING), f"{FILE}://{Path(str(file)).absolute()}")
        return values

    def problems(self) -> Iterator[str]:
        """Describe each name that sets nothing, or sets a secret twice."""
        given = _flatten(self.init_kwargs, _paths())
        for path in _secret_paths():
            if given.get(path) and given.get(f"{path}{FILE_ENDING}"):
                yield f"{path} and {path}{FILE_ENDING} are both set in {self.origin}. Set one of them."
        for path in self.values_by_path():
            if path not in _paths():
                guesses = difflib.get_close_matches(path, _paths(), n=1, cutoff=LEAST_SIMILAR)
                yield _unknown(path, self.origin, next(iter(guesses), None))


class _EmbeddedServices(_Layer, InitSettingsSource):
    origin = Origin.EMBEDDED

    def values_by_path(self) -> Mapping[str, object]:
        return embedded_services(Path(self.current_state.get("state_dir", Settings.model_fields["state_dir"].default)))


def _yaml_tree(path: Path) -> dict[str, Any]:
    content = yaml_content(path, "file of settings") if path.exists() else None
    if not isinstance(content, dict | None):
        raise SettingsError(f"{path} must contain names and values, not {type(content).__name__}.")
    return content or {}


def _flatten(tree: Mapping[str, Any], known: Collection[str], prefix: str = "") -> dict[str, object]:
    """Return the values by path; a setting whose value is a mapping is not flattened."""
    flat: dict[str, object] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= (
            _flatten(value, known, f"{path}.") if isinstance(value, Mapping) and path not in known else {path: value}
        )
    return flat


def _ignored(given: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names that have no effect here although their author probably expected one."""
    others = sorted(
        name
        for name, value in given.items()
        if name not in IGNORED_NAMES and name not in _known_variables() and not _is_foreign(name, value, None)
    )
    return (
        *(name for name in IGNORED_NAMES if name in given),
        *(name for name in others if name.startswith(SHARED_PREFIXES) or _resembles_one(name)),
    )


def _unknown(name: str, origin: Origin, guess: str | None) -> str:
    hint = f"Did you mean {guess}?" if guess else "`ingest config` lists every setting."
    return f"Unknown setting {name} in {origin}. {hint}"


def _is_foreign(name: str, value: str, nearest: str | None) -> bool:
    """Return True for a variable of another program; `nearest` is our most similar name, if any."""
    return (
        name in IGNORED_NAMES
        or name.startswith(FOREIGN_FAMILIES)
        or bool(OF_A_BROKER.fullmatch(name) and not nearest)
        or bool(SERVICE_LINK.fullmatch(name))
        or (name.endswith("_PORT") and value.startswith(SERVICE_ADDRESS))
        or any(family.entry(name) for family in _families())
    )


@cache
def _families() -> tuple[EnvFamily, ...]:
    return tuple(family for _, field in leaves(Settings) if (family := family_of(field)))


@cache
def _paths() -> tuple[str, ...]:
    return tuple(path for path, _ in leaves(Settings))


@cache
def _secret_paths() -> tuple[str, ...]:
    return tuple(path for path, field in leaves(Settings) if is_secret(field.annotation))


@cache
def _names() -> list[tuple[str, FieldInfo, tuple[str, ...]]]:
    """Return each setting with its variables, including those that name the file of a secret."""
    each = ((path, field, variables_of(field), holds_secrets(field.annotation)) for path, field in leaves(Settings))
    return [(path, field, (*names, *map(_file_of, names if secret else ()))) for path, field, names, secret in each]


@cache
def _known_variables() -> frozenset[str]:
    return frozenset(name for _, _, names in _names() for name in names) | {"INGEST_CONFIG_DIR"}


def _file_of(name: str) -> str:
    """Return the variable that names the file with a secret, as in Docker's convention."""
    return f"{name}{FILE_ENDING.upper()}"


def _content(name: str, path: Path) -> str:
    try:
        return file_text(path)
    except ValueError as error:
        raise SettingsError(f"{name} names a file that cannot be used: {error}") from None


def _family_of_misspelt(name: str) -> str | None:
    """Return the family of variables of which this name misspells the ending."""
    for family in _families():
        ending = name.rpartition("_")[2]
        alike = difflib.SequenceMatcher(None, family.suffix.removeprefix("_"), ending).ratio()
        if name.startswith(family.prefix) and alike >= SIMILAR_TO_OURS:
            return str(family)
    return None


@cache
def _resembles_one(name: str) -> bool:
    """Return True if a name resembles one of ours, or one of a service that this project replaces."""
    return bool(difflib.get_close_matches(name, _names_of_services(), n=1, cutoff=SIMILAR_TO_NAME))


@cache
def _names_of_services() -> tuple[str, ...]:
    """Return those names, ours and of replaced services, whose prefix does not show to which program they belong."""
    return (*(one for one in _known_variables() if not one.startswith(OWN_PREFIXES)), *IGNORED_NAMES)


# Cached: a process reads its settings more than once, and other programs' names in its environment do not change.
@cache
def _nearest(name: str, similarity: float) -> str | None:
    """Return our variable that is most similar to this name, if it reaches this similarity."""
    return next(iter(difflib.get_close_matches(name, _known_variables(), n=1, cutoff=similarity)), None)


def _invalid_values(error: ValidationError, origins: Mapping[str, Origin]) -> str:
    fields = dict(leaves(Settings))
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        parts = [part for part in problem["loc"] if isinstance(part, str)]
        is_whole = parts[0] not in fields or len(parts) == 1
        path = ".".join(parts[:2]) if parts[0] not in fields else parts[0]
        known_as = ".".join(parts[:3])
        if path in fields and is_whole:
            known_as = next(iter(variables_of(fields[path])), str(family_of(fields[path]) or path))
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{known_as} (from {origins.get(path, Origin.DEFAULT)}): {message}.")
    # Report several bad items of one list only once.
    return "\n".join(dict.fromkeys(lines))


def _require_two_databases(settings: Settings) -> None:
    """Reject a shared database: the warehouse and Dagster store their versions in tables of the same name."""
    urls = (settings.warehouse.database_url, settings.dagster.postgres_url)
    # Do not contact a vault just for this check.
    if any(map(is_in_vault, urls)):
        return
    warehouse, dagster = (database_of(url.get_secret_value()) for url in urls)
    if warehouse is not None and warehouse == dagster:
        raise SettingsError(
            "DATABASE_URL and DAGSTER_POSTGRES_URL name the same database. Give Dagster one of its own."
        )
