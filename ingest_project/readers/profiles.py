"""Reader profiles: the layout of one kind of file.

A profile is a YAML file. The shipped ones are in shipped_profiles/; a user's own are named in INGEST_READER_PROFILES,
and replace a shipped one of the same name. A file is read by the profile that its event's metadata names as `format`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from ingest_project.contracts.columns import linear
from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.errors import FileRejectedError, SettingsError
from ingest_project.core.logging import get_logger
from ingest_project.core.yaml_models import AsWritten, Declared, mistakes_in, nearest, yaml_content, yaml_files
from ingest_project.readers import READINGS, Target
from ingest_project.readers.profile_parts import (
    CellRule,
    Footer,
    NumberLayout,
    OneGroup,
    Quantity,
    SkippedRows,
    TimestampLayout,
    known_encoding,
    plain_delimiter,
    short_nulls,
)

DEFAULT_NULLS = ("", "NA", "N/A", "n/a", "null", "NULL", "None")
EXPRESSION = re.compile(r"/(.+)/", re.DOTALL)
# Columns of a reading that the quantities of a wide file fill.
QUANTITY_COLUMNS = ("sensor_type", "value", "unit")

Location = tuple[str | int, ...]
Positions = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}-[1-9][0-9]{0,4}$")]
Problem = tuple[Location, str]


def _with_text_names(value: object) -> object:
    """Write names that another YAML reader took for numbers as text."""
    if not isinstance(value, dict):
        return value
    if any(isinstance(name, bool) for name in value):
        raise ValueError("YAML reads a name such as on, yes or No as a truth value; write it in quotes")
    return {str(name): _with_text_names(part) for name, part in value.items()}


def _quantity(value: object) -> object:
    return {"sensor_type": value} if isinstance(value, str) else value


class ReaderProfile(Declared):
    """How to read one kind of file.

    A column of the file is named by its header, in any case and spacing; by its number, `#3`; by an occurrence of a
    repeated name, `Temp [2]`; or by a regular expression, `/^Temp/`.

    Args:
        name: the `format` in the metadata of polling jobs.
        description: shown to users.
        dataset: the one whose files it reads.
        encoding: of text without a byte order mark.
        delimiter: None finds it: comma, semicolon, tab or bar, whichever matches the header. `whitespace` is any run of
            spaces and tabs.
        fixed_width: files without delimiters: name of each column, to its first and last character as in `1-11`.
        header: True if the file has one; without it columns are called "1", "2", ...
        header_rows: rows of the header; the names in one column are joined.
        header_separator: between them.
        skip_lines: lines (in a workbook, rows) above the header.
        skip_below_header: rows between the header and the data, such as units.
        comment: beginning of lines that are left out, wherever they are.
        trailing_delimiter: True if records end in a delimiter that their header does not have; one there is no column.
        skip_rows: conditions on rows to leave out.
        footer: rows at the end to leave out.
        members: of an archive, the pattern of the files to read, such as `produkt_*.txt`, in any case; all if empty.
        rows: of a JSON document, the names that lead to the list of its rows, as in `result.items`; empty where the
            document itself is the list, or each line a row.
        sheet: name of the sheet in a workbook, or its index among the visible ones; a pattern such as `*` reads all of
            these that match.
        columns: column of the file to column of the dataset. Columns of a declared dataset that are not named here are
            found under their own names.
        joined: column of the dataset to columns of the file whose texts are joined by a space.
        cells: column of the dataset to the conversion of its cells.
        optional: columns of the dataset that a file may leave out; None leaves it to the dataset.
        ignored: columns of the file that are left out on purpose; any other that is not read is reported.
        quantities: wide files: column of the file to its quantity. An empty cell is no reading.
        sensor_types: long files: sensor type of the file to that of the dataset, or to its quantity.
        other_sensor_types: whether readings of any other type keep it, or are rejected.
        constants: column of the dataset to a text that applies to the whole file.
        from_file_name: column of the dataset to a regular expression with one group, searched in the file's name.
        from_path: the same, searched in the file's location.
        from_lines_above: the same, searched in the lines above the header.
        from_sheet_name: the same, searched in the name of the sheet.
        timestamps: how times are written.
        numbers: how numbers are written.
        nulls: texts that mean "missing", as written, at most 12 bytes each.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_\-]{0,63}$")
    description: str = ""
    dataset: str = SENSOR_READINGS
    encoding: Annotated[str, AfterValidator(known_encoding)] = "utf-8"
    delimiter: Annotated[str, Field(min_length=1), AfterValidator(plain_delimiter)] | None = None
    fixed_width: dict[str, Positions] = Field(default_factory=dict)
    header: bool = True
    header_rows: int = Field(1, ge=1, le=10)
    header_separator: str = " "
    skip_lines: int = Field(0, ge=0, le=1_000)
    skip_below_header: int = Field(0, ge=0, le=100)
    comment: str | None = Field(None, min_length=1, max_length=10, pattern=r"^[^\s\"]")
    trailing_delimiter: bool = False
    skip_rows: tuple[SkippedRows, ...] = ()
    footer: Footer = Footer()
    members: str = Field("", max_length=200)
    rows: str = ""
    sheet: int | str = 0
    columns: dict[str, str] = Field(default_factory=dict)
    joined: dict[str, Annotated[tuple[str, ...], Field(min_length=2, max_length=10)]] = Field(default_factory=dict)
    cells: dict[str, CellRule] = Field(default_factory=dict)
    optional: tuple[str, ...] | None = None
    ignored: tuple[str, ...] = ()
    quantities: dict[str, Quantity] = Field(default_factory=dict)
    sensor_types: dict[str, Annotated[Quantity, BeforeValidator(_quantity)]] = Field(default_factory=dict)
    other_sensor_types: Literal["keep", "reject"] = "keep"
    constants: dict[str, str] = Field(default_factory=dict)
    from_file_name: dict[str, OneGroup] = Field(default_factory=dict)
    from_path: dict[str, OneGroup] = Field(default_factory=dict)
    from_lines_above: dict[str, OneGroup] = Field(default_factory=dict)
    from_sheet_name: dict[str, OneGroup] = Field(default_factory=dict)
    timestamps: TimestampLayout = TimestampLayout()
    numbers: NumberLayout = NumberLayout()
    nulls: Annotated[tuple[str, ...], AfterValidator(short_nulls)] = DEFAULT_NULLS

    @model_validator(mode="before")
    @classmethod
    def _named_by_text(cls, content: object) -> object:
        return _with_text_names(content)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [*self._conflicts(), *(self._misfits(READINGS) if self.dataset == SENSOR_READINGS else ())]
        if problems:
            raise ProfileError(problems)
        return self

    @property
    def sources(self) -> Sequence[str]:
        """The columns of the dataset whose source the profile names, one for each source."""
        return [column for column, _ in self._sources()]

    @property
    def columns_of_file(self) -> Sequence[str]:
        """The columns of the file that the profile reads, as it names them."""
        joined = (name for parts in self.joined.values() for name in parts)
        return [*self.columns, *self.quantities, *joined, *(rule.column for rule in self.skip_rows)]

    @property
    def units_by_type(self) -> bool:
        """True if the sensor types of a long file say the units of its readings."""
        return any(quantity.unit for quantity in self.sensor_types.values())

    @property
    def takes_texts(self) -> bool:
        """True if a column is taken from a text around the rows."""
        return bool(self.from_file_name or self.from_path or self.from_lines_above or self.from_sheet_name)

    @property
    def from_texts(self) -> Mapping[str, Mapping[str, str]]:
        """The regular expressions by the text in which they search, by column of the dataset."""
        return {
            "name": self.from_file_name,
            "location": self.from_path,
            "lines above the header": self.from_lines_above,
            "sheet name": self.from_sheet_name,
        }

    def required_of(self, target: Target) -> frozenset[str]:
        """Return the columns of a target that every file must have."""
        return target.required if self.optional is None else frozenset(target.columns).difference(self.optional)

    def require_fits(self, target: Target) -> None:
        """Check that the profile can read files into a target.

        Raises:
            SettingsError: no file can; names the column and the reason.
        """
        problems = "; ".join(problem for _, problem in self._misfits(target))
        if problems:
            raise SettingsError(
                f"The reader profile {self.name!r} does not fit the dataset {self.dataset}: {problems}."
            )

    def _sources(self) -> Iterator[tuple[str, Location]]:
        yield from ((column, ("columns", source)) for source, column in self.columns.items())
        for part in ("joined", "constants", "from_file_name", "from_path", "from_lines_above", "from_sheet_name"):
            yield from ((column, (part, column)) for column in getattr(self, part))
        if self.quantities:
            yield from ((column, ("quantities",)) for column in QUANTITY_COLUMNS)
        if self.units_by_type:
            yield "unit", ("sensor_types",)

    def _conflicts(self) -> Iterator[Problem]:
        """Find contradictions in the profile, independent of the dataset."""
        if self.quantities and not set(QUANTITY_COLUMNS).isdisjoint(self.columns.values()):
            yield ("quantities",), "with quantities, sensor_type, value and unit are not columns of the file"
        for column, location in self._sources():
            if self.sources.count(column) > 1 and location[0] != "quantities":
                remedy = (
                    '; where names differ, write one expression, "/^(Time|Zeit)$/"' if location[0] == "columns" else ""
                )
                yield location, f"{column} comes from more than one source{remedy}"
        for column in self.cells:
            if column not in {*self.columns.values(), *self.joined} and (column in self.sources or self._is_readings):
                yield ("cells", column), f"{column} comes from no column of the file"
        if self.sensor_types and "sensor_type" not in self.columns.values():
            yield ("sensor_types",), "no column of the file is the sensor_type"
        for name, quantity in self.sensor_types.items():
            if quantity.reads_text or quantity.append_from_header:
                yield ("sensor_types", name), "only scale, offset, unit and to depend on the sensor type"
        yield from self._conflicts_of_layout()

    @property
    def _is_readings(self) -> bool:
        return self.dataset == SENSOR_READINGS

    def _conflicts_of_layout(self) -> Iterator[Problem]:
        if self.fixed_width and self.delimiter is not None:
            yield ("delimiter",), "a file of fixed width has no delimiter"
        for part in ("columns", "quantities", "ignored"):
            for name in getattr(self, part):
                if match := EXPRESSION.fullmatch(name):
                    try:
                        linear(match[1])
                    except ValueError as error:
                        yield (part, name), str(error)
        for name, positions in self.fixed_width.items():
            first, last = map(int, positions.split("-"))
            if last < first:
                yield ("fixed_width", name), f"{positions}: the last character is before the first"
        if self.header_rows > 1 and (not self.header or self.fixed_width):
            yield ("header_rows",), "the file has no header whose rows could be joined"
        if self.from_lines_above and not (self.skip_lines or self.comment):
            yield ("from_lines_above",), "no line is above the header: see skip_lines and comment"

    def _misfits(self, target: Target) -> Iterator[Problem]:
        """Find options that cannot work for a target."""
        if not (self.columns or self.quantities or self.joined or target.by_name):
            yield ("columns",), "columns and quantities are empty: nothing of the file would be read"
        named = [*self._sources(), *((column, ("cells", column)) for column in self.cells)]
        named += [(column, ("optional",)) for column in self.optional or ()]
        for column, location in dict(named).items():
            if column not in target.columns and not (column == "unit" and self.quantities):
                yield location, f"{column} is no column of the dataset" + nearest(column, target.columns)
        for column, rule in self.cells.items():
            if rule.conversion and target.numbers and column not in target.numbers:
                yield ("cells", column), f"{column} is text, which has no scale and no unit"
        for column in () if target.by_name else target.columns:
            if column not in self.sources and column in self.required_of(target):
                yield ("columns",), f"{column} has no source"


