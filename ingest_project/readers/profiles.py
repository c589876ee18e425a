"""Reader profiles: the layout of one kind of file.

A profile is a YAML file. The shipped ones are in profiles/; a user's own are named in INGEST_READER_PROFILES and
replace a shipped one of the same name. A file is read by the profile that its event's metadata names as `format`.
"""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ingest_project.core.errors import FileRejectedError, SettingsError
from ingest_project.core.logging import get_logger
from ingest_project.core.yaml_models import line_of, mistakes, yaml_content, yaml_files
from ingest_project.readers.target import READINGS, Target
from ingest_project.readers.time_formats import time_format

logger = get_logger(__name__)

SHIPPED_PROFILES = Path(__file__).parent / "shipped_profiles"
DEFAULT_NULLS = ("", "NA", "N/A", "n/a", "null", "NULL", "None")
MAX_NULL_BYTES = 12
NAME_LINE = re.compile(r"""^\s*["']?name["']?\s*:\s*["']?([a-z0-9][a-z0-9_-]*)""", re.MULTILINE)
NAMED_TIME_FORMATS = ("iso8601", "unix_seconds", "unix_milliseconds")
SENSOR_READINGS = "sensor_readings"


def _known_encoding(name: str) -> str:
    try:
        codecs.getincrementaldecoder(codecs.lookup(name).name)
    except LookupError:
        raise ValueError(f"{name!r} is no known text encoding") from None
    return name


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no known time zone; write it like Europe/Berlin") from None
    return name


def _one_group(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError("the regular expression needs exactly one group, which is the text to read")
    try:
        first_group("", pattern)
    except pl.exceptions.ComputeError:
        raise ValueError("the regular expression looks ahead, behind or back, which may never end") from None
    return pattern


def first_group(text: str, pattern: str) -> str | None:
    """Return the text of a regular expression's one group, in linear time: file names are untrusted."""
    found: str | None = pl.Series([text]).str.extract(pattern, 1).item()
    return found


def _plain_delimiter(delimiter: str) -> str:
    if not delimiter.isascii() or delimiter in '"\r\n\0 ':
        raise ValueError("a delimiter is one ASCII character, not a quote, space or line end")
    return delimiter


def _short_nulls(spellings: tuple[str, ...]) -> tuple[str, ...]:
    for spelling in spellings:
        if len(spelling.encode()) > MAX_NULL_BYTES:
            raise ValueError(f"{spelling!r} is longer than {MAX_NULL_BYTES} bytes")
    return spellings


def _time_formats(formats: tuple[str, ...]) -> tuple[str, ...]:
    for name in formats:
        if name not in NAMED_TIME_FORMATS:
            time_format(name)
    return formats


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Quantity(_Part):
    """Quantity that one column of a wide file measures.

    Args:
        sensor_type: type of its readings.
        unit: unit of its readings, if known.
    """

    sensor_type: str = Field(min_length=1)
    unit: str | None = None


class TimestampLayout(_Part):
    """Notation of times.

    Args:
        formats: `iso8601`, `unix_seconds`, `unix_milliseconds`, or strptime patterns; the first that fits a text wins.
        zone: IANA name of the zone of times that carry no offset.
        ambiguous: which of the two times a clock time means that occurs twice, when clocks go back.
    """

    formats: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_time_formats)] = ("iso8601",)
    zone: Annotated[str, AfterValidator(_known_zone)] = "UTC"
    ambiguous: Literal["reject", "earliest", "latest"] = "reject"


class NumberLayout(_Part):
    """Notation of numbers.

    Args:
        decimal: the decimal mark.
        thousands: the mark between groups of three digits, if any.
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
        name: the `format` in the metadata of polling jobs.
        description: shown to users.
        dataset: the one whose files it reads.
        encoding: of text without a byte order mark.
        delimiter: None finds it: comma, semicolon, tab or bar, whichever matches the header.
        header: True if the file has one; without it columns are called "1", "2", ...
        skip_lines: lines (in a workbook, rows) above the header.
        sheet: name or index of the sheet in a workbook.
        columns: column of the file to column of the dataset. Names match without regard to case and spacing. Columns of
            a declared dataset that are not named here are found under their own names.
        optional: columns of the dataset that a file may leave out; None leaves it to the dataset.
        ignored: columns of the file that are left out on purpose; any other that is not read is reported.
        quantities: wide files: column of the file to its quantity. An empty cell is no reading.
        constants: column of the dataset to a text that applies to the whole file.
        from_file_name: column of the dataset to a regular expression with one group, searched in the file's name.
        timestamps: how times are written.
        numbers: how numbers are written.
        nulls: texts that mean "missing", as written, at most 12 bytes each.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_\-]{0,63}$")
    description: str = ""
    dataset: str = SENSOR_READINGS
    encoding: Annotated[str, AfterValidator(_known_encoding)] = "utf-8"
    delimiter: Annotated[str, Field(min_length=1, max_length=1), AfterValidator(_plain_delimiter)] | None = None
    header: bool = True
    skip_lines: int = Field(0, ge=0, le=1_000)
    sheet: int | str = 0
    columns: dict[str, str] = {}
    optional: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()
    quantities: dict[str, Quantity] = {}
    constants: dict[str, str] = {}
    from_file_name: dict[str, Annotated[str, AfterValidator(_one_group)]] = {}
    timestamps: TimestampLayout = TimestampLayout()
    numbers: NumberLayout = NumberLayout()
    nulls: Annotated[tuple[str, ...], AfterValidator(_short_nulls)] = DEFAULT_NULLS

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*self._conflicts(), *(self._misfits(READINGS) if self.dataset == SENSOR_READINGS else ())]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def sources(self) -> Sequence[str]:
        """The columns of the dataset whose source the profile names, one for each source."""
        from_quantities = self.columns_of_quantities if self.quantities else ()
        return [*self.columns.values(), *self.constants, *self.from_file_name, *from_quantities]

    @property
    def columns_of_quantities(self) -> Sequence[str]:
        """The columns that a wide file's quantities fill."""
        return ("sensor_type", "value", "unit")

    def required_of(self, target: Target) -> frozenset[str]:
        """Return the columns of a target that every file must have."""
        return target.required if self.optional is None else frozenset(target.columns).difference(self.optional)

    def require_fits(self, target: Target) -> None:
        """Check that files can be read into a target at all.

        Raises:
            SettingsError: no file can; names the column and the reason.
        """
        problems = "; ".join(self._misfits(target))
        if problems:
            raise SettingsError(
                f"The reader profile {self.name!r} does not fit the dataset {self.dataset}: {problems}."
            )

    def _conflicts(self) -> Iterator[str]:
        if self.quantities and not {*self.columns_of_quantities}.isdisjoint(self.columns.values()):
            yield "with quantities, sensor_type, value and unit are not columns of the file"
        for column in {*self.constants, *self.from_file_name}:
            if self.sources.count(column) > 1:
                yield f"{column} comes from more than one source"

    def _misfits(self, target: Target) -> Iterator[str]:
        if not (self.columns or self.quantities or target.by_name):
            yield "columns and quantities are empty: nothing of the file would be read"
        for column in dict.fromkeys([*self.sources, *(self.optional or ())]):
            if column not in target.columns and not (column == "unit" and self.quantities):
                yield f"{column} is no column of the dataset" + _nearest(column, target.columns)
        for column in () if target.by_name else target.columns:
            if column not in self.sources and column in self.required_of(target):
                yield f"{column} has no source"


