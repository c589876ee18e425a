"""JSON to rows: an object a line, an array of objects, alone or in a document, or objects over several lines in a row.

A row's column is a field of its object; a profile reaches into nested ones by `payload.temperature`, or by a JSONPath
of names and indexes. A line that is no JSON costs its line; what breaks the syntax of an array rejects the file,
because nothing says where the next object begins.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jsonpath
import polars as pl
from jsonpath.selectors import NameSelector

from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.readers import READINGS, RESCUED, Target
from ingest_project.readers.casting import KIND_OF
from ingest_project.readers.cells import BOOLEAN, HUGE, NESTED, NUMBER, TEXT, JsonParser, Number, is_stored, json_of
from ingest_project.readers.formats.csv_reader import UNSEEN_ENDS
from ingest_project.readers.formats.csv_text import INVALID_BYTE, text_blocks
from ingest_project.readers.layout import MALFORMED, ReadLimits, RowsChunk, layout_of, rows_chunk, shortened
from ingest_project.readers.matching import Layout
from ingest_project.readers.profiles import ReaderProfile

MAX_RECORDS = 50_000
# Names above a list of rows, which the path of a profile separates by points.
MAX_PATH = 5
SPACE = re.compile(r"[ \t\r\n]*+")
BLANKS = b" \t\r"
MISSING = object()
# Bytes of one character: RFC 4627 distinguishes encodings by the first four bytes.
UTF_32_BYTES = 4

JsonPath = tuple[str | int, ...]


class Record(NamedTuple):
    """One value of a file.

    Args:
        number: its line; in an array, its number, the first is 1.
        raw: as written.
        value: as `JsonParser` returns it.
        reason: why it is no row; empty for a row.
    """

    number: int
    raw: str
    value: Any = None
    reason: str = ""


class JsonReader:
    """Reads JSON; see `reading.Reader`."""

    def read(
        self, path: Path, profile: ReaderProfile, limits: ReadLimits, file_name: str, target: Target = READINGS
    ) -> Iterator[RowsChunk]:
        """Read one file; line numbers are physical lines, in an array the numbers of its values."""
        rows = _Rows(profile, limits, file_name, target)
        for records in _chunks(_records(path, profile, limits), limits.chunk_bytes):
            yield rows.chunk(records)


READER = JsonReader()


def _chunks(records: Iterable[Record], chunk_bytes: int) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.raw)
        if size >= chunk_bytes or len(chunk) == MAX_RECORDS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _records(path: Path, profile: ReaderProfile, limits: ReadLimits) -> Iterator[Record]:
    blocks = text_blocks(path, profile.encoding, limits.chunk_bytes)
    parser = JsonParser(limits.max_json_depth)
    number = 1
    for block, final in blocks:
        start = block.lstrip()
        if b"\0" in start[:UTF_32_BYTES] and not start.startswith(INVALID_BYTE.encode()):
            raise FileRejectedError("encoding", "The file has NUL bytes: UTF-16 without a byte order mark, or no text.")
        if start:
            number += block.count(b"\n", 0, len(block) - len(start))
            rest = chain([(start, final)], blocks)
            if profile.rows or start[:1] == b"[":
                return _document(_Values(rest, parser, limits, number), profile.rows)
            line = start.partition(b"\n")[0]
            if line.strip() == b"{" or _has_several(line, parser):
                return _objects(_Values(rest, parser, limits, number))
            return _lines(rest, parser, limits.max_row_bytes, number)
        number += block.count(b"\n")
    raise FileRejectedError("empty_file", "The file has no text.")


def _has_several(line: bytes, parser: JsonParser) -> bool:
    """Return True for a line with an object that another one follows, as some delivery services write them."""
    text = line.decode()
    try:
        _, end, _ = parser.value_at(text)
    except (json.JSONDecodeError, RecursionError):
        return False
    return text[end:].lstrip().startswith("{")


def _lines(
    blocks: Iterator[tuple[bytes, bool]], parser: JsonParser, max_row_bytes: int, number: int
) -> Iterator[Record]:
    carry, skipping = b"", False
    for block, final in blocks:
        *lines, carry = (carry + block).split(b"\n")
        for line in [*lines, carry] if final else lines:
            if line.strip(BLANKS) and not skipping:
                yield _line(line, parser, max_row_bytes, number)
            skipping = False
            number += 1
        if len(carry) > max_row_bytes and not final:
            if not skipping:
                yield Record(number, shortened(carry), reason="row_too_long")
            carry, skipping = b"", True


def _line(line: bytes, parser: JsonParser, max_row_bytes: int, number: int) -> Record:
    if len(line) > max_row_bytes:
        return Record(number, shortened(line), reason="row_too_long")
    if b"\0" in line:
        return Record(number, shortened(line), reason="invalid_bytes" if INVALID_BYTE.encode() in line else "nul_byte")
    text = line.decode().strip(" \t\r")
    try:
        value, end, reason = parser.value_at(text)
    except json.JSONDecodeError:
        return Record(number, text, reason="not_json")
    except RecursionError:
        return Record(number, text, reason="nested_too_deep")
    return _record(number, text, value, reason or ("not_json" if end < len(text) else ""))


def _record(number: int, raw: str, value: object, reason: str) -> Record:
    return Record(number, raw, value, reason or ("" if isinstance(value, dict) else "not_an_object"))


class _Values:
    """Parses one value at a time from blocks of text, with at most one incomplete value in memory."""

    def __init__(self, blocks: Iterator[tuple[bytes, bool]], parser: JsonParser, limits: ReadLimits, line: int) -> None:
        self._blocks, self._parser, self._limits = blocks, parser, limits
        self._text, self._at, self._line, self._final = "", 0, line, False

    def sign(self) -> str:
        """Return the next character that is not white space; empty at the end of the file."""
        while True:
            match = SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or not self._read():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Go on behind the character that `sign` returned."""
        self._at += 1

    def expect(self, sign: str, problem: str) -> None:
        """Go on behind this character, or reject the file."""
        if self.sign() != sign:
            self.reject(problem)
        self.skip()

    def value(self, number: int) -> Record:
        """Return the value that begins at `sign`."""
        while True:
            problem = "the file ends within a value"
            position = len(self._text)
            try:
                value, end, reason = self._parser.value_at(self._text, self._at)
            except json.JSONDecodeError as error:
                problem, position = error.msg, error.pos
            except RecursionError:
                limit = self._limits.max_json_depth
                raise LimitExceededError(
                    "INGEST_MAX_JSON_DEPTH", f"Value {number} has more than {limit} nested objects and lists"
                ) from None
            else:
                # A value at the end of the text may continue in the next block: 12 may be the beginning of 123.
                if end < len(self._text) or not self._read():
                    raw, self._at = self._text[self._at : end], end
                    too_long = len(raw) > self._limits.max_row_bytes
                    return _record(number, raw, value, "row_too_long" if too_long else reason)
                continue
            self._read_longer(number, problem, position)

    def reject(self, problem: str, position: int | None = None) -> NoReturn:
        """Reject the file.

        Raises:
            FileRejectedError: `unreadable_json`, with the line.
        """
        line = self._line + self._text.count("\n", 0, self._at if position is None else position)
        raise FileRejectedError("unreadable_json", f"Line {line}: {problem}.")

    def _read_longer(self, number: int, problem: str, position: int) -> None:
        """Double the text, so that a long value is not parsed once for every block."""
        length = len(self._text) - self._at
        if length > self._limits.max_row_bytes:
            raise LimitExceededError("INGEST_MAX_ROW_BYTES", f"Value {number} has no end within {length} characters")
        if not self._read():
            self.reject(problem, position)
        while len(self._text) - self._at < 2 * length and self._read():
            pass

    def _read(self) -> bool:
        if self._final:
            return False
        block, self._final = next(self._blocks)
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + block.decode(), 0
        return True


