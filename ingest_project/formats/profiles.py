"""Reader profiles: how one kind of file says what a reading is.

A profile is a YAML file. The shipped ones are in profiles/; a user's own are named in INGEST_READER_PROFILES and
replace a shipped one of the same name. A file is read by the profile that its event's metadata names as `format`.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ingest_project.errors import SettingsError
from ingest_project.yaml_files import mistakes, yaml_content, yaml_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHIPPED_PROFILES = Path(__file__).parent / "profiles"
READING_COLUMNS = ("timestamp", "device_id", "sensor_type", "value", "unit")
DEFAULT_NULLS = ("", "NA", "N/A", "n/a", "null", "NULL", "None")
LONGEST_NULL_BYTES = 12
NAMED_TIME_FORMATS = ("iso8601", "unix_seconds", "unix_milliseconds")
# What chrono's strptime, which Polars uses, understands: Python's directives and a few more.
TIME_DIRECTIVE = re.compile(r"%(?:[-_0]?[aAbBcCdDeFgGhHIjklmMnpPrRsSTuUvVwWxXyYz%]|(?:\.|\.?[369])?f|:{1,3}z|#z)")

ReadingColumn = Literal["timestamp", "device_id", "sensor_type", "value", "unit"]


def normal_name(name: str) -> str:
    """A column name as it is compared: without regard to case and to the amount of white space."""
    return " ".join(name.casefold().split())


def _known_encoding(name: str) -> str:
    try:
        codecs.getincrementaldecoder(codecs.lookup(name).name)
    except LookupError:
        raise ValueError(f"there is no text encoding {name!r}") from None
    return name


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {name!r}; write it like Europe/Berlin") from None
    return name


def _one_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError("the regular expression needs exactly one group, which is the text to take")
    return pattern


def _plain_delimiter(delimiter: str) -> str:
    if not delimiter.isascii() or delimiter in '"\r\n\0 ':
        raise ValueError("a delimiter is one ASCII character, not a quote, space or line end")
    return delimiter


def _short_nulls(spellings: tuple[str, ...]) -> tuple[str, ...]:
    for spelling in spellings:
        if len(spelling.encode()) > LONGEST_NULL_BYTES:
            raise ValueError(f"{spelling!r} is longer than {LONGEST_NULL_BYTES} bytes")
    return spellings


def _time_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    for name in formats:
        if name not in NAMED_TIME_FORMATS and ("%" not in name or "%" in TIME_DIRECTIVE.sub("", name)):
            raise ValueError(f"{name!r} is not a time format")
    return formats


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Quantity(_Part):
    """What one column of a wide file measures.

    Args:
        sensor_type: type of its readings.
        unit: unit of its readings, if known.
    """

    sensor_type: str = Field(min_length=1)
    unit: str | None = None


class TimestampLayout(_Part):
    """How times are written.

    Args:
        formats: `iso8601`, `unix_seconds`, `unix_milliseconds`, or strptime patterns; the first that fits a text wins.
        zone: IANA name of the zone of times that carry no offset.
        ambiguous: which of the two times a clock time means that occurs twice, when clocks go back.
    """

    formats: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_time_formats)] = ("iso8601",)
    zone: Annotated[str, AfterValidator(_known_zone)] = "UTC"
    ambiguous: Literal["reject", "earliest", "latest"] = "reject"


class NumberLayout(_Part):
    """How numbers are written.

    Args:
        decimal: the decimal mark.
        thousands: the mark between groups of three digits, if there is one.
    """

    decimal: Literal[".", ","] = "."
    thousands: Literal[".", ",", " ", "'", "_"] | None = None

    @model_validator(mode="after")
    def _marks_differ(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError("decimal and thousands must be different marks")
        return self


class ReaderProfile(_Part):
    """How to read one kind of file.

    Args:
        name: what a polling job's metadata says as `format`.
        description: for people.
        encoding: of text without a byte order mark.
        delimiter: None finds it: the one of comma, semicolon, tab and bar that makes sense of the header.
        header: whether there is one; without it columns are called "1", "2", ...
        skip_lines: lines (in a workbook, rows) above the header.
        sheet: name or index of the sheet in a workbook.
        columns: column of the file to column of a reading. Names match without regard to case and spacing.
        optional: columns of a reading that a file may leave out.
        quantities: wide files: column of the file to what it measures. An empty cell there is no reading.
        constants: column of a reading to a text that holds for the whole file.
        from_file_name: column of a reading to a regular expression with one group, searched in the file's name.
        timestamps: how times are written.
        numbers: how numbers are written.
        nulls: texts that mean "missing", as written, at most 12 bytes each.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_\-]{0,63}$")
    description: str = ""
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    delimiter: Annotated[str, Field(min_length=1, max_length=1), AfterValidator(_plain_delimiter)] | None = None
    header: bool = True
    skip_lines: int = Field(0, ge=0, le=1_000)
    sheet: int | str = 0
    columns: dict[str, ReadingColumn] = {}
    optional: tuple[ReadingColumn, ...] = ("unit",)
    quantities: dict[str, Quantity] = {}
    constants: dict[ReadingColumn, str] = {}
    from_file_name: dict[ReadingColumn, Annotated[str, AfterValidator(_one_group)]] = {}
    timestamps: TimestampLayout = TimestampLayout()
    numbers: NumberLayout = NumberLayout()
    nulls: Annotated[tuple[str, ...], AfterValidator(_short_nulls)] = DEFAULT_NULLS

    @model_validator(mode="after")
    def _every_column_has_one_source(self) -> Self:
        sources = [*self.columns.values(), *self.constants, *self.from_file_name]
        if self.quantities:
            sources += ["sensor_type", "value", "unit"]
        if not self.columns and not self.quantities:
            raise ValueError("columns and quantities are empty: nothing of the file would be read")
        for column in READING_COLUMNS:
            if column not in sources and column not in self.optional:
                raise ValueError(f"nothing says where {column} comes from")
            if column in {*self.constants, *self.from_file_name} and sources.count(column) > 1:
                raise ValueError(f"{column} comes from more than one place")
        if self.quantities and {"sensor_type", "value", "unit"} & set(self.columns.values()):
            raise ValueError("with quantities, sensor_type, value and unit are not columns of the file")
        return self


