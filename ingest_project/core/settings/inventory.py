"""The settings in force, each with where it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

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