def _document(values: _Values, rows: str) -> Iterator[Record]:
    """Yield the values of a list: the document itself, or the one in it that is called `rows`."""
    if rows:
        found = 0
        for path, records in _lists_in(values):
            if path == rows:
                found += 1
                yield from records
        if found != 1:
            values.reject(f"{found or 'no'} lists are called {rows!r}, in which the profile looks for rows")
    else:
        yield from _array(values)
    if values.sign():
        values.reject("something follows the document")


def lists_of_objects(path: Path, limits: ReadLimits) -> list[str]:
    """Return the paths of the lists of objects in a file that is one object; none for any other file."""
    values = _Values(text_blocks(path, "utf-8", limits.chunk_bytes), JsonParser(limits.max_json_depth), limits, 1)
    with suppress(FileRejectedError):
        found = [path for path, records in _lists_in(values) if any(isinstance(one.value, dict) for one in records)]
        return [] if values.sign() else found
    return []


def _lists_in(values: _Values, above: str = "") -> Iterator[tuple[str, Iterator[Record]]]:
    """Yield each list in an object, and in objects inside of it, with its path; other values are read over."""
    for name in _names(values):
        sign = values.sign()
        if sign == "[":
            records = _array(values)
            yield above + name, records
            deque(records, maxlen=0)
        elif sign == "{" and above.count(".") < MAX_PATH:
            yield from _lists_in(values, f"{above}{name}.")
        else:
            values.value(0)


