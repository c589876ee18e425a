"""Load the settings in force, each with its origin, and reject names that set nothing.

A misspelt setting must not silently leave the default in force.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from dotenv import dotenv_values
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings.fields import Env, EnvFamily, Section
from ingest_project.core.settings.tree import Settings


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
        for path, field in leaves():
            value: Any = self.settings
            for name in path.split("."):
                value = getattr(value, name)
            family = family_of(field)
            names = (str(family),) if family else variables_of(field)
            yield Setting(path, names, field.description or "", value, self.origins.get(path, Origin.DEFAULT))


def leaves(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field that holds a value, with its place in the tree."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def variables_of(field: FieldInfo) -> tuple[str, ...]:
    """The environment variables that set a field, the first found wins."""
    return next((mark.names for mark in field.metadata if isinstance(mark, Env)), ())


def family_of(field: FieldInfo) -> EnvFamily | None:
    """The family of variables that sets a field's entries, where it has one."""
    return next((mark for mark in field.metadata if isinstance(mark, EnvFamily)), None)


@cache
def known_variables() -> frozenset[str]:
    """Every environment variable that sets something, families aside."""
    return frozenset(name for _, field in leaves() for name in variables_of(field)) | {"INGEST_CONFIG_DIR"}


@cache
def variable_families() -> tuple[EnvFamily, ...]:
    """Every family of environment variables that sets something."""
    return tuple(family for _, field in leaves() if (family := family_of(field)))


OWN_PREFIXES = ("INGEST_", "KAFKA_", "ONELAKE_")
# What the services that this project replaces had in their own files: it has no meaning here, and does no harm.
FOREIGN_NAMES = ("KAFKA_TOPIC", "KAFKA_TOPICS", "KAFKA_CLIENT_ID", "KAFKA_ENABLE_AUTO_COMMIT", "ENABLE_AUTO_COMMIT")
# What Kafka's own start scripts and the images of brokers, registries and their pages are set by.
OF_A_BROKER = re.compile(
    r"KAFKA_(HOME|OPTS|PORT|HOST|VERSION|IMAGE|TAG|\w+_OPTS|(CFG|KRAFT|CLUSTER|NODE|BROKER|PROCESS|CONTROLLER|LISTENERS?"
    r"|ADVERTISED|INTER|ZOOKEEPER|LOG|LOG4J|NUM|OFFSETS|TRANSACTION|SHARE|DEFAULT|MIN|MESSAGE|REPLICA|CREATE|DELETE"
    r"|AUTO_CREATE|AUTHORIZER|SUPER|ALLOW|GROUP_(INITIAL|MIN|MAX|COORDINATOR)|HEAP|JVM|JMX|METRIC|CONFLUENT|UI|REST"
    r"|CONNECT|SCHEMA|SASL_(ENABLED|JAAS)|SSL_(KEY|KEYSTORE|TRUSTSTORE|CLIENT|SECRETS))(_\w+)?)"
)
FOREIGN_FAMILIES = ("DAGSTER_", "AWS_", "AZURE_", "PG", "PYTHON")
# What Kubernetes sets in every container for a Service called `kafka`, `ingest-...` or `onelake-...`.
SERVICE_LINK = re.compile(r"[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_\w+)?)")
SERVICE_ADDRESS = ("tcp://", "udp://")
SIMILAR_ENOUGH = 0.86
LEAST_SIMILAR = 0.5


def unknown_variables(variables: Mapping[str, str], origin: Origin) -> Iterator[str]:
    """What to say of each variable that is meant for us, as far as its name shows, and sets nothing."""
    known = known_variables()
    for name in sorted(variables):
        if name in known or name in FOREIGN_NAMES or name.startswith(FOREIGN_FAMILIES):
            continue
        nearest = _nearest(name, SIMILAR_ENOUGH)
        if OF_A_BROKER.fullmatch(name) and not nearest:
            continue
        if SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and variables[name].startswith(SERVICE_ADDRESS)):
            continue
        if any(family.entry(name) for family in variable_families()):
            continue
        # A shell's environment is full of other programs' names, and a .env file is often shared with them.
        if name.startswith(OWN_PREFIXES):
            guess = _nearest(name, LEAST_SIMILAR)
            hint = f" Did you mean {guess}?" if guess else " `ingest config` lists every setting."
            yield f"Unknown setting {name} in {origin}.{hint}"
        elif nearest and len(name) > len("ENVIRON"):
            yield f"Unknown setting {name} in {origin}. Did you mean {nearest}?"


def unknown_yaml_names(values: Mapping[str, object]) -> Iterator[str]:
    """What to say of each name in config.yaml that is no setting."""
    known = [path for path, _ in leaves()]
    for path in values:
        if path not in known:
            guess = difflib.get_close_matches(path, known, n=1, cutoff=LEAST_SIMILAR)
            hint = f" Did you mean {guess[0]}?" if guess else " `ingest config` lists every setting."
            yield f"Unknown setting {path} in {Origin.YAML}.{hint}"


