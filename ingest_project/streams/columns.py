"""The columns of a declared stream: those of any contract, with the paths of their fields in a message."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import field_validator, model_validator

from ingest_project.contracts.columns import Column

PATH = re.compile(r"\$(\.[A-Za-z_][A-Za-z0-9_-]*)+")


class StreamColumn(Column):
    """A column of a stream.

    Args:
        path: of the field in the message, e.g. `$.customer.id`; the field of the column's name by default.
        epoch: of a timestamp that is sent as a number: what the number counts since 1970, UTC.
    """

    path: str = ""
    epoch: Literal["seconds", "milliseconds", "microseconds"] | None = None

    @field_validator("path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if path and not PATH.fullmatch(path):
            raise ValueError(f"{path!r} is no path; write it like $.customer.id")
        return path

    @model_validator(mode="after")
    def _epoch_is_a_time(self) -> Self:
        if self.epoch and self.kind != "timestamp":
            raise ValueError(f"column {self.name}: epoch is for timestamps")
        return self

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the fields that lead to the value."""
        return tuple(self.path.split(".")[1:]) or (self.name,)
