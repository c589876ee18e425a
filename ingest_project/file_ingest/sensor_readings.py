"""Split typed readings into accepted and rejected ones, with all reasons of each rejected one.

The rules are Polars expressions, each of them one check of a pandera schema; see `contracts.validation`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import pandera.polars as pa
import polars as pl
import yaml
from pydantic import TypeAdapter, ValidationError, model_validator

from ingest_project.contracts.columns import CLOCK_FAULTS, FAULT_OF, UTC_MICROSECONDS
from ingest_project.contracts.validation import ValidatedRows, row_check
from ingest_project.contracts.validation import validate as validate_rows
from ingest_project.core.errors import SettingsError
from ingest_project.core.items import grouped
from ingest_project.core.yaml_models import FAST_LOADER, Declared, mistakes, yaml_content
from ingest_project.readers import RESCUED
from ingest_project.readers.casting import KIND_OF, clean_name, is_suspicious, matched_name, unusual_names
from ingest_project.readers.cells import FORMULA, NUMBER, TEXT

SHIPPED_SENSOR_TYPES = Path(__file__).with_name("sensor_types.yaml")
MAX_NAME_BYTES = 200
ACCEPTED_COLUMNS = ("line_number", "timestamp", "device_id", "sensor_type", "value", "unit")
NAME_COLUMNS = ("device_id", "sensor_type", "unit")
# The aspects of the contract, each with the beginnings of its rules' names; any other rule is about the whole file.
ASPECTS = {
    "timestamps": ("timestamp_",),
    "ids": ("device_id_", "sensor_type_"),
    "ranges": ("value_out_of_range",),
    "numbers": ("value_", "unit_"),
    "columns": ("missing_column", "duplicate_column", "too_few_cells", "too_many_cells", "trailing_delimiter"),
}
COLUMN_TYPES = {
    "timestamp": UTC_MICROSECONDS,
    "device_id": pl.String(),
    "sensor_type": pl.String(),
    "value": pl.Float64(),
    "unit": pl.String(),
}
CLOCK_FAULT = FAULT_OF("timestamp")
CHECK_COLUMNS = frozenset({"timestamp_text", "value_text", CLOCK_FAULT, *map(KIND_OF, ACCEPTED_COLUMNS)})


class SensorType(Declared):
    """Units and limits of one type of sensor.

    Args:
        units: spellings of the one unit its readings come in; empty allows any.
        min, max: the least and greatest possible reading, in that unit; None for no limit.
    """

    units: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _limits_in_order(self) -> SensorType:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is greater than max")
        return self


TYPES = TypeAdapter(dict[str, SensorType])


@dataclass(frozen=True)
class SensorTypes:
    """The known sensor types, and the treatment of readings of any other.

    Args:
        types: by name, without regard to case; readings are stored under this spelling.
        unknown: accept readings of other types without limits, or reject them.
    """

    types: Mapping[str, SensorType]
    unknown: Literal["accept", "quarantine"] = "accept"

    @classmethod
    def load(cls, path: Path | None = None, unknown: Literal["accept", "quarantine"] = "accept") -> SensorTypes:
        """Read the types from a YAML file.

        Args:
            path: None reads the shipped ones.
            unknown: see the class.

        Raises:
            SettingsError: the file is missing, or not of this shape; names the line.
        """
        return cls(_read_types(path), unknown) if path else _shipped(unknown)

    @cached_property
    def by_matched_name(self) -> Mapping[str, str]:
        """The names of the types by their matched form."""
        return {matched: names[0] for matched, names in _same_names(self.types).items()}

    @cached_property
    def lookup(self) -> LimitLookup:
        """The same as columns, for vectorised look-ups."""
        names = list(self.types)
        units = sorted({unit for known in self.types.values() for unit in known.units})
        return LimitLookup(
            type_codes=pl.Enum(names),
            unit_codes=pl.Enum(units),
            lowest=pl.Series([known.min for known in self.types.values()], dtype=pl.Float64),
            highest=pl.Series([known.max for known in self.types.values()], dtype=pl.Float64),
            any_unit=pl.Series([not known.units for known in self.types.values()], dtype=pl.Boolean),
            units=pl.Series([unit in self.types[name].units for name in names for unit in units], dtype=pl.Boolean),
        )


def _read_types(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Mapping[str, SensorType]:
    content = yaml_content(path, "sensor types", loader)
    try:
        types = TYPES.validate_python(content)
    except ValidationError as error:
        raise SettingsError(f"{path} does not contain sensor types: {mistakes(error)}") from None
    same = [names for names in _same_names(types).values() if len(names) > 1]
    if same:
        raise SettingsError(f"{path}: {' and '.join(same[0])} are the same sensor type: case does not matter.")
    return types


@cache
def _shipped(unknown: Literal["accept", "quarantine"]) -> SensorTypes:
    """Return those of the file that is part of this package, read once: each batch needs them."""
    return SensorTypes(_read_types(SHIPPED_SENSOR_TYPES, FAST_LOADER), unknown)


def _same_names(types: Mapping[str, SensorType]) -> dict[str, list[str]]:
    return grouped((matched_name(name), name) for name in types)


class LimitLookup(NamedTuple):
    """Sensor types by code: a code is the position of a name in its enumeration.

    Args:
        type_codes, unit_codes: names of types and units.
        lowest, highest, any_unit: by type code.
        units: whether a unit belongs to a type, by type code * number of units + unit code.
    """

    type_codes: pl.Enum
    unit_codes: pl.Enum
    lowest: pl.Series
    highest: pl.Series
    any_unit: pl.Series
    units: pl.Series


@dataclass(frozen=True)
class ValidationRules:
    """The rules for readings.

    Args:
        sensor_types: units and limits.
        now: the time of validation, UTC.
        future_tolerance: how far ahead of that a timestamp may be.
        earliest: no reading is older: this finds a wrong century and a clock that was never set.
    """

    sensor_types: SensorTypes
    now: datetime
    future_tolerance: timedelta = timedelta(minutes=5)
    earliest: datetime = datetime(1970, 1, 1, tzinfo=UTC)


def validate(rows: pl.DataFrame, rules: ValidationRules) -> ValidatedRows:
    """Separate the good rows from the bad ones.

    Args:
        rows: as `casting.cast` returns them, of any number of files.
        rules: the rules.
    """
    extra = [name for name in rows.columns if name not in {*ACCEPTED_COLUMNS, RESCUED, *CHECK_COLUMNS}]
    kept = [*extra, *ACCEPTED_COLUMNS, *([RESCUED] if RESCUED in rows.columns else [])]
    rows, suspicious, codes = with_clean_names(rows, rules.sensor_types)
    checked = _with_limits(rows, rules.sensor_types.lookup, codes)
    named = row_rules(rules, suspicious, typed=KIND_OF("value") in rows.columns)
    if CLOCK_FAULT in rows.columns:
        named |= _rules_of_clocks(named["timestamp_unparseable"])
    checks = [row_check(name, ~broken) for name, broken in named.items()]
    # The rules judge nulls, which pandera would reject without distinguishing missing from unreadable.
    columns = {name: pa.Column(dtype, nullable=True) for name, dtype in COLUMN_TYPES.items()}
    validated = validate_rows(checked, pa.DataFrameSchema(columns, checks=checks))
    return ValidatedRows(validated.accepted.select(kept), validated.rejected.select(*extra, "line_number", "reasons"))


def row_rules(
    rules: ValidationRules, suspicious: Mapping[str, Sequence[str]] | None = None, *, typed: bool = False
) -> dict[str, pl.Expr]:
    """Return every rule by its stable name, which reports and metrics count by: true for a row that breaks it.

    Args:
        rules: limits and times.
        suspicious: by column, its suspicious names.
        typed: True if the rows have the kinds of their cells.
    """
    found = _rules_of_values(rules) | {
        f"{column}_invalid": _too_long(pl.col(column)) | pl.col(column).is_in(list(names))
        for column, names in (dict.fromkeys(NAME_COLUMNS, ()) | dict(suspicious or {})).items()
    }
    unknown_type = pl.col("sensor_type").is_not_null() & ~pl.col("known_type")
    found["sensor_type_invalid"] = unknown_type & found["sensor_type_invalid"]
    return found | _rules_of_cells(found) if typed else found


def _rules_of_clocks(unparseable: pl.Expr) -> dict[str, pl.Expr]:
    """Return the rules for clock times that their zone passes twice or skips; see `casting.clock_faults`."""
    faults = {f"timestamp_{fault}": pl.col(CLOCK_FAULT) == fault for fault in CLOCK_FAULTS}
    return {"timestamp_unparseable": unparseable & pl.col(CLOCK_FAULT).is_null(), **faults}


def _rules_of_cells(found: Mapping[str, pl.Expr]) -> dict[str, pl.Expr]:
    """Return the rules for readings from a workbook: a cell has a kind that its column allows, and is calculated."""
    changed: dict[str, pl.Expr] = {}
    for column in ("timestamp", "value", *NAME_COLUMNS):
        text = pl.col(column if column in NAME_COLUMNS else f"{column}_text")
        changed[f"{column}_not_calculated"] = _is_formula(column) & text.is_not_null()
        if column in NAME_COLUMNS:
            # A date, a truth value or an error is no name, though it can be written as one.
            wrong_kind = ~pl.col(KIND_OF(column)).is_in([TEXT, NUMBER, FORMULA]) & pl.col(column).is_not_null()
            changed[f"{column}_invalid"] = found[f"{column}_invalid"] | wrong_kind
    for name, column in (("timestamp_unparseable", "timestamp"), ("value_not_a_number", "value")):
        changed[name] = found[name] & ~_is_formula(column)
    return changed


def _is_formula(column: str) -> pl.Expr:
    return (pl.col(KIND_OF(column)) == FORMULA).fill_null(value=False)


def _rules_of_values(rules: ValidationRules) -> dict[str, pl.Expr]:
    timestamp, value = pl.col("timestamp"), pl.col("value")
    unknown_type = pl.col("sensor_type").is_not_null() & ~pl.col("known_type")
    return {
        "timestamp_missing": pl.col("timestamp_text").is_null(),
        "timestamp_unparseable": timestamp.is_null() & pl.col("timestamp_text").is_not_null(),
        "timestamp_in_future": timestamp > rules.now + rules.future_tolerance,
        "timestamp_too_early": timestamp < rules.earliest,
        "device_id_missing": pl.col("device_id").is_null(),
        "sensor_type_missing": pl.col("sensor_type").is_null(),
        "sensor_type_unknown": unknown_type & pl.lit(rules.sensor_types.unknown == "quarantine"),
        "value_missing": pl.col("value_text").is_null(),
        "value_not_a_number": value.is_null() & pl.col("value_text").is_not_null(),
        "value_not_finite": ~value.is_finite(),
        "value_out_of_range": value.is_finite() & ((value < pl.col("lowest")) | (value > pl.col("highest"))),
        "unit_unknown": ~pl.col("known_unit"),
    }


def with_clean_names(
    rows: pl.DataFrame, types: SensorTypes
) -> tuple[pl.DataFrame, dict[str, list[str]], dict[str, pl.Series]]:
    """Strip invisible characters from names, and write known sensor types in their own spelling.

    Returns:
        the rows; by column the names with suspicious characters; and the codes of types and units.
    """
    columns: list[pl.Series] = []
    codes = _codes(rows, types.lookup)
    suspicious: dict[str, list[str]] = {}
    for name in NAME_COLUMNS:
        texts = rows[name]
        # Known spellings of types and units need no check, and most files have no others.
        known = codes.get(name)
        if known is not None and known.null_count() == texts.null_count():
            continue
        unknown = texts if known is None else texts.filter(known.is_null())
        spelling = types.by_matched_name if name == "sensor_type" else {}
        odd = unknown.unique().drop_nulls() if spelling else unusual_names(unknown)
        changed = {}
        for text in odd.to_list():
            clean = clean_name(text)
            changed[text] = spelling.get(matched_name(clean), clean) or None
            if clean and changed[text] == clean and is_suspicious(clean):
                suspicious.setdefault(name, []).append(clean)
        changed = {text: clean for text, clean in changed.items() if clean != text}
        if changed:
            columns.append(texts.replace(changed))
    if not columns:
        return rows, suspicious, codes
    cleaned = rows.with_columns(columns)
    return cleaned, suspicious, _codes(cleaned, types.lookup)


def _codes(rows: pl.DataFrame, lookup: LimitLookup) -> dict[str, pl.Series]:
    """Return the codes of sensor types and units; null for unknown ones."""
    return {
        "sensor_type": rows["sensor_type"].cast(lookup.type_codes, strict=False).to_physical().cast(pl.Int64),
        "unit": rows["unit"].cast(lookup.unit_codes, strict=False).to_physical().cast(pl.Int64),
    }


def _too_long(text: pl.Expr) -> pl.Expr:
    """Match text that is longer than any name."""
    return text.str.len_bytes() > MAX_NAME_BYTES


def _with_limits(rows: pl.DataFrame, lookup: LimitLookup, codes: Mapping[str, pl.Series]) -> pl.DataFrame:
    """Add the limits of each row's sensor type as columns."""
    types, units = codes["sensor_type"], codes["unit"]
    belongs = lookup.units.gather(types * len(lookup.unit_codes.categories) + units)
    return rows.with_columns(
        types.is_not_null().alias("known_type"),
        lookup.lowest.gather(types).alias("lowest"),
        lookup.highest.gather(types).alias("highest"),
        # No unit, any unit, a unit of an unknown type: nothing to compare with.
        (
            rows["unit"].is_null() | types.is_null() | lookup.any_unit.gather(types) | belongs.fill_null(value=False)
        ).alias("known_unit"),
    )
