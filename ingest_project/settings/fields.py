"""What a settings section is made of: fields that know which environment variables set them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


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


class Section(BaseModel):
    """A part of the tree: unknown names are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _read_json(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value


CommaList = Annotated[list[str], BeforeValidator(_split_commas)]
PathList = Annotated[list[Path], BeforeValidator(_split_commas)]
SecondsList = Annotated[list[float], BeforeValidator(_split_commas)]
# Marks a field whose value has a shape of its own: nested in config.yaml, JSON in an environment variable.
AsJson = BeforeValidator(_read_json)