# A process reads its settings more than once, and the other programs' names in its environment stay what they are.
@cache
def _nearest(name: str, similarity: float) -> str | None:
    """The variable of ours that this name is most like, if it is that similar."""
    return next(iter(difflib.get_close_matches(name, known_variables(), n=1, cutoff=similarity)), None)


DEFAULT_PORT = 5432
THIS_MACHINE = {"", "localhost", "127.0.0.1", "::1"}


def require_two_databases(settings: Settings) -> None:
    """Warehouse and Dagster each keep their version in a table of the same name, and take the other's for their own.

    Raises:
        SettingsError: both addresses name one database, and no schema of its own for one of them.
    """
    urls = (settings.warehouse.database_url, settings.dagster.postgres_url)
    warehouse, dagster = (_place(url.get_secret_value()) for url in urls)
    if warehouse is not None and warehouse == dagster:
        raise SettingsError(
            "DATABASE_URL and DAGSTER_POSTGRES_URL name the same database. Give Dagster one of its own."
        )


def _place(database_url: str) -> tuple[str, int, str, str] | None:
    """Host, port, database and session options, which may name a schema; None where it is not PostgreSQL."""
    try:
        url = urlsplit(database_url)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        port = int(query.get("port") or url.port or DEFAULT_PORT)
    except ValueError:
        return None
    if url.scheme.partition("+")[0] not in {"postgres", "postgresql"}:
        return None
    host = query.get("host") or url.hostname or ""
    database = query.get("dbname") or unquote(url.path.lstrip("/")) or unquote(url.username or "")
    return (
        "localhost" if host in THIS_MACHINE else host.lower(),
        port,
        database,
        query.get("options", ""),
    )


def load_settings(environ: Mapping[str, str] | None = None, folder: Path | None = None) -> LoadedSettings:
    """Read and check every setting.

    Args:
        environ: environment variables; the process's own by default.
        folder: where `.env` and `config.yaml` are looked for; INGEST_CONFIG_DIR or the current folder by default.

    Raises:
        SettingsError: a value is malformed or a name is unknown, and the message lists all of them; or warehouse and
            Dagster are to share one database.
    """
    environ = os.environ if environ is None else environ
    folder = folder or Path(environ.get("INGEST_CONFIG_DIR", "."))
    dotenv = {name: value for name, value in dotenv_values(folder / ".env").items() if value is not None}
    yaml_values = _flatten(_read_yaml(folder / "config.yaml"), frozenset(path for path, _ in leaves()))
    problems = [
        *unknown_variables(environ, Origin.ENVIRONMENT),
        *unknown_variables(dotenv, Origin.DOTENV),
        *unknown_yaml_names(yaml_values),
    ]
    if problems:
        raise SettingsError("\n".join(problems))

    values: dict[str, object] = {}
    origins: dict[str, Origin] = {}
    for path, field in leaves():
        for origin, found in (
            (Origin.ENVIRONMENT, _from_variables(environ, field)),
            (Origin.DOTENV, _from_variables(dotenv, field)),
            (Origin.YAML, yaml_values.get(path)),
        ):
            if found is not None and found != "":
                values[path], origins[path] = found, origin
                break
    state_dir = Path(str(values.get("state_dir", Settings.model_fields["state_dir"].default)))
    for path, address in embedded_services(state_dir).items():
        if path not in values:
            values[path], origins[path] = address, Origin.EMBEDDED
    settings = _build(values, origins)
    require_two_databases(settings)
    return LoadedSettings(settings, origins)


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
        fields = dict(leaves())
        lines = []
        for problem in error.errors(include_url=False, include_input=False):
            path = ".".join(str(part) for part in problem["loc"][:2] if isinstance(part, str))
            known_as = next(iter(variables_of(fields[path])), path) if path in fields else path
            lines.append(f"{known_as} (from {origins.get(path, Origin.DEFAULT)}): {problem['msg']}.")
        # Of several bad items of one list, say it once.
        raise SettingsError("\n".join(dict.fromkeys(lines))) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not YAML: it is not UTF-8.") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {_problem_of(error)}.") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold names and values, not {type(content).__name__}.")
    return content


def _problem_of(error: yaml.YAMLError) -> str:
    """What is wrong and where, without what is quoted of the file: a password may begin with any character."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it holds characters that YAML does not allow"
    problem = re.sub(r" '(?!<)[^']*'", "", error.problem or "it cannot be read")
    return f"{problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"


def _flatten(tree: Mapping[str, Any], known: frozenset[str], prefix: str = "") -> dict[str, object]:
    """Values by their place in the tree; a setting that is a mapping itself stays whole."""
    flat: dict[str, object] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in known:
            flat |= _flatten(value, known, f"{path}.")
        else:
            flat[path] = value
    return flat


def _from_variables(variables: Mapping[str, str], field: FieldInfo) -> object:
    if family := family_of(field):
        return {entry: value for name, value in variables.items() if value and (entry := family.entry(name))} or None
    return next((variables[name] for name in variables_of(field) if variables.get(name)), None)
