"""The slow and patient reading of CSV text, for blocks in which a quote stands out of place.

Same dialect as record_index.py, one record at a time. A record that breaks it costs its first physical line only:
reading goes on at the next line, so that an unclosed quote cannot swallow the rest of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

LINE_END = re.compile(rb"\r\n|\r|\n")
BLANKS = b" \t"


@dataclass(frozen=True)
class Record:
    """One record, or one spoilt line.

    Args:
        start: first byte; end: the byte after its text; after: where the next record starts.
        line: physical line it starts on, counted from 0; lines: how many it spans.
        cells: its cells, untrimmed, quotes removed; None when it is spoilt.
        reason: why it is spoilt: `unbalanced_quote` or `row_too_long`; empty otherwise.
    """

    start: int
    end: int
    after: int
    line: int
    lines: int
    cells: list[bytes] | None
    reason: str = ""


def split_carefully(
    text: bytes, delimiter: bytes, *, final: bool, max_row_bytes: int, start: int = 0
) -> Iterator[Record]:
    """Every complete record of the text.

    Args:
        text: starts, at `start`, where a record starts.
        delimiter: one byte.
        final: whether the text ends here.
        max_row_bytes: no record is longer, and no quote is looked for further away.
        start: where to begin.
    """
    splitter = _Splitter(text, delimiter, re.compile(re.escape(delimiter) + rb"|\r|\n"), final, max_row_bytes)
    line = 0
    while start < len(text):
        record = splitter.next_record(start, line)
        if record is None:
            return
        yield record
        start, line = record.after, line + record.lines


class _QuoteMisplacedError(Exception):
    """A quote that is neither doubled nor at the edge of its cell, or is never closed."""


class _IncompleteError(Exception):
    """The text ends before the record does, and more text is to come."""


@dataclass(frozen=True)
class _Splitter:
    """The arguments of `split_carefully`; edge: what may end a cell."""

    text: bytes
    delimiter: bytes
    edge: re.Pattern[bytes]
    final: bool
    max_row_bytes: int

    def next_record(self, start: int, line: int) -> Record | None:
        """The record or spoilt line that starts here; None when more text is needed to tell."""
        match = LINE_END.search(self.text, start)
        if match is None and not self.final:
            return None
        end, after = match.span() if match else (len(self.text), len(self.text))
        spoilt = Record(start, end, after, line, 1, None, "row_too_long")
        if end - start > self.max_row_bytes:
            return spoilt
        if self.text.find(b'"', start, end) < 0:
            return replace(spoilt, cells=self.text[start:end].split(self.delimiter), reason="")
        try:
            cells, quoted_end = self._quoted_cells(start)
        except _QuoteMisplacedError:
            return replace(spoilt, reason="unbalanced_quote")
        except _IncompleteError:
            return None
        return spoilt if quoted_end - start > self.max_row_bytes else self._quoted(start, quoted_end, line, cells)

    def _quoted(self, start: int, end: int, line: int, cells: list[bytes]) -> Record:
        match = LINE_END.match(self.text, end)
        line_breaks = len(LINE_END.findall(self.text, start, end))
        return Record(start, end, match.end() if match else end, line, line_breaks + 1, cells)

    def _quoted_cells(self, start: int) -> tuple[list[bytes], int]:
        """The cells of one record in which quotes occur, and where it ends."""
        limit = min(len(self.text), start + self.max_row_bytes)
        cells = []
        position = start
        while True:
            cell, end = self._cell(position, limit)
            cells.append(cell)
            if end == len(self.text) and not self.final:
                raise _IncompleteError
            if not self.text.startswith(self.delimiter, end):
                return cells, end
            position = end + 1

    def _cell(self, start: int, limit: int) -> tuple[bytes, int]:
        """One cell, and the place of the delimiter or line end after it."""
        if not self.text.startswith(b'"', start):
            match = self.edge.search(self.text, start)
            end = match.start() if match else len(self.text)
            return self.text[start:end], end
        closing = self._closing_quote(start, limit)
        end = closing + 1
        while end < len(self.text) and self.text[end] in BLANKS and not self.text.startswith(self.delimiter, end):
            end += 1
        if end < len(self.text) and self.edge.match(self.text, end) is None:
            raise _QuoteMisplacedError
        return self.text[start + 1 : closing].replace(b'""', b'"'), end

    def _closing_quote(self, opening: int, limit: int) -> int:
        position = opening + 1
        while True:
            position = self.text.find(b'"', position, limit)
            if position < 0:
                raise _IncompleteError if limit == len(self.text) and not self.final else _QuoteMisplacedError
            if not self.text.startswith(b'"', position + 1):
                return position
            position += 2