def _nearest(name: str, names: Iterable[str]) -> str:
    guess = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f", did you mean {guess[0]}?" if guess else ""


@dataclass(frozen=True)
class BrokenProfile:
    """A profile that cannot be used.

    Args:
        name: by which files name it; None where not even that is known.
        problem: which file, which line, and what is wrong.
    """

    name: str | None
    problem: str


class Profiles(Mapping[str, ReaderProfile]):
    """Usable reader profiles by name, and the broken ones.

    A broken one rejects only the files that name it; a shipped one of the same name does not replace it.
    """

    def __init__(self, usable: Mapping[str, ReaderProfile], broken: Sequence[BrokenProfile] = ()) -> None:
        self.broken = tuple(broken)
        unusable = {profile.name for profile in broken}
        self._usable = {name: profile for name, profile in usable.items() if name not in unusable}

    def __getitem__(self, name: str) -> ReaderProfile:
        return self._usable[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._usable)

    def __len__(self) -> int:
        return len(self._usable)

    def named(self, name: str) -> ReaderProfile:
        """Return the profile of this name.

        Raises:
            FileRejectedError: `broken_profile` or `unknown_profile`; the file can be ingested again once the
            profile is fixed.
        """
        if name in self._usable:
            return self._usable[name]
        broken = [profile.problem for profile in self.broken if profile.name == name]
        if broken:
            raise FileRejectedError("broken_profile", f"The reader profile {name!r} cannot be used: {' '.join(broken)}")
        nameless = "".join(f" Not usable: {profile.problem}" for profile in self.broken if profile.name is None)
        raise FileRejectedError("unknown_profile", f"No reader profile {name!r}. Known: {', '.join(self)}.{nameless}")


def load_profiles(paths: Sequence[Path] = ()) -> Profiles:
    """Load the shipped profiles and a user's own, by name; log a broken one of a user and list it as broken.

    Args:
        paths: YAML files with one profile each, or folders of such files.
    """
    shipped = {profile.name: profile for path in yaml_files([SHIPPED_PROFILES]) for profile in [read_profile(path)]}
    own: dict[str, ReaderProfile] = {}
    paths_by_name: dict[str, Path] = {}
    broken: list[BrokenProfile] = []
    for path in yaml_files(paths):
        try:
            profile = read_profile(path)
        except SettingsError as error:
            broken.append(BrokenProfile(_name_in(path), str(error)))
            continue
        if profile.name in own:
            problem = (
                f"{path}: a reader profile named {profile.name!r} already exists in {paths_by_name[profile.name]}."
            )
            broken.append(BrokenProfile(profile.name, problem))
        own[profile.name], paths_by_name[profile.name] = profile, path
    for each in broken:
        logger.warning("reader_profile_broken", profile=each.name, problem=each.problem)
    return Profiles(shipped | own, broken)


def read_profile(path: Path) -> ReaderProfile:
    """Read the profile in one YAML file.

    Raises:
        SettingsError: it cannot be read, or is not a profile; names the file, the line and what is wrong.
    """
    content = yaml_content(path, "reader profile")
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold names and values, like the profiles in {SHIPPED_PROFILES}.")
    try:
        return ReaderProfile.model_validate(_texts_as_written(content))
    except ValidationError as error:
        said = mistakes(error, ReaderProfile, TimestampLayout, NumberLayout, Quantity)
        line = min(line_of(path, problem["loc"]) for problem in error.errors())
        raise SettingsError(f"{path}, line {line}: this is not a reader profile: {said}") from None


def _name_in(path: Path) -> str | None:
    """Find the name in a file that is no valid profile, perhaps not even YAML."""
    try:
        match = NAME_LINE.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return match[1] if match else None


def _texts_as_written(content: dict[str, Any]) -> dict[str, Any]:
    """Convert column names that YAML parses as numbers (`1: timestamp`) to text."""
    return {
        key: {str(name): value for name, value in part.items()} if isinstance(part, dict) else part
        for key, part in content.items()
    }
