"""Where the records and cells of a block of CSV text are, found in a few vectorised passes.

The dialect is RFC 4180 with any of LF, CRLF and CR as line ends. A quote opens a cell only as its first byte; it must
close before a delimiter or a line end, and is doubled inside. A block with any other quote is not indexed here: it goes
the careful way (careful_split.py), which knows how to keep one spoilt line from spoiling its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ingest_project.readers.csv.arrow_strings import QUOTE, Cells, Flags, Positions, TextBlock

LF, CR = 0x0A, 0x0D
NOTHING: Positions = np.empty(0, np.int64)
Numbers = TypeVar("Numbers", Positions, Flags)


@dataclass(frozen=True)
class RecordIndex:
    """The records of one block.

    Args:
        starts: first byte of each record; ends: the byte after its last one, without the line end.
        lines: physical line of the block each record starts on, the first is 0.
        delimiters: positions of all delimiters outside quotes.
        first_delimiters: index into `delimiters` of each record's first one.
        cell_counts: cells of each record.
        escapes: first quote of each doubled one; may_be_quoted: whether the block has quotes.
        consumed: where the text after the last complete record begins.
        line_count: physical lines up to there.
    """

    starts: Positions
    ends: Positions
    lines: Positions
    delimiters: Positions
    first_delimiters: Positions
    cell_counts: Positions
    escapes: Positions
    may_be_quoted: bool
    consumed: int
    line_count: int

    def cells(self, records: Positions | slice, width: int, columns: Sequence[int]) -> Cells:
        """Some columns of the records that have at least this width, one column after the other."""
        first = self.first_delimiters[records]
        starts = [self.starts[records] if n == 0 else self.delimiters[first + (n - 1)] + 1 for n in columns]
        ends = [self._last_ends(records, width) if n == width - 1 else self.delimiters[first + n] for n in columns]
        return Cells(np.concatenate(starts), np.concatenate(ends), len(columns), self.may_be_quoted, self.escapes)

    def _last_ends(self, records: Positions | slice, width: int) -> Positions:
        ends, wider = self.ends[records], self.cell_counts[records] > width
        if wider.any():
            ends = ends.copy()
            ends[wider] = self.delimiters[self.first_delimiters[records][wider] + (width - 1)]
        return ends


def index_records(block: TextBlock, delimiter: int, *, final: bool) -> RecordIndex | None:
    """The complete records of a block.

    Args:
        block: text that starts where a record starts.
        delimiter: code of the delimiter.
        final: whether the text ends here; only then is a record without a line end complete.

    Returns:
        None when a quote stands where the dialect has none, or no record is complete.
    """
    codes = block.codes
    all_ends, content_ends = _line_ends(block)
    if final and block.size and (not len(all_ends) or all_ends[-1] != block.size - 1):
        all_ends, content_ends = np.append(all_ends, block.size), np.append(content_ends, block.size)
    quotes = np.flatnonzero(codes == QUOTE) if block.find(b'"') else NOTHING
    outside = _outside(quotes, all_ends)
    ends, line_ends = _pick(content_ends, outside), _pick(all_ends, outside)
    if not len(ends):
        return None
    consumed = min(int(line_ends[-1]) + 1, block.size)
    quotes = quotes[: np.searchsorted(quotes, consumed)]
    if len(quotes) % 2 or not _quotes_in_place(block, quotes, delimiter):
        return None
    starts = np.empty_like(line_ends)
    starts[0], starts[1:] = 0, line_ends[:-1] + 1
    delimiters = np.flatnonzero(codes[:consumed] == delimiter)
    delimiters = _pick(delimiters, _outside(quotes, delimiters))
    first, counts = _delimiters_by_record(delimiters, starts, line_ends)
    everything = outside is None
    return RecordIndex(
        starts=starts,
        ends=ends,
        lines=np.arange(len(starts)) if everything else np.searchsorted(all_ends, starts),
        delimiters=delimiters,
        first_delimiters=first,
        cell_counts=counts + 1,
        escapes=quotes[1:-1:2][np.diff(quotes)[1::2] == 1] if len(quotes) else NOTHING,
        may_be_quoted=bool(len(quotes)),
        consumed=consumed,
        line_count=len(starts) if everything else int(np.searchsorted(all_ends, consumed)),
    )


def _line_ends(block: TextBlock) -> tuple[Positions, Positions]:
    """Position of each line's last byte (the LF of a CRLF), and of the byte after the line's text."""
    line_feeds = np.flatnonzero(block.codes == LF)
    if not block.find(b"\r"):
        return line_feeds, line_feeds
    codes = np.frombuffer(block.padded, np.uint8)
    returns = np.flatnonzero(block.codes == CR)
    followed = codes[returns + 5] == LF
    lone = returns[~followed]
    all_ends = np.sort(np.concatenate([line_feeds, lone])) if len(lone) else line_feeds
    after_return = (codes[all_ends + 3] == CR) & (block.codes[all_ends] == LF)
    return all_ends, all_ends - after_return


def _outside(quotes: Positions, positions: Positions) -> Flags | None:
    """Which positions have an even number of quotes before them; None for all of them."""
    if not len(quotes):
        return None
    outside: Flags = (np.searchsorted(quotes, positions) & 1) == 0
    return outside


def _pick(values: Positions, chosen: Flags | None) -> Positions:
    return values if chosen is None else values[chosen]


def _quotes_in_place(block: TextBlock, quotes: Positions, delimiter: int) -> bool:
    """Whether each opening quote begins a cell or is the second of a doubled one, and each closing one ends a cell."""
    if not len(quotes):
        return True
    codes = np.frombuffer(block.padded, np.uint8)
    opening, closing = quotes[::2], quotes[1::2]
    before, after = codes[opening + 3], codes[closing + 5]
    doubled = np.zeros(len(opening), np.bool_)
    doubled[1:] = opening[1:] == closing[:-1] + 1
    begins = doubled | (opening == 0) | _is_bound(before, delimiter)
    ends = _is_bound(after, delimiter) | (closing == block.size - 1)
    ends[:-1] |= doubled[1:]
    return bool(begins.all() and ends.all())


def _is_bound(codes: npt.NDArray[np.uint8], delimiter: int) -> Flags:
    bound: Flags = (codes == delimiter) | (codes == LF) | (codes == CR)
    return bound


def _delimiters_by_record(
    delimiters: Positions, starts: Positions, line_ends: Positions
) -> tuple[Positions, Positions]:
    """Index of each record's first delimiter, and how many it has."""
    records = len(starts)
    each, rest = divmod(len(delimiters), records)
    if each and not rest:
        # The usual case, checked without a search: every record has the same number.
        grid = delimiters.reshape(records, each)
        if (grid[:, 0] >= starts).all() and (grid[:, -1] < line_ends).all():
            return np.arange(0, len(delimiters), each), np.full(records, each)
    first = np.searchsorted(delimiters, starts)
    return first, np.diff(first, append=len(delimiters))
