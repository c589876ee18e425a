"""Fields of settings: the environment variables that set them, and the shapes that their values are written in."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

LIST_SHAPES = 'write a,b or ["a", "b"]'
# An IPv6 address in brackets, with or without a port, is no JSON.
BRACKETED_ADDRESSES = re.compile(r"\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\][^\[\]\"{}]*(,.*)?")
LONGEST = {"seconds": 36_525 * 86_400, "hours": 36_525 * 24, "days": 36_525}


@dataclass(frozen=True)
class Env:
    """The environment variables that set a field, the first found wins."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class EnvFamily:
    """Variables that together set a mapping: of `ONELAKE_*_PATH`, ONELAKE_CLAIMS_PATH sets the entry `claims`."""

    prefix: str
    suffix: str

    def __str__(self) -> str:
        """Return the family as people write it: `ONELAKE_*_PATH`."""
        return f"{self.prefix}*{self.suffix}"

    def entry(self, variable: str) -> str | None:
        """Return the entry that a variable sets, in lower case; None for a variable that is not of the family."""
        if not (variable.startswith(self.prefix) and variable.endswith(self.suffix)):
            return None
        return variable[len(self.prefix) : len(variable) - len(self.suffix)].lower() or None


def as_list(value: object) -> object:
    """Read a list from `a,b`, one item a line, or JSON, in which alone items may hold commas and quotes."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{") or (text.startswith("[") and not BRACKETED_ADDRESSES.fullmatch(text)):
        parsed = _parsed(text, LIST_SHAPES)
        if not isinstance(parsed, list):
            raise ValueError(f"it is no list; {LIST_SHAPES}")
        return parsed
    parts = [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]
    if any(set(part) & set("\"'") for part in parts):
        raise ValueError(f"quotes would become part of the value; {LIST_SHAPES}")
    return parts


def _read_json(value: object) -> object:
    return _parsed(value) if isinstance(value, str) else value


def _parsed(text: str, remedy: str = 'write {"name": ...}') -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        # The text itself is not quoted: a password may be in it.
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"it is not JSON{where}; {remedy}") from None


def _reasonable(value: object, info: ValidationInfo) -> object:
    """Refuse durations that Python cannot add to today's date."""
    unit = (info.field_name or "").rpartition("_")[2]
    if isinstance(value, int | float) and unit in LONGEST and value > LONGEST[unit]:
        raise ValueError(f"it is at most {LONGEST[unit]:,} {unit}, a hundred years")
    return value


class Section(BaseModel):
    """A part of the tree: unknown names are errors, values never change, its docstring describes each field."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _reasonable = field_validator("*", mode="after")(_reasonable)


CommaList = Annotated[list[str], BeforeValidator(as_list)]
PathList = Annotated[list[Path], BeforeValidator(as_list)]
SecondsList = Annotated[list[float], BeforeValidator(as_list)]
# Marks a field whose value has a shape of its own: nested in config.yaml, JSON in an environment variable.
AsJson = BeforeValidator(_read_json)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every field that holds a value with its path in the tree, e.g. `kafka.group_id`."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def variables_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the environment variables that set a field; the first one that is set wins."""
    return next((mark.names for mark in field.metadata if isinstance(mark, Env)), ())


def family_of(field: FieldInfo) -> EnvFamily | None:
    """Return the family of variables that sets a field's entries, if it has one."""
    return next((mark for mark in field.metadata if isinstance(mark, EnvFamily)), None)


@cache
def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Return the descriptions in a section's docstring, by field name."""
    arguments = (inspect.getdoc(section) or "").partition("\nArgs:\n")[2]
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in found}
