"""What a settings section is made of: fields that know which environment variables set them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

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
        """As people write it: `ONELAKE_*_PATH`."""
        return f"{self.prefix}*{self.suffix}"

    def entry(self, variable: str) -> str | None:
        """The entry that a variable sets, in lower case; None for a variable of no such name."""
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
        # Not what was found there: a password may be in it.
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"it is not JSON{where}; {remedy}") from None


def _reasonable(value: object, info: ValidationInfo) -> object:
    """Refuse lengths of time that no clock of Python's can add to today."""
    unit = (info.field_name or "").rpartition("_")[2]
    if isinstance(value, int | float) and unit in LONGEST and value > LONGEST[unit]:
        raise ValueError(f"it is at most {LONGEST[unit]:,} {unit}, a hundred years")
    return value


class Section(BaseModel):
    """A part of the tree: unknown names are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    _reasonable = field_validator("*", mode="after")(_reasonable)


CommaList = Annotated[list[str], BeforeValidator(as_list)]
PathList = Annotated[list[Path], BeforeValidator(as_list)]
SecondsList = Annotated[list[float], BeforeValidator(as_list)]
# Marks a field whose value has a shape of its own: nested in config.yaml, JSON in an environment variable.
AsJson = BeforeValidator(_read_json)
