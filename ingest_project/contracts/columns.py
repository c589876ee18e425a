"""The columns that a dataset or a stream declares: names, types, rules; `validation` makes pandera schemas of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self

import polars as pl
from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from ingest_project.core.yaml_models import Declared, nearest

UTC_MICROSECONDS = pl.Datetime("us", "UTC")
TYPES: dict[str, pl.DataType] = {
    "text": pl.String(),
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "date": pl.Date(),
    "timestamp": UTC_MICROSECONDS,
    "json": pl.String(),
}
STRUCT = "struct"
# Aliases: names of these types in other systems.
OTHER_NAMES = (
    dict.fromkeys(("string", "str", "varchar", "char"), "text")
    | dict.fromkeys(("float", "double", "real"), "number")
    | {"long": "integer", "datetime": "timestamp", "time": "timestamp", "numeric": "decimal", "object": "json"}
)
# Of a stream, whose messages have objects.
NAMES_OF_STRUCT = dict.fromkeys(("record", "message", "nested"), STRUCT)
DECIMAL = re.compile(r"decimal\(\s*([0-9]{1,2})\s*,\s*([0-9]{1,2})\s*\)")
# Spelled out, because `dg check yaml` shows it as the error for any other type.
ANY_DECIMAL = r"decimal\([0-9 ]+,[0-9 ]+\)"
ANY_TYPE = rf"^({'|'.join((*TYPES, ANY_DECIMAL))})$"
ANY_TYPE_OF_STREAM = rf"^({'|'.join((*TYPES, STRUCT, ANY_DECIMAL))})$"
# The most digits that Arrow, Delta and Polars store in 128 bits.
MAX_DIGITS = 38
ORDERED = ("integer", "number", "decimal", "date", "timestamp")
# Names of the engine's columns, and of the column in which pandera returns the outcome of a check.
OWN_NAMES = frozenset({"file_key", "file_index", "line_number", "rescued_data", "check_output"})

# Name of the column with the text that a typed column was parsed from: no declared column can have it.
TEXT_OF = "{}:text".format
# Name of the column that says what is wrong with a value that is of the type of its column, but does not fit in it:
# a clock time that names no single moment (see CLOCK_FAULTS), or a number (see NUMBER_FAULTS); null elsewhere.
FAULT_OF = "{}:fault".format
NUMBER_FAULTS = ("out_of_range", "too_many_decimals")
WRITTEN_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,9})?")
INTEGERS = range(-(2**63), 2**63)
# Faults of clock times, by name, with their remedies.
CLOCK_FAULTS = {
    "ambiguous_time": "Clocks passed some times twice: set timestamps.ambiguous of the reader to earliest or latest.",
    "skipped_time": "Clocks skipped some times: is timestamps.zone of the reader the right one?",
}
ENDS = "Rows end in a delimiter that the header does not have: set trailing_delimiter of the reader to true."
OWNER = re.compile(r"team:\S[^\r\n]*|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")
PATH_IN_MESSAGE = re.compile(r"\$(\.[A-Za-z_][A-Za-z0-9_-]*)+")


def remedies_of(rules: Iterable[str]) -> list[str]:
    """Return the remedies for broken rules that a setting of the reader mends."""
    names, remedies = tuple(rules), {**CLOCK_FAULTS, "trailing_delimiter": ENDS}
    return [remedy for fault, remedy in remedies.items() if any(name.endswith(fault) for name in names)]


def number_fault(text: str, column: Column) -> str | None:
    """Return the item of NUMBER_FAULTS that keeps a number out of its column; None if another fault does.

    Args:
        text: that cannot be read as the type of the column, with a decimal point and without marks between digits.
        column: of it.
    """
    if not WRITTEN_NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    if column.kind == "integer":
        return "out_of_range" if not INTEGERS[0] <= number <= INTEGERS[-1] else None
    if column.digits is None:
        return "out_of_range" if math.isinf(float(number)) else None
    digits, places = column.digits
    if number and number.adjusted() >= digits - places:
        return "out_of_range"
    significant = "".join(map(str, number.as_tuple().digits)).rstrip("0")
    decimals = len(significant) - 1 - number.adjusted()
    return "too_many_decimals" if number and decimals > places else None


def _known_type(text: str, names: Sequence[str] = tuple(TYPES), others: Mapping[str, str] = OTHER_NAMES) -> str:
    found = DECIMAL.fullmatch(text)
    if found is None:
        if text not in names:
            base = text.partition("(")[0].strip().lower()
            (alike,) = get_close_matches(base, [*names, "decimal", *others], n=1) or [base]
            guess = nearest(others.get(alike, alike), [*names, "decimal"])
            known = f"types are {', '.join(names)} and decimal(digits, decimal places)"
            # Between braces, YAML takes the comma for the end of the value.
            guess = ', write it in quotes, as "decimal(12,2)"' if base == "decimal" else guess
            raise ValueError(f"{text!r} is no type; {known}{guess}")
        return text
    digits, places = int(found[1]), int(found[2])
    if not (1 <= digits <= MAX_DIGITS and places <= digits):
        raise ValueError(f"{text!r} needs 1 to {MAX_DIGITS} digits, and no more decimal places than digits")
    return f"decimal({digits},{places})"


def _known_type_of_stream(text: str) -> str:
    return _known_type(text, (*TYPES, STRUCT), OTHER_NAMES | NAMES_OF_STRUCT)


def _free_name(name: str) -> str:
    if name in OWN_NAMES or name.startswith("kafka_"):
        raise ValueError(f"{name!r} is a column of the engine's own; choose another name")
    return name


def _known_owner(owner: str) -> str:
    # Dagster refuses the assets of all datasets for one such owner.
    if not OWNER.fullmatch(owner):
        raise ValueError(f"{owner!r} is no owner; write an address, or a team as in team:climate")
    return owner


Owners = tuple[Annotated[str, AfterValidator(_known_owner)], ...]


class Column(Declared):
    """One column of a dataset or a stream.

    Args:
        name: in the table.
        type: `text`, `integer` (64 bits), `number` (64-bit float), `decimal(digits, decimal places)`, `boolean`,
            `date`, `timestamp` (UTC, microseconds) or `json`.
        required: True if every row must have a value.
        min, max: the least and greatest value, both allowed; of an integer, number, decimal, date or timestamp.
        pattern: a regular expression that the whole text must match.
        allowed: the only values allowed.
        unit: of the values.
        description: shown to users.
    """

    name: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$"), AfterValidator(_free_name)]
    type: Annotated[str, AfterValidator(_known_type), WithJsonSchema({"type": "string", "pattern": ANY_TYPE})]
    required: bool = False
    min: Any = None
    max: Any = None
    pattern: str | None = None
    allowed: tuple[Any, ...] | None = None
    unit: str | None = None
    description: str = ""

    @model_validator(mode="after")
    def _rules_fit_the_type(self) -> Self:
        try:
            self._require_sound_rules()
        except ValueError as error:
            raise ValueError(f"column {self.name}: {error}") from None
        return self

    def _require_sound_rules(self) -> None:
        if self.kind not in ORDERED and (self.min is not None or self.max is not None):
            raise ValueError(f"min and max do not apply to {self.type}")
        if self.min is not None and self.max is not None and self.value_of(self.min) > self.value_of(self.max):
            raise ValueError("min is greater than max")
        if self.pattern is not None:
            if self.kind != "text":
                raise ValueError(f"pattern does not apply to {self.type}")
            linear(whole_text(self.pattern))
        if self.allowed is not None and self.kind == STRUCT:
            raise ValueError("allowed does not apply to struct")
        if self.allowed is not None and (not self.allowed or self.kind in ("boolean", "json")):
            raise ValueError("allowed needs at least one value, of a type other than boolean and json")
        for value in (self.min, self.max, *(self.allowed or ())):
            if value is not None or value in (self.allowed or ()):
                self.value_of(value)

    @property
    def kind(self) -> str:
        """The type without its digits: `decimal` for `decimal(12,2)`."""
        return self.type.partition("(")[0]

    @property
    def digits(self) -> tuple[int, int] | None:
        """Of a decimal: its digits in all, and those after the point."""
        found = DECIMAL.fullmatch(self.type)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def polars_type(self) -> pl.DataType:
        """The type in a Polars frame."""
        return pl.Decimal(*self.digits) if self.digits else TYPES[self.type]

    def value_of(self, written: object) -> Any:  # noqa: ANN401 - the type is the column's
        """Return a bound or an allowed value, as YAML reads it, in the type of the column.

        Raises:
            ValueError: it is not a value of this type.
        """
        try:
            return PARSERS[self.kind](written)
        except (ValueError, TypeError, InvalidOperation):
            hint = HINTS.get(self.kind, "")
            shown = str(written) if isinstance(written, date) else repr(written)
            raise ValueError(f"{shown} is not of type {self.type}{hint}") from None


class StreamColumn(Column):
    """A column of a stream, with the path of its field in a message.

    Args:
        type: as of any column, or `struct`: an object whose fields are columns of their own in it.
        path: of the field in the message, or in the object of the struct around it, e.g. `$.customer.id`; the field of
            the column's name by default.
        epoch: of a timestamp that is sent as a number, or a text of one: what it counts since 1970, UTC. Digits beyond
            the microsecond are left out.
        fields: of a struct. A required one must have a value wherever the struct is there.
    """

    type: Annotated[
        str, AfterValidator(_known_type_of_stream), WithJsonSchema({"type": "string", "pattern": ANY_TYPE_OF_STREAM})
    ]
    path: str = ""
    epoch: Literal["seconds", "milliseconds", "microseconds", "nanoseconds"] | None = None
    fields: tuple[StreamColumn, ...] = ()

    @field_validator("path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if path and not PATH_IN_MESSAGE.fullmatch(path):
            raise ValueError(f"{path!r} is no path; write it like $.customer.id")
        return path

    @model_validator(mode="after")
    def _epoch_is_a_time(self) -> Self:
        if self.epoch and self.kind != "timestamp":
            raise ValueError(f"column {self.name}: epoch is for timestamps")
        return self

    @model_validator(mode="after")
    def _a_struct_has_fields(self) -> Self:
        if (self.type == STRUCT) != bool(self.fields):
            wrong = "a struct needs fields" if self.type == STRUCT else "fields are for the type struct"
            raise ValueError(f"column {self.name}: {wrong}")
        return self

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the fields that lead to the value."""
        return tuple(self.path.split(".")[1:]) or (self.name,)

    def flat(self) -> Iterator[StreamColumn]:
        """Yield the column, then the fields inside it: each named by, and with the path of, all that is around it."""
        yield self
        for one in self.fields:
            whole = {"name": f"{self.name}.{one.name}", "path": ".".join(("$", *self.steps, *one.steps))}
            yield from one.model_copy(update=whole).flat()


