"""Find the columns of a dataset in the header of one file: by name, number, occurrence or regular expression."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import polars as pl

from ingest_project.core.errors import FileRejectedError
from ingest_project.core.items import grouped
from ingest_project.readers import Target
from ingest_project.readers.casting import matched_name
from ingest_project.readers.profile_parts import Quantity, SkippedRows, first_group
from ingest_project.readers.profiles import EXPRESSION, QUANTITY_COLUMNS, ReaderProfile

# A header of so few names, one of them with a delimiter inside, was probably divided by another one.
UNDIVIDED_NAMES = 2
NAMES_SHOWN = 12
NUMBERED = re.compile(r"#([1-9][0-9]{0,5})")
OCCURRENCE = re.compile(r"(.*\S) ?\[([1-9][0-9]{0,4})\]", re.DOTALL)
FIRST_CELL = "first cell"


@dataclass(frozen=True)
class Layout:
    """Source of each column of the target in one file.

    Args:
        target: the columns wanted.
        wanted: name in the table that is read, to index in the file. No column of a target has a space in its name.
        constants: column of the target to its text, the same for all rows; None for a column the file leaves out.
        quantities: of wide files: name in the table to the measured quantity.
        joined: column of the target, to the names in the table of those whose texts are joined.
        appended: name in the table, to the text to append to its cells.
        skipped: name in the table to the condition on rows to leave out.
        unknown: columns of the file that the profile does not know, as they are called there.
        rescued: those that are kept: name in the table, to the column's name in the file.
        missing, reordered: see `RowsChunk`.
        converts: True if rows are left out, or cells changed, before they are rows of the target.
    """

    target: Target
    wanted: Mapping[str, int]
    constants: Mapping[str, str | None]
    quantities: Mapping[str, Quantity]
    joined: Mapping[str, Sequence[str]] = field(default_factory=dict)
    appended: Mapping[str, str] = field(default_factory=dict)
    skipped: Sequence[tuple[str, SkippedRows]] = ()
    unknown: tuple[str, ...] = ()
    rescued: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    reordered: bool = False
    converts: bool = False

    @cached_property
    def numbers(self) -> Sequence[str]:
        """The names in the table of the columns with numbers."""
        return [*self.quantities, *(name for name in self.wanted if name in self.target.numbers)]


@dataclass(frozen=True)
class Surroundings:
    """The texts around the rows of a file, from which a profile may take columns.

    Args:
        location: location of the file, or its name.
        above: the lines above the header.
        sheet: the name of the sheet.
    """

    location: str
    above: str = ""
    sheet: str = ""

    def constants(self, profile: ReaderProfile) -> dict[str, str]:
        """Return the columns that are the same for all rows.

        Raises:
            FileRejectedError: `file_name` or `missing_constant`: a text does not match the profile's pattern.
        """
        found = dict(profile.constants)
        if not profile.takes_texts:
            return found
        texts = {
            "name": self.location.rpartition("/")[2],
            "location": self.location,
            "lines above the header": self.above,
            "sheet name": self.sheet,
        }
        for source, patterns in profile.from_texts.items():
            for column, pattern in patterns.items():
                text = first_group(texts[source], pattern)
                if not text:
                    rule = "file_name" if source == "name" else "missing_constant"
                    shown = f"{texts[source][:200]!r}, does" if texts[source].count("\n") < 1 else "as written, do"
                    raise FileRejectedError(rule, f"The file's {source}, {shown} not contain its {column}.")
                found[column] = text
        return found


@dataclass(frozen=True, eq=False)
class SameProfile:
    """A profile as a key: compared by identity, because its parts have no hash."""

    profile: ReaderProfile

    def __hash__(self) -> int:
        return id(self.profile)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameProfile) and other.profile is self.profile


class Header:
    """The names of a file's columns, and how a profile may mean them."""

    def __init__(self, names: Sequence[str], profile: ReaderProfile) -> None:
        self.names, self._profile = names, profile
        self._positions = grouped((matched_name(name), index) for index, name in enumerate(names))

    @cached_property
    def _by_table_name(self) -> Mapping[str, Sequence[int]]:
        """The columns by their names in a table, except names that lose letters there."""
        columns = ((column_name(name), name, index) for index, name in enumerate(self.names))
        return grouped((column, index) for column, name, index in columns if spelling_of(column) == spelling_of(name))

    def indexes(self, selector: str) -> Sequence[int]:
        """Return the columns that are meant; a column that is called so itself wins."""
        named = self._positions.get(matched_name(selector))
        if named is not None:
            return named
        if match := NUMBERED.fullmatch(selector):
            return [int(match[1]) - 1] if int(match[1]) <= len(self.names) else []
        if match := OCCURRENCE.fullmatch(selector):
            return self._positions.get(matched_name(match[1]), [])[int(match[2]) - 1 : int(match[2])]
        if match := EXPRESSION.fullmatch(selector):
            found = pl.Series([*self.names], dtype=pl.String).str.contains(match[1])
            return [int(index) for index in found.arg_true()]
        return []

    def one(self, selector: str) -> int:
        """Return the one column that is meant.

        Raises:
            FileRejectedError: `missing_column` or `duplicate_column`.
        """
        found = self.indexes(selector)
        if not found:
            raise FileRejectedError("missing_column", self._missing(repr(selector)))
        if len(found) > 1:
            raise FileRejectedError(
                "duplicate_column", f"More than one column of the file is called {selector!r}: see `{selector} [2]`."
            )
        return found[0]

    def declared(self, target: Target) -> dict[str, int]:
        """Return the columns that the profile maps to columns of a target."""
        wanted: dict[str, int] = {}
        for source, column in self._profile.columns.items():
            found = self.indexes(source) if column in target.columns else ()
            if len(found) > 1:
                raise FileRejectedError("duplicate_column", f"More than one column of the file is {column}.")
            if found:
                wanted[column] = found[0]
        return wanted

    def by_name(self, columns: Sequence[str], taken: set[int]) -> dict[str, int]:
        """Return the columns that the profile does not map, under their own names."""
        found: dict[str, int] = {}
        ignored = self.ignored
        for column in columns:
            same = self._positions.get(matched_name(column)) or self._by_table_name.get(column, ())
            indexes = [i for i in same if i not in taken and i not in ignored]
            if len(indexes) > 1:
                raise FileRejectedError("duplicate_column", f"More than one column of the file is called {column!r}.")
            if indexes:
                found[column] = indexes[0]
        return found

    @property
    def ignored(self) -> set[int]:
        """The columns that are left out on purpose."""
        return {index for selector in self._profile.ignored for index in self.indexes(selector)}

    def unknown(self, known: set[int]) -> dict[int, str]:
        """Return the columns that are neither read nor left out on purpose: index to name, no name twice."""
        found: dict[int, str] = {}
        known = known | self.ignored
        if len(known) == len(self.names):
            return found
        occurrences = Counter[str]()
        for index, name in enumerate(self.names):
            matched = matched_name(name)
            occurrences[matched] += 1
            if index in known:
                continue
            unique = name or f"column {index + 1}, without a name"
            if name and occurrences[matched] > 1:
                unique = f"{name} [{occurrences[matched]}]"
            while unique in found.values():
                unique += "'"
            found[index] = unique
        return found

    def require(self, columns: Sequence[str]) -> None:
        """Reject the file where it lacks columns of the target."""
        if columns:
            raise FileRejectedError("missing_column", self._missing(", ".join(map(self._name_with_column, columns))))

    def _name_with_column(self, column: str) -> str:
        source = next((source for source, target in self._profile.columns.items() if target == column), column)
        return repr(source) if source == column else f"{source!r} ({column})"

    def _missing(self, expected: str) -> str:
        shown = ", ".join(repr(name[:40]) for name in self.names[:NAMES_SHOWN])
        more = ", …" if len(self.names) > NAMES_SHOWN else ""
        said = f"The header has no column {expected} (profile {self._profile.name}). It has {shown or 'none'}{more}."
        mark = max(";,\t|", key=self.names[0].count) if self.names else ""
        is_undivided = len(self.names) <= UNDIVIDED_NAMES and mark and mark in self.names[0]
        return f"{said} Is the delimiter {mark!r}?" if is_undivided else said