def load_profiles(paths: Sequence[Path] = ()) -> Mapping[str, ReaderProfile]:
    """The shipped profiles and a user's own, by name.

    Args:
        paths: YAML files with one profile each, or folders of such files.

    Raises:
        SettingsError: a file is missing or not a profile, or two files define the same name; says which and why.
    """
    shipped = {profile.name: profile for path in yaml_files([SHIPPED_PROFILES]) for profile in [read_profile(path)]}
    own: dict[str, ReaderProfile] = {}
    for path in yaml_files(paths):
        profile = read_profile(path)
        if profile.name in own:
            raise SettingsError(f"{path}: there already is a reader profile named {profile.name!r}.")
        own[profile.name] = profile
    return shipped | own


def read_profile(path: Path) -> ReaderProfile:
    """The profile in one YAML file.

    Raises:
        SettingsError: it cannot be read, or is not a profile.
    """
    content = yaml_content(path, "reader profile")
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold names and values, like the profiles in {SHIPPED_PROFILES}.")
    try:
        return ReaderProfile.model_validate(_texts_as_written(content))
    except ValidationError as error:
        said = mistakes(error, ReaderProfile, TimestampLayout, NumberLayout, Quantity)
        raise SettingsError(f"{path} is not a reader profile: {said}") from None


def _texts_as_written(content: dict[str, Any]) -> dict[str, Any]:
    """Column names that YAML takes for numbers (`1: timestamp`) are names all the same."""
    return {
        key: {str(name): value for name, value in part.items()} if isinstance(part, dict) else part
        for key, part in content.items()
    }
