"""The columns of one file to the columns of a reading, as its profile says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from ingest_project.errors import FileRejected
from ingest_project.formats.profiles import READING_COLUMNS, Quantity, ReaderProfile, normal_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMES_SHOWN = 12


@dataclass(frozen=True)
class Layout:
    """Where each column of a reading comes from in one file.

    Args:
        wanted: name in the table that is read, to index in the file.
        constants: column of a reading to its text, the same for all rows; None for a column the file leaves out.
        quantities: wide files: name in the table to what it measures.
    """

    wanted: Mapping[str, int]
    constants: Mapping[str, str | None]
    quantities: Mapping[str, Quantity]


def known_names(profile: ReaderProfile) -> frozenset[str]:
    """Every column name the profile knows, for telling a delimiter that makes sense from one that does not."""
    return frozenset(normal_name(name) for name in (*profile.columns, *profile.quantities))


def match_columns(names: Sequence[str], profile: ReaderProfile, file_name: str) -> Layout:
    """Find the profile's columns in a header.

    Raises:
        FileRejected: `missing_column`, `duplicate_column` or `file_name` (it lacks what the profile takes from it).
    """
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(normal_name(name), []).append(index)
    wanted: dict[str, int] = {}
    for source, column in profile.columns.items():
        for index in places.get(normal_name(source), []):
            if column in wanted:
                raise FileRejected("duplicate_column", f"More than one column of the file is {column}.")
            wanted[column] = index
    quantities = _match_quantities(places, profile)
    constants: dict[str, str | None] = {}
    constants.update(profile.constants.items())
    constants |= {column: _from_file_name(file_name, p, column) for column, p in profile.from_file_name.items()}
    given = {"sensor_type", "value", "unit"} if profile.quantities else set()
    missing = [column for column in READING_COLUMNS if column not in {*wanted, *constants, *given}]
    required = [column for column in missing if column not in profile.optional]
    if required:
        raise FileRejected("missing_column", _missing(required, names, profile))
    return Layout(wanted | quantities[0], constants | dict.fromkeys(missing), quantities[1])


def _match_quantities(
    places: Mapping[str, list[int]], profile: ReaderProfile
) -> tuple[dict[str, int], dict[str, Quantity]]:
    indexes: dict[str, int] = {}
    found: dict[str, Quantity] = {}
    for number, (source, quantity) in enumerate(profile.quantities.items()):
        indices = places.get(normal_name(source), [])
        if not indices:
            raise FileRejected("missing_column", f"The header has no column {source!r} (profile {profile.name}).")
        if len(indices) > 1:
            raise FileRejected("duplicate_column", f"More than one column of the file is called {source!r}.")
        indexes[f"quantity_{number}"], found[f"quantity_{number}"] = indices[0], quantity
    return indexes, found


def _from_file_name(file_name: str, pattern: str, column: str) -> str:
    match = re.search(pattern, file_name)
    if match is None or not match.group(1):
        raise FileRejected("file_name", f"The file's name, {file_name!r}, does not tell its {column}.")
    return match.group(1)


def _missing(columns: Sequence[str], names: Sequence[str], profile: ReaderProfile) -> str:
    expected = [_named(column, profile) for column in columns]
    found = ", ".join(repr(name[:40]) for name in names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
    return f"The header has no column {', '.join(expected)} (profile {profile.name}). It has {found}."


def _named(column: str, profile: ReaderProfile) -> str:
    source = next((source for source, target in profile.columns.items() if target == column), column)
    return repr(source) if source == column else f"{source!r} ({column})"


def to_readings(table: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """A table's rows as readings: line_number and the columns of a reading, all of them text.

    In a wide file one row becomes as many readings as it has quantities that are not empty, in the profile's order.
    """
    if not layout.quantities:
        return _ordered(table, layout.constants)
    parts = [
        _ordered(
            table.filter(pl.col(name).is_not_null()).rename({name: "value"}),
            {**layout.constants, "sensor_type": quantity.sensor_type, "unit": quantity.unit},
        )
        for name, quantity in layout.quantities.items()
    ]
    return pl.concat(parts).sort("line_number", maintain_order=True)


def _ordered(table: pl.DataFrame, constants: Mapping[str, str | None]) -> pl.DataFrame:
    columns = ["line_number", *READING_COLUMNS]
    if table.columns == columns:
        return table
    return table.select(
        pl.lit(constants[name], pl.String).alias(name) if name in constants else pl.col(name) for name in columns
    )