@lru_cache(4_096)
def column_name(name: str) -> str:
    """Return the name of a file's column as one of a table: in lower case, with underscores for all other signs."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return f"_{plain}" if plain[:1].isdigit() else plain


@lru_cache(4_096)
def spelling_of(name: str) -> str:
    """Return a name without case and signs between words, in which its spellings differ; `Δt` is no spelling of t."""
    signs = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join("".join(c if c.isalnum() or unicodedata.combining(c) else " " for c in signs).split())


def known_names(profile: ReaderProfile, target: Target) -> frozenset[str]:
    """Return every column name that may be read, to recognise the delimiter of a header."""
    names = [*profile.columns_of_file, *(target.columns if target.by_name else ())]
    if any(name[-1:] in "]/" or name[:1] == "#" for name in names):
        plain = (name for name in names if not NUMBERED.fullmatch(name) and not EXPRESSION.fullmatch(name))
        names = [match[1] if (match := OCCURRENCE.fullmatch(name)) else name for name in plain]
    return frozenset(map(matched_name, names))


def match_columns(names: Sequence[str], profile: ReaderProfile, surroundings: Surroundings, target: Target) -> Layout:
    """Find the columns of a target in a header.

    Raises:
        FileRejectedError: `missing_column`, `duplicate_column`, `file_name` or `missing_constant`.
    """
    header = Header(names, profile)
    wanted = header.declared(target)
    further, joined = _to_join(header, profile, target)
    indexes, quantities = _quantities(header, profile)
    further |= indexes
    skipped = [(f"skipped {number}", rule) for number, rule in enumerate(profile.skip_rows)]
    conditions = {name: header.one(rule.column) for name, rule in skipped}
    constants: dict[str, str | None] = {**surroundings.constants(profile)}
    by_name: dict[str, int] = {}
    if target.by_name:
        named = {*profile.sources}
        by_name = header.by_name(
            [column for column in target.columns if column not in named], {*wanted.values(), *further.values()}
        )
    from_types = ("unit",) if profile.units_by_type else ()
    found = {*wanted, *by_name, *joined, *constants, *(QUANTITY_COLUMNS if quantities else ()), *from_types}
    missing = tuple(column for column in target.columns if column not in found)
    header.require([column for column in missing if column in profile.required_of(target)])
    wanted |= by_name | further
    if target.by_name and target.columns and not wanted:
        header.require(target.columns[:NAMES_SHOWN])
    unknown = header.unknown({*wanted.values(), *conditions.values()})
    appended = _texts_to_append(header, wanted, quantities, profile)
    rescued = {f"unknown {index}": name for index, name in unknown.items()} if target.keep_unknown else {}
    return Layout(
        target,
        wanted | conditions | dict(zip(rescued, unknown, strict=False)) | _first_cell(profile),
        {column: text for column, text in constants.items() if column in target.columns} | dict.fromkeys(missing),
        quantities,
        joined,
        appended,
        skipped,
        tuple(unknown.values()),
        rescued,
        missing,
        [*by_name.values()] != sorted(by_name.values()),
        bool(skipped or joined or appended or profile.cells or profile.sensor_types)
        or any(quantity.reads_text or quantity.conversion for quantity in quantities.values()),
    )


def _quantities(header: Header, profile: ReaderProfile) -> tuple[dict[str, int], dict[str, Quantity]]:
    indexes: dict[str, int] = {}
    found: dict[str, Quantity] = {}
    for number, (source, quantity) in enumerate(profile.quantities.items()):
        if quantity.required or header.indexes(source):
            indexes[f"quantity {number}"], found[f"quantity {number}"] = header.one(source), quantity
    if profile.quantities and not found:
        header.one(next(iter(profile.quantities)))
    return indexes, found


def _texts_to_append(
    header: Header, wanted: Mapping[str, int], quantities: Mapping[str, Quantity], profile: ReaderProfile
) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, rule in (*profile.cells.items(), *quantities.items()):
        if rule.append_from_header is not None and name in wanted:
            column = header.names[wanted[name]]
            text = first_group(column, rule.append_from_header)
            if not text:
                raise FileRejectedError("missing_constant", f"The column {column!r} does not name what its cells lack.")
            found[name] = f" {text}"
    return found


def _to_join(header: Header, profile: ReaderProfile, target: Target) -> tuple[dict[str, int], dict[str, Sequence[str]]]:
    indexes: dict[str, int] = {}
    joined: dict[str, Sequence[str]] = {}
    for column, sources in profile.joined.items():
        if column in target.columns:
            joined[column] = [f"{column} {number}" for number in range(len(sources))]
            indexes |= dict(zip(joined[column], map(header.one, sources), strict=True))
    return indexes, joined


def _first_cell(profile: ReaderProfile) -> dict[str, int]:
    return {FIRST_CELL: 0} if profile.footer.begins else {}