def linear(pattern: str) -> str:
    """Return a regular expression that the engine of linear time takes; an untrusted text never meets another one.

    Raises:
        ValueError: it is none, looks ahead, behind or back, or needs too much memory.
    """
    try:
        pl.Series([""]).str.contains(pattern)
    except pl.exceptions.ComputeError as error:
        reason = str(error).partition("\n\n")[0].rpartition("error: ")[2].rstrip(".")
        raise ValueError(f"{pattern!r} is not a regular expression of linear time: {reason}") from None
    return pattern


def whole_text(pattern: str) -> str:
    """Return the regular expression that the whole text has to match."""
    return f"^(?:{pattern})$"


def _of(value: object, *kinds: type) -> Any:  # noqa: ANN401 - of one of the kinds
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError
    return value


def _text(value: object) -> str:
    return str(_of(value, str))


def _integer(value: object) -> int:
    found = int(_of(value, int, str))
    if not -(2**63) <= found < 2**63:
        raise ValueError
    return found


def _exact(value: object) -> Decimal:
    # The digits as they are written: 0.1 is not the nearest binary fraction.
    found = Decimal(str(_of(value, int, float, str, Decimal)))
    if not found.is_finite() or abs(found.adjusted()) >= MAX_DIGITS or len(found.as_tuple().digits) > MAX_DIGITS:
        raise ValueError
    return found


def _number(value: object) -> float:
    found = float(_of(value, int, float, str))
    if found - found != 0:
        raise ValueError
    return found


def _date(value: object) -> date:
    if isinstance(value, datetime):
        raise TypeError
    return value if isinstance(value, date) else date.fromisoformat(_text(value))


def _timestamp(value: object) -> datetime:
    found = value if isinstance(value, datetime) else datetime.fromisoformat(_text(value))
    if found.tzinfo is None:
        raise ValueError
    return found.astimezone(UTC)


PARSERS = {
    "text": _text,
    "integer": _integer,
    "number": _number,
    "decimal": _exact,
    "date": _date,
    "timestamp": _timestamp,
}
HINTS = {
    "text": ": put it in quotes",
    "date": ": write it like 2024-01-31",
    "timestamp": ": write it with its offset, like 2024-01-31T00:00:00Z",
}
