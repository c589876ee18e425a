"""The header of CSV text: where it is, which delimiter it is written with, and what its columns are called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.readers.csv.fallback_tokenizer import LINE_END, Record, split_carefully
from ingest_project.readers.csv.rejects import INVALID_BYTE, is_blank
from ingest_project.readers.names import clean_name, matched_name

CANDIDATE_DELIMITERS = (",", ";", "\t", "|")


class Header(NamedTuple):
    """The names of a table's columns, and where its records begin.

    Args:
        names: trimmed, as written.
        delimiter: one character.
        start: first byte after the header in the first block.
        line_number: physical line there.
        own_start, own_line_number: the same of the header itself.
        spare: how many columns without a name stood at its end; they are not among the names.
    """

    names: list[str]
    delimiter: str
    start: int
    line_number: int
    own_start: int
    own_line_number: int
    spare: int = 0

    def without_spare_columns(self) -> Header:
        """For a header that ends in delimiters: what stands after the last of them has no name, and must be empty."""
        named = max((place for place, name in enumerate(self.names, 1) if name), default=len(self.names))
        return self._replace(names=self.names[:named], spare=len(self.names) - named)

    def as_first_record(self) -> Header:
        """For a table without header: its first record is data, and the columns are called 1, 2, ..."""
        names = [str(number) for number in range(1, len(self.names) + 1)]
        return self._replace(names=names, start=self.own_start, line_number=self.own_line_number)


@dataclass(frozen=True)
class HeaderSearch:
    """What to look for.

    Args:
        delimiter: None takes the one under which most known column names appear.
        known_names: names that the profile knows, as `matched_name` makes them.
        skip_lines: physical lines above the header.
        max_row_bytes: a longer header is refused.
    """

    delimiter: str | None
    known_names: frozenset[str]
    skip_lines: int
    max_row_bytes: int


def find_header(blocks: Iterator[tuple[bytes, bool]], search: HeaderSearch) -> tuple[Header, bytes, bool]:
    """The header, the text it was found in, and whether that is all text. Takes as many blocks as it needs.

    Raises:
        FileRejectedError: `empty_file` when no line has text, `unreadable_header`, `encoding`.
        LimitExceededError: it is longer than a row may be.
    """
    text = b""
    for block, final in blocks:
        text += block
        header = read_header(text, search, final=final)
        if header is not None:
            return header, text, final
    raise FileRejectedError("empty_file", "The file has no line with text.")


def read_header(text: bytes, search: HeaderSearch, *, final: bool) -> Header | None:
    """The first line that is not blank; None when there is none yet.

    Raises:
        FileRejectedError, LimitExceededError: see `find_header`.
    """
    start = 0
    for _ in range(search.skip_lines):
        match = LINE_END.search(text, start)
        start = match.end() if match else len(text)
    headers: list[Header] = []
    spoilt: FileRejectedError | None = None
    for candidate in search.delimiter or CANDIDATE_DELIMITERS:
        record = _first_record(text, candidate, start, search.max_row_bytes, final=final)
        if record is None:
            return None
        try:
            headers.append(_header(record, candidate, search.skip_lines))
        except FileRejectedError as error:
            # Quotes that are in place under one delimiter are not under another.
            spoilt = error
            continue
        if search.known_names.issubset(map(matched_name, headers[-1].names)):
            return headers[-1]
    best = max(headers, key=lambda header: (_known(header.names, search), len(header.names)), default=None)
    if spoilt and (best is None or len(best.names) == 1 > _known(best.names, search)):
        raise spoilt
    return best


def _known(names: Sequence[str], search: HeaderSearch) -> int:
    return sum(matched_name(name) in search.known_names for name in names)


def _first_record(text: bytes, delimiter: str, start: int, max_row_bytes: int, *, final: bool) -> Record | None:
    records = split_carefully(text, delimiter.encode(), final=final, max_row_bytes=max_row_bytes, start=start)
    for record in records:
        if record.reason == "row_too_long":
            raise LimitExceededError("INGEST_MAX_ROW_BYTES", f"The header has {record.end - record.start} bytes")
        if not is_blank(text[record.start : record.end], delimiter):
            return record
    if len(text) - start > max_row_bytes and not final:
        raise LimitExceededError("INGEST_MAX_ROW_BYTES", f"There is no header in the first {len(text)} bytes")
    return None


def _header(record: Record, delimiter: str, skip_lines: int) -> Header:
    line_number = skip_lines + record.line + 1
    if record.cells is None:
        raise FileRejectedError("unreadable_header", f"Line {line_number}, the header, has an unbalanced quote.")
    if any(INVALID_BYTE.encode() in cell for cell in record.cells):
        raise FileRejectedError(
            "encoding", f"Line {line_number}, the header, has bytes that are not of the file's encoding."
        )
    if any(b"\0" in cell for cell in record.cells):
        raise FileRejectedError(
            "encoding", "The header has NUL bytes: UTF-16 without a byte order mark, or no text at all."
        )
    return Header(
        names=[clean_name(cell.decode("utf-8", "replace")) for cell in record.cells],
        delimiter=delimiter,
        start=record.after,
        line_number=line_number + record.lines,
        own_start=record.start,
        own_line_number=line_number,
    )