class ProfileError(ValueError):
    """The parts of a profile contradict each other.

    Args:
        problems: location and mistake of each.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{'.'.join(map(str, location))}: {problem}" for location, problem in problems))


logger = get_logger(__name__)

SHIPPED_PROFILES = Path(__file__).parent / "shipped_profiles"
NAME_LINE = re.compile(r"""^\s*["']?name["']?\s*:\s*["']?([a-z0-9][a-z0-9_-]*)""", re.MULTILINE)


@dataclass(frozen=True)
class BrokenProfile:
    """A profile that cannot be used.

    Args:
        name: by which files name it; None where not even that is known.
        problem: file, line and mistake.
    """

    name: str | None
    problem: str


class Profiles(Mapping[str, ReaderProfile]):
    """Usable reader profiles by name, and the broken ones.

    A broken one rejects only the files that name it; a shipped one of the same name does not replace it. The shipped
    ones are given by their files, which are read when they are first used: most processes need one of them.
    """

    def __init__(
        self,
        usable: Mapping[str, ReaderProfile],
        broken: Sequence[BrokenProfile] = (),
        shipped: Mapping[str, Path] | None = None,
    ) -> None:
        self.broken = tuple(broken)
        unusable = {profile.name for profile in broken}
        self._usable, self._shipped = usable, shipped or {}
        self._names = [name for name in {**dict.fromkeys(self._shipped), **usable} if name not in unusable]

    def __getitem__(self, name: str) -> ReaderProfile:
        if name not in self._names:
            raise KeyError(name)
        return self._usable[name] if name in self._usable else _read_shipped(self._shipped[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def of_dataset(self, dataset: str) -> dict[str, ReaderProfile]:
        """Return the profiles for files of one dataset; all shipped ones are for sensor readings."""
        names = self._names if dataset == SENSOR_READINGS else self._usable
        return {name: self[name] for name in names if name in self._names and self[name].dataset == dataset}

    def named(self, name: str) -> ReaderProfile:
        """Return the profile of this name.

        Raises:
            FileRejectedError: `broken_profile` or `unknown_profile`; the file can be ingested again once the
            profile is fixed.
        """
        if name in self._names:
            return self[name]
        broken = [profile.problem for profile in self.broken if profile.name == name]
        if broken:
            raise FileRejectedError("broken_profile", f"The reader profile {name!r} cannot be used: {' '.join(broken)}")
        nameless = "".join(f" Not usable: {profile.problem}" for profile in self.broken if profile.name is None)
        known = f"{nearest(name, self)}. Known: {', '.join(self)}."
        raise FileRejectedError("unknown_profile", f"No reader profile {name!r}{known}{nameless}")


@cache
def _read_shipped(path: Path) -> ReaderProfile:
    return read_profile(path)


def load_profiles(paths: Sequence[Path] = ()) -> Profiles:
    """Load the shipped profiles and a user's own, by name; list a broken one of a user as broken, and log it.

    Args:
        paths: YAML files with one profile each, or folders of such files.
    """
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
            problem = f"a reader profile named {profile.name!r} already exists in {paths_by_name[profile.name]}."
            broken.append(BrokenProfile(profile.name, f"{path}: {problem}"))
        own[profile.name], paths_by_name[profile.name] = profile, path
    for each in broken:
        logger.warning("reader_profile_broken", profile=each.name, problem=each.problem)
    return Profiles(own, broken, {path.stem: path for path in yaml_files([SHIPPED_PROFILES])})


def read_profile(path: Path) -> ReaderProfile:
    """Read the profile in one YAML file.

    Raises:
        SettingsError: it cannot be read, or is not a profile; names the file, the line and what is wrong.
    """
    content = yaml_content(path, "reader profile", AsWritten)
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold names and values, like the profiles in {SHIPPED_PROFILES}.")
    try:
        return ReaderProfile.model_validate(content)
    except ValidationError as error:
        raise SettingsError(mistakes_in(path, "a reader profile", error)) from None


def _name_in(path: Path) -> str | None:
    """Find the name in a file that is no valid profile, perhaps not even YAML."""
    try:
        match = NAME_LINE.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return match[1] if match else None
