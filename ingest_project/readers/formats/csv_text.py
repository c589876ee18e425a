"""CSV text: decode a file into blocks of UTF-8, split text into records, and find the header.

The dialect is RFC 4180 with any of LF, CRLF and CR as line ends. A quote opens a cell only as its first byte; it must
close before a delimiter or a line end, and is doubled inside. A record that breaks this costs its first physical line
only: reading resumes at the next line, so that an unclosed quote cannot swallow the rest of the file.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.readers.casting import clean_name, matched_name

LINE_END = re.compile(rb"\r\n|\r|\n")
UNCLOSED = re.compile(rb'"(?:[^"]++|"")*+\Z')
CANDIDATE_DELIMITERS = (",", ";", "\t", "|")
# Longest first: the mark of UTF-16 begins that of UTF-32.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Formats that are not rows of text, by the pattern of their first bytes.
OTHER_KINDS = (
    (rb"PK\x03\x04", "a zip archive or a workbook"),
    (rb"\xd0\xcf\x11\xe0", "an old Office document"),
    (
        rb"\x1f[\x8b\x9d]|\xfd7zXZ|\x28\xb5\x2f\xfd|BZh[1-9]1AY&SY|7z\xbc\xaf\x27\x1c|Rar!\x1a|.{257}ustar",
        "a compressed file or an archive",
    ),
    (rb"%PDF-|\x89PNG|\xff\xd8\xff", "a PDF document or a picture"),
    (rb"PAR1\x15", "a Parquet file"),
    (
        rb"Obj\x01|ARROW1\0|\xff{4}..\0\0|SQLite format 3\0|\x89HDF|CDF[\1\2\5]",
        "a file of Avro or another binary format",
    ),
    (rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype|html|\?xml|table)", "an HTML or XML document"),
)
MAX_MAGIC_BYTES = 512
# Valid text has no NUL, so this marks a row as invalid.
INVALID_BYTE = "\0\\x"
MARKED = "ingest_project.marked"
# With more, the encoding is wrong, and marking would cost more than reading.
MAX_INVALID_BYTES = 100_000


def text_blocks(path: Path, encoding: str, block_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """Yield the text of a file, in order, as UTF-8, each block with whether it is the last.

    A byte that is not of the encoding rejects its row, not the file: it is marked by INVALID_BYTE.

    Args:
        path: a file that does not change while it is read.
        encoding: of files without a byte order mark; a mark always wins and is removed.
        block_bytes: how much of the file to read at a time. No block ends between a CR and an LF.

    Raises:
        FileRejectedError: `empty_file`; `unreadable_container` for a file that is not text; `encoding` where more than
            MAX_INVALID_BYTES are not of its encoding.
    """
    with path.open("rb") as file:
        start = file.read(MAX_MAGIC_BYTES)
        if not start:
            raise FileRejectedError("empty_file", "The file has no bytes.")
        require_text(start)
        mark, encoding = _marked_encoding(start, encoding)
        file.seek(len(mark))
        yield from _blocks(file, codecs.lookup(encoding).name, block_bytes)


def require_text(start: bytes) -> None:
    """Refuse a file whose first bytes are known to be those of something else than rows of text.

    Raises:
        FileRejectedError: `unreadable_container`; names the kind of file.
    """
    if kind := _other_kind(start):
        raise FileRejectedError("unreadable_container", f"The file is {kind}, not rows of text.")


def kind_of(start: bytes) -> str | None:
    """Name the format of a file by its first bytes, for messages; None if they are neither text nor a known format."""
    is_text = not re.search(rb"[\x00-\x08\x0e-\x1f]", start) or start.startswith(
        (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    )
    return _other_kind(start) or ("text, such as csv" if is_text else None)


def _other_kind(start: bytes) -> str | None:
    return next((kind for pattern, kind in OTHER_KINDS if re.match(pattern, start, re.DOTALL)), None)


def _marked_encoding(start: bytes, encoding: str) -> tuple[bytes, str]:
    """Return the byte order mark that a text starts with, and the encoding that it means; without a mark, this one."""
    return next(((mark, marked) for mark, marked in BYTE_ORDER_MARKS if start.startswith(mark)), (b"", encoding))


def encoding_of(path: Path, encoding: str) -> str:
    """Return the encoding of a file: that of its byte order mark, or else this one."""
    with path.open("rb") as file:
        return _marked_encoding(file.read(MAX_MAGIC_BYTES), encoding)[1]


def _blocks(file: BinaryIO, encoding: str, block_bytes: int) -> Iterator[tuple[bytes, bool]]:
    decoder = codecs.getincrementaldecoder(encoding)(MARKED)
    held = b""
    invalid = 0
    raw = file.read(block_bytes)
    while True:
        following = file.read(block_bytes)
        text, marked = _decoded(decoder, raw, encoding, final=not following)
        invalid += marked
        if invalid > MAX_INVALID_BYTES:
            detail = f"More than {MAX_INVALID_BYTES:,} bytes of the file are not {encoding}."
            raise FileRejectedError("encoding", f"{detail} Name the encoding in the file's reader profile.")
        text = held + text
        if not following:
            yield text, True
            return
        # A CR may be half of a CRLF.
        held = b"\r" if text.endswith(b"\r") else b""
        yield text.removesuffix(b"\r"), False
        raw = following


def _decoded(decoder: codecs.IncrementalDecoder, raw: bytes, encoding: str, *, final: bool) -> tuple[bytes, int]:
    """Return the text of the next bytes as UTF-8, and how many of them were not valid."""
    is_utf_8 = encoding == "utf-8"
    pending = bool(decoder.getstate()[0])
    if is_utf_8 and not pending and raw.isascii():
        return raw, 0
    text = decoder.decode(raw, final)
    marked = text.count(INVALID_BYTE) if "\0" in text else 0
    # A character cut by the block's end stays in the decoder and is returned with the next block.
    unchanged = is_utf_8 and not marked and not pending and not decoder.getstate()[0]
    return (raw if unchanged else text.encode()), marked


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Write each invalid byte as INVALID_BYTE and its two hexadecimal digits."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"{INVALID_BYTE}{byte:02x}" for byte in error.object[error.start : error.end]), error.end


codecs.register_error(MARKED, _mark)


@dataclass(frozen=True)
class Record:
    """One record, or one line that breaks the dialect.

    Args:
        start: first byte; end: the byte after its text; after: where the next record starts.
        line: physical line it starts on, counted from 0; lines: how many it spans.
        cells: its cells, untrimmed, quotes removed; None when it breaks the dialect.
        reason: `unbalanced_quote` or `row_too_long` when it does; empty otherwise.
    """

    start: int
    end: int
    after: int
    line: int
    lines: int
    cells: list[bytes] | None
    reason: str = ""


def split_records(text: bytes, delimiter: str, *, final: bool, max_row_bytes: int, start: int = 0) -> Iterator[Record]:
    """Yield every complete record of the text.

    Args:
        text: a record starts at `start`.
        delimiter: one ASCII character.
        final: whether the text ends here.
        max_row_bytes: no record is longer, and no closing quote is searched further away.
        start: where to begin.
    """
    splitter = _Splitter(text, delimiter.encode(), final, max_row_bytes)
    line = 0
    while start < len(text):
        record = splitter.next_record(start, line)
        if record is None:
            return
        yield record
        start, line = record.after, line + record.lines


@lru_cache(maxsize=16)
def _cell_pattern(delimiter: bytes) -> re.Pattern[bytes]:
    """Match one cell up to the delimiter or line end after it; possessive, for linear time."""
    mark, blanks = re.escape(delimiter), re.escape(b" \t".replace(delimiter, b""))
    quoted = rb'"(?P<quoted>(?:[^"]++|"")*+)"[' + blanks + rb"]*+"
    plain = rb'(?!")(?P<plain>[^\r\n' + mark + rb"]*+)"
    return re.compile(rb"(?:" + quoted + rb"|" + plain + rb")(?=[\r\n" + mark + rb"]|\Z)")


@dataclass(frozen=True)
class _Splitter:
    """The arguments of `split_records`."""

    text: bytes
    delimiter: bytes
    final: bool
    max_row_bytes: int

    def next_record(self, start: int, line: int) -> Record | None:
        """Return the record that starts here, or its first line if it breaks the dialect; None without enough text."""
        line_end = LINE_END.search(self.text, start)
        if line_end is None and not self.final:
            return None
        end, after = line_end.span() if line_end else (len(self.text), len(self.text))
        first_line = Record(start, end, after, line, 1, None, "row_too_long")
        if end - start > self.max_row_bytes:
            return first_line
        if self.text.find(b'"', start, end) < 0:
            return replace(first_line, cells=self.text[start:end].split(self.delimiter), reason="")
        cells: list[bytes] = []
        end, reason = self._quoted_cells(start, cells)
        if reason or end < 0:
            return replace(first_line, reason=reason) if reason else None
        line_end = LINE_END.match(self.text, end)
        lines = len(LINE_END.findall(self.text, start, end)) + 1
        return Record(start, end, line_end.end() if line_end else end, line, lines, cells)

    def _quoted_cells(self, start: int, cells: list[bytes]) -> tuple[int, str]:
        """Append the cells of a record with quotes; return its end, or -1 and why it breaks the dialect."""
        limit = min(len(self.text), start + self.max_row_bytes + 1)
        position = start - 1
        while position < start or self.text.startswith(self.delimiter, position):
            match = _cell_pattern(self.delimiter).match(self.text, position + 1, limit)
            if match is None:
                may_close = not self.final and start + self.max_row_bytes >= len(self.text)
                unclosed = may_close and UNCLOSED.match(self.text, position + 1)
                return (-1, "") if unclosed else (-1, "unbalanced_quote")
            cells.append(match["plain"] if match["quoted"] is None else match["quoted"].replace(b'""', b'"'))
            position = match.end()
            if position == len(self.text) and not self.final:
                return -1, ""
            if position - start > self.max_row_bytes:
                return -1, "row_too_long"
        return position, ""


def is_blank(raw: bytes, delimiter: str) -> bool:
    """Return True for a record of nothing but delimiters and blanks."""
    return not raw.strip(b" \t" + delimiter.encode())


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
        """Drop the columns after the last name, in a header that ends in delimiters: their cells must be empty."""
        named = max((index for index, name in enumerate(self.names, 1) if name), default=len(self.names))
        return self._replace(names=self.names[:named], spare=len(self.names) - named)

    def as_first_record(self) -> Header:
        """Treat the header as data, in a table without one: the columns are called 1, 2, ..."""
        names = [str(number) for number in range(1, len(self.names) + 1)]
        return self._replace(names=names, start=self.own_start, line_number=self.own_line_number)


@dataclass(frozen=True)
class HeaderSearch:
    """How to find a header.

    Args:
        delimiter: None selects the one that finds the most known column names.
        known_names: names that the profile knows, as `matched_name` makes them.
        skip_lines: physical lines above the header.
        max_row_bytes: a longer header is rejected.
        comment: beginning of lines to ignore; empty for none.
        rows: of the header; the names in each column are joined by `separator`.
    """

    delimiter: str | None
    known_names: frozenset[str]
    skip_lines: int
    max_row_bytes: int
    comment: bytes = b""
    rows: int = 1
    separator: str = " "


def find_header(blocks: Iterator[tuple[bytes, bool]], search: HeaderSearch) -> tuple[Header, bytes, bool]:
    """Read blocks up to the header; return it, the text of these blocks, and True if that is the whole text.

    Raises:
        FileRejectedError: `empty_file` when no line has text, `unreadable_header`, `encoding`.
        LimitExceededError: it is longer than a row may be.
    """
    text = b""
    for block, final in blocks:
        text += block
        header = _read_header(text, search, final=final)
        if header is not None:
            return header, text, final
    raise FileRejectedError("empty_file", "The file has no line with text.")


def _read_header(text: bytes, search: HeaderSearch, *, final: bool) -> Header | None:
    """Read the first line that is not blank; None if more text is needed."""
    start = 0
    for _ in range(search.skip_lines):
        match = LINE_END.search(text, start)
        start = match.end() if match else len(text)
    if search.comment:
        text = text[:start] + without_comments(text[start:], search.comment, final=final)
    headers: list[Header] = []
    broken: FileRejectedError | None = None
    for candidate in [search.delimiter] if search.delimiter else CANDIDATE_DELIMITERS:
        records = _first_records(text, candidate, start, search, final=final)
        if records is None:
            return None
        try:
            headers.append(_header(records, candidate, search))
        except FileRejectedError as error:
            # Quotes may be correct under one delimiter and not under another.
            broken = error
            continue
        if search.known_names.issubset(map(matched_name, headers[-1].names)):
            return headers[-1]
    best = max(headers, key=lambda header: (_count_known(header.names, search), len(header.names)), default=None)
    if broken and (best is None or len(best.names) == 1 > _count_known(best.names, search)):
        raise broken
    return best


def _count_known(names: Sequence[str], search: HeaderSearch) -> int:
    return sum(matched_name(name) in search.known_names for name in names)


def _first_records(
    text: bytes, delimiter: str, start: int, search: HeaderSearch, *, final: bool
) -> list[Record] | None:
    """Return the records of the header; None if more text is needed, or has none."""
    found: list[Record] = []
    for record in split_records(text, delimiter, final=final, max_row_bytes=search.max_row_bytes, start=start):
        if record.reason == "row_too_long":
            raise LimitExceededError("INGEST_MAX_ROW_BYTES", f"The header has {record.end - record.start} bytes")
        if not is_blank(text[record.start : record.end], delimiter):
            found.append(record)
        if len(found) == search.rows:
            return found
    if len(text) - start > search.max_row_bytes and not final:
        raise LimitExceededError("INGEST_MAX_ROW_BYTES", f"No header was found in the first {len(text)} bytes")
    return found if found and final else None


def _header(records: Sequence[Record], delimiter: str, search: HeaderSearch) -> Header:
    line_number = search.skip_lines + records[0].line + 1
    cells = [cell for record in records for cell in record.cells or []]
    if any(record.cells is None for record in records):
        raise FileRejectedError("unreadable_header", f"Line {line_number}, the header, has an unbalanced quote.")
    if any(INVALID_BYTE.encode() in cell for cell in cells):
        raise FileRejectedError("encoding", f"Line {line_number}, the header, has bytes that are not of its encoding.")
    if any(b"\0" in cell for cell in cells):
        raise FileRejectedError("encoding", "The header has NUL bytes: UTF-16 without a byte order mark, or no text.")
    rows = [[clean_name(cell.decode("utf-8", "replace")) for cell in record.cells or []] for record in records]
    last = records[-1]
    return Header(
        names=rows[0] if len(rows) == 1 else joined_names(rows, search.separator),
        delimiter=delimiter,
        start=last.after,
        line_number=search.skip_lines + last.line + 1 + last.lines,
        own_start=records[0].start,
        own_line_number=line_number,
    )


def joined_names(rows: Sequence[Sequence[str]], separator: str) -> list[str]:
    """Return the names in the rows of a header, joined column by column."""
    return [separator.join(filter(None, names)) for names in zip_longest(*rows, fillvalue="")]


def without_comments(text: bytes, mark: bytes, *, final: bool) -> bytes:
    """Replace each complete comment by as many spaces, so that every other byte stays where it is.

    A line inside a quoted cell is no comment. The text begins where a record begins.
    """
    if not mark or mark not in text:
        return text
    parts: list[bytes] = []
    done = quotes = 0
    for match in re.finditer(rb"(?:\A|(?<=[\r\n]))" + re.escape(mark) + rb"[^\r\n]*+", text):
        quotes += text.count(b'"', done, match.start())
        complete = final or match.end() < len(text)
        parts.append(text[done : match.start()])
        parts.append(b" " * len(match[0]) if complete and quotes % 2 == 0 else match[0])
        quotes += parts[-1].count(b'"')
        done = match.end()
    return b"".join([*parts, text[done:]])