def _names(values: _Values) -> Iterator[str]:
    """Yield the name of each field of an object; its value is to be read before the next."""
    for _ in _items(values, "{}"):
        if values.sign() != '"':
            values.reject("a name is missing")
        name = str(values.value(0).value)
        values.expect(":", "a colon is missing")
        yield name


def _array(values: _Values) -> Iterator[Record]:
    for number in _items(values, "[]"):
        yield values.value(number)


def _items(values: _Values, brackets: str) -> Iterator[int]:
    """Yield the number of each item between two brackets; it is to be read before the next."""
    kind, end = "object" if brackets == "{}" else "array", brackets[1]
    values.expect(brackets[0], f"an {kind} is missing")
    number = 0
    while (sign := values.sign()) != end or number:
        if sign in (",", end) or not sign:
            values.reject("a value is missing" if sign else f"the {kind} has no end")
        yield (number := number + 1)
        if (sign := values.sign()) == end:
            break
        if sign != ",":
            values.reject("a comma is missing" if sign else f"the {kind} has no end")
        values.skip()
    values.skip()


def _objects(values: _Values) -> Iterator[Record]:
    number = 0
    while values.sign():
        number += 1
        yield values.value(number)


@dataclass
class _Rows:
    """The columns of one file: the fields that were seen so far, matched with the profile's."""

    profile: ReaderProfile
    limits: ReadLimits
    file_name: str
    target: Target
    names: dict[str, None] = field(default_factory=dict)
    layout: Layout | None = None

    def __post_init__(self) -> None:
        self.paths = {name: path for name in self.profile.columns_of_file if (path := path_of(name))}

    def chunk(self, records: Sequence[Record]) -> RowsChunk:
        good = [record for record in records if not record.reason]
        bad = [(record.number, shortened(record.raw.encode()), record.reason) for record in records if record.reason]
        malformed = pl.DataFrame(bad, schema=MALFORMED.schema, orient="row") if bad else MALFORMED
        written = {record.number: record.raw for record in good}

        def raw_text(numbers: Sequence[int]) -> list[str]:
            return [shortened(written[number].encode()) for number in numbers]

        fields = [self._fields(record.value) for record in good]
        before = len(self.names)
        for one in fields:
            self.names.update(dict.fromkeys(one))
        if good and (self.layout is None or len(self.names) > before):
            self.layout = layout_of([*self.names], self.profile, self.limits, self.file_name, self.target)
        if self.layout is None:
            return RowsChunk(empty_rows(self.target), malformed, raw_text)
        cells = self._cells([record.number for record in good], fields, self.layout)
        return rows_chunk(cells, malformed, raw_text, replace(self.layout, rescued={}, reordered=False), self.profile)

    def _fields(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of an object by column name; fields that a path names are moved out of their objects."""
        paths = {name: path for name, path in self.paths.items() if name not in value}
        found = {name: at for name, path in paths.items() if (at := reduce(_inner, path, value)) is not MISSING}
        if not found:
            return value
        left = value
        for name in found:
            left = _without(left, paths[name])
        return {**left, **found}

    def _cells(self, numbers: list[int], fields: Sequence[Mapping[str, Any]], layout: Layout) -> pl.DataFrame:
        names = [*self.names]
        columns, nulls = [pl.Series("line_number", numbers, pl.Int64)], frozenset(self.profile.nulls)
        for name, index in layout.wanted.items():
            if name not in layout.rescued:
                values = [one.get(names[index]) for one in fields]
                columns += _column(name, values, nulls, is_document=name in self.target.documents)
        if self.target.keep_unknown:
            unknown = {shown: names[layout.wanted[cell]] for cell, shown in layout.rescued.items()}
            columns.append(pl.Series(RESCUED, [_rescued(one, unknown) for one in fields], pl.String))
        return pl.DataFrame(columns)


def path_of(name: str) -> JsonPath:
    """Return the steps of a column's name that leads into an object: `a.b` or `$.a.b[0]`; empty for a plain name."""
    if not name.startswith("$"):
        return tuple(name.split(".")) if "." in name else ()
    try:
        query = jsonpath.compile(name)
    except jsonpath.JSONPathError as error:
        raise FileRejectedError("broken_profile", f"The column {name!r} is no JSONPath: {error}.") from None
    if not isinstance(query, jsonpath.JSONPath) or not query.singular_query():
        raise FileRejectedError("broken_profile", f"The JSONPath {name!r} may lead to several values; name one.")
    steps = [selector for segment in query.segments for selector in segment.selectors]
    return tuple(step.name if isinstance(step, NameSelector) else int(getattr(step, "index", 0)) for step in steps)


def _inner(value: Any, step: str | int) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(step, str):
        return value.get(step, MISSING) if isinstance(value, dict) else MISSING
    return value[step] if isinstance(value, list) and -len(value) <= step < len(value) else MISSING


def _without(value: dict[str, Any], path: JsonPath) -> dict[str, Any]:
    """Return an object without the field that a path leads to, and without the objects that are empty then."""
    step, *rest = path
    inner = value.get(step) if isinstance(step, str) else None
    if rest and not (isinstance(inner, dict) and isinstance(rest[0], str)):
        # A list is kept whole: without one value, the others would change their indexes.
        return value
    left = _without(inner, tuple(rest)) if rest and isinstance(inner, dict) else {}
    kept = {name: one for name, one in value.items() if name != step}
    return {**kept, str(step): left} if left else kept


def _column(name: str, values: Sequence[Any], nulls: frozenset[str], *, is_document: bool) -> list[pl.Series]:
    """Return a column's texts, null where missing, and the kinds of its cells; texts in a column of JSON as JSON."""
    cells = [_cell(value) for value in values]
    texts = [None if text in nulls or not text else text for _, text in cells]
    kinds = [kind for kind, _ in cells]
    if is_document:
        texts = [text and json_of(value) for text, value in zip(texts, values, strict=True)]
        kinds = [NESTED] * len(kinds)
    return [pl.Series(name, texts, pl.String), pl.Series(KIND_OF(name), kinds, pl.String)]


def _cell(value: object) -> tuple[str, str | None]:
    if isinstance(value, Number):
        return NUMBER, str(value)
    if isinstance(value, str):
        return TEXT, value.strip(UNSEEN_ENDS)
    if isinstance(value, bool):
        return BOOLEAN, "true" if value else "false"
    return (TEXT, None) if value is None else (NESTED, json_of(value))


def _rescued(fields: Mapping[str, Any], unknown: Mapping[str, str]) -> str | None:
    """Return the undeclared fields of a record as JSON, by their names in it; `unknown` has those of the file."""
    kept = {shown: value for shown, name in unknown.items() if (value := fields.get(name)) is not None}
    text = json_of(kept) if kept else None
    return json_of(_as_stored(kept)) if text and HUGE.search(text) else text


def _as_stored(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a value with the numbers that databases do not store as texts."""
    if isinstance(value, Number):
        return value if is_stored(value) else str(value)
    if isinstance(value, dict):
        return {name: _as_stored(one) for name, one in value.items()}
    return [*map(_as_stored, value)] if isinstance(value, list) else value


def empty_rows(target: Target) -> pl.DataFrame:
    """Return no rows of a target."""
    names = [*target.columns, *([RESCUED] if target.keep_unknown else [])]
    return pl.DataFrame(schema={"line_number": pl.Int64, **dict.fromkeys(names, pl.String)})
