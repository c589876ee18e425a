"""Cells of a text block to Polars columns, without a Python object per cell.

Polars and Arrow keep text as *views*: 16 bytes per cell, with the length, and either up to 12 bytes of text or the
place of the text in a shared buffer. The positions of the cells are known from the record index, so a column is one
gather of 16 bytes per cell over the block itself: for the small files that are this product's daily bread, half of
what a CSV parser costs to start. Long cells are never copied: they point into the block.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from ingest_project.readers.casting import kept
from ingest_project.readers.names import TRIMMED

Positions = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

VIEW_BYTES = 16
INLINE_BYTES = 12
LENGTH_BYTES = 4
SPACE, TAB, QUOTE = 0x20, 0x09, 0x22
BLANKS = b" \t"
TRIM_ROUNDS = 32
# Unseen characters at the ends of a cell, except line ends, which a quoted cell may hold.
UNSEEN_ENDS = TRIMMED.translate({ord("\r"): None, ord("\n"): None})
LOWEST_UNSEEN, HIGHEST_UNSEEN = 0x0B, 0x1F
UNSEEN_ASCII = tuple(bytes([code]) for code in b"\x0b\x0c\x1c\x1d\x1e\x1f")
# Of those that begin with 0xC2, as °, µ and ³ do, which are in every file with units.
UNSEEN_LATIN = tuple(np.frombuffer(character.encode(), "<u2")[0] for character in "\x85\xa0\xad")
# Below it are the first bytes of Latin, Greek and Cyrillic letters, none of which leads to an unseen character.
FIRST_RARE_BYTE = 0xD8
ORDINARY = bytes([*range(0x20, 0x7F), *b"\0\t\r\n"])


def _view_masks() -> npt.NDArray[np.void]:
    """Element n keeps the bytes of a view that count for a text of n bytes; the last one those of a long text."""
    masks = np.zeros((INLINE_BYTES + 2, VIEW_BYTES), np.uint8)
    for length in range(INLINE_BYTES + 1):
        masks[length, : LENGTH_BYTES + length] = 0xFF
    masks[-1, :8] = 0xFF
    return masks.view("V16").ravel()


VIEW_MASKS = _view_masks()


@dataclass(frozen=True)
class TextBlock:
    """Some UTF-8 text with room around it, so that 16 bytes may be read at any cell without a bounds check.

    Args:
        padded: LENGTH_BYTES bytes, the text, VIEW_BYTES bytes.
    """

    padded: bytes

    @classmethod
    def of(cls, *parts: bytes) -> TextBlock:
        """The parts, one after the other, as one block."""
        return cls(b"".join((b"\0" * LENGTH_BYTES, *parts, b"\0" * VIEW_BYTES)))

    @property
    def size(self) -> int:
        """Bytes of text."""
        return len(self.padded) - LENGTH_BYTES - VIEW_BYTES

    @cached_property
    def codes(self) -> npt.NDArray[np.uint8]:
        """The text, one number a byte."""
        return np.frombuffer(self.padded, np.uint8, self.size, LENGTH_BYTES)

    @cached_property
    def windows(self) -> npt.NDArray[np.void]:
        """Element i is the 16 bytes that end 12 bytes into the text at i: room for a length, then the text."""
        return np.ndarray((self.size + 1,), np.dtype("V16"), self.padded, 0, (1,))

    def slice(self, start: int, end: int) -> bytes:
        """The text between two positions."""
        return self.padded[LENGTH_BYTES + start : LENGTH_BYTES + end]

    @cached_property
    def has_unseen(self) -> bool:
        """Whether the text has white space or format characters beyond space, tab and line ends anywhere."""
        # Two passes that take no time; of the codes between, most files have a carriage return or none.
        if (self.codes - LOWEST_UNSEEN <= HIGHEST_UNSEEN - LOWEST_UNSEEN).any() and any(map(self.find, UNSEEN_ASCII)):
            return True
        if self.padded.isascii():
            return False
        if self.codes.max(initial=0) < FIRST_RARE_BYTE:
            # Two bytes at a time, from the first and from the second one on: searching for each takes longer.
            pairs = [np.frombuffer(self.padded, "<u2", len(self.padded) // 2 - 1, start) for start in (0, 1)]
            return any((pair == unseen).any() for pair in pairs for unseen in UNSEEN_LATIN)
        rest = self.padded.translate(None, ORDINARY).decode("utf-8", "ignore")
        return not set(UNSEEN_ENDS).isdisjoint(rest)

    def find(self, what: bytes) -> bool:
        """Whether these bytes occur in the text."""
        return self.padded.find(what, LENGTH_BYTES, len(self.padded) - VIEW_BYTES) >= 0


@dataclass(frozen=True)
class Cells:
    """The place of some columns' cells in a block.

    Args:
        starts: first byte of each cell, the cells of one column after those of the other.
        ends: the byte after each cell.
        columns: how many columns these are, all of the same length.
        may_be_quoted: False when the block holds no quote at all.
        escapes: positions of the first quote of each doubled quote in the block, ascending.
    """

    starts: Positions
    ends: Positions
    columns: int
    may_be_quoted: bool
    escapes: Positions


def text_columns(block: TextBlock, cells: Cells, null_spellings: frozenset[str]) -> list[pa.Array]:
    """The columns as text: quotes removed, what cannot be seen at their ends trimmed, missing cells null.

    All columns go through each step together: for a small file the steps cost more than the cells.
    """
    starts, ends = cells.starts, cells.ends
    escaped: Positions = np.empty(0, np.int64)
    if cells.may_be_quoted:
        quoted = (block.codes[np.minimum(starts, block.size - 1)] == QUOTE) & (ends > starts)
        escaped = _cells_with(cells, cells.escapes)
        starts, ends = starts + quoted, ends - quoted
    starts, ends = trimmed(block, starts, ends)
    views = _views(block, starts, ends - starts)
    buffers = [pa.py_buffer(block.padded).slice(LENGTH_BYTES)]
    if len(escaped):
        buffers.append(_unescape(block, views, escaped, starts, ends))
    missing = _missing(views, null_spellings)
    columns = [
        _array(column, absent, buffers)
        for column, absent in zip(
            views.reshape(cells.columns, -1, VIEW_BYTES), missing.reshape(cells.columns, -1), strict=True
        )
    ]
    return [_without_unseen(column, null_spellings) for column in columns] if block.has_unseen else columns


def _without_unseen(column: pa.Array, null_spellings: frozenset[str]) -> pa.Array:
    """Trim what the bytes of a block do not show at a glance, such as no-break spaces and byte order marks."""
    trimmed = pl.Series(column).cast(pl.String).str.strip_chars(UNSEEN_ENDS)
    found = kept(trimmed, ~trimmed.is_in(["", *null_spellings]))
    return found.to_arrow(compat_level=pl.CompatLevel.newest())


def plain_column(block: TextBlock, starts: Positions, ends: Positions) -> pa.Array:
    """Pieces of the text exactly as they are, as Arrow string views; none of them may cut a character in two."""
    views = _views(block, starts, ends - starts)
    return _array(views, np.zeros(len(views), np.bool_), [pa.py_buffer(block.padded).slice(LENGTH_BYTES)])


def column_of(texts: Sequence[str], null_spellings: frozenset[str]) -> pl.Series:
    """The same for cells that are already Python text."""
    trimmed = (text.strip(UNSEEN_ENDS) for text in texts)
    return pl.Series([None if text == "" or text in null_spellings else text for text in trimmed], dtype=pl.String)


def _cells_with(cells: Cells, positions: Positions) -> Positions:
    """Indexes of the cells that hold one of these positions. Within a column, cells are in the order of the block."""
    if not len(positions):
        return positions
    rows = len(cells.starts) // cells.columns
    found = []
    for offset in range(0, len(cells.starts), max(rows, 1)):
        starts, ends = cells.starts[offset : offset + rows], cells.ends[offset : offset + rows]
        candidates = np.searchsorted(starts, positions, side="right") - 1
        inside = (candidates >= 0) & (positions < ends[np.maximum(candidates, 0)])
        found.append(np.unique(candidates[inside]) + offset)
    return np.concatenate(found) if found else positions[:0]


def trimmed(block: TextBlock, starts: Positions, ends: Positions) -> tuple[Positions, Positions]:
    """The bounds of cells, moved past the blanks around their text; both the same for a cell of nothing but blanks."""
    starts = _past_blanks(block, starts, ends, 1)
    return starts, _past_blanks(block, ends, starts, -1)


def _past_blanks(block: TextBlock, bounds: Positions, others: Positions, step: int) -> Positions:
    """Move one bound towards the other. Each round looks only at the cells that still had a blank."""
    padded = np.frombuffer(block.padded, np.uint8)
    offset = LENGTH_BYTES if step == 1 else LENGTH_BYTES - 1
    active = _blank(padded[bounds + offset])
    if len(active):
        bounds = bounds.copy()
    for _ in range(TRIM_ROUNDS):
        active = active[(others[active] - bounds[active]) * step > 0]
        if not len(active):
            return bounds
        bounds[active] += step
        active = active[_blank(padded[bounds[active] + offset])]
    # A megabyte of blanks must not cost a round for each.
    for i in active:
        first, last = sorted((int(bounds[i]), int(others[i])))
        text = block.slice(first, last)
        left = len(text.lstrip(BLANKS) if step == 1 else text.rstrip(BLANKS))
        bounds[i] = last - left if step == 1 else first + left
    return bounds


def _blank(codes: npt.NDArray[np.uint8]) -> Positions:
    return np.flatnonzero((codes == SPACE) | (codes == TAB))


def _views(block: TextBlock, starts: Positions, lengths: Positions) -> npt.NDArray[np.uint8]:
    if len(starts) and (starts.min() < 0 or lengths.min() < 0 or (starts + lengths).max() > block.size):
        # Whoever reads a view trusts it: one that points outside of the block would crash the process, or worse.
        raise IndexError("a cell lies outside of its block")
    views = block.windows[starts].view(np.uint8).reshape(-1, VIEW_BYTES)
    numbers = views.view(np.int32)
    numbers[:, 0] = lengths
    # Gathered as 16-byte elements, which NumPy copies several times faster than rows of two numbers.
    masks = VIEW_MASKS[np.minimum(lengths, INLINE_BYTES + 1)].view(np.uint64)
    halves = views.view(np.uint64).reshape(-1)
    halves &= masks
    long = np.flatnonzero(lengths > INLINE_BYTES)
    numbers[long, 3] = starts[long]
    return views


def _unescape(
    block: TextBlock, views: npt.NDArray[np.uint8], escaped: Positions, starts: Positions, ends: Positions
) -> pa.Buffer:
    """Point the cells with doubled quotes at a second buffer that holds their text with single ones."""
    texts = [block.slice(starts[i], ends[i]).replace(b'""', b'"').strip(BLANKS) for i in escaped]
    offsets = itertools.accumulate((len(text) for text in texts), initial=0)
    for i, text, offset in zip(escaped, texts, offsets, strict=False):
        inline = (
            text if len(text) <= INLINE_BYTES else text[:4] + (1).to_bytes(4, "little") + offset.to_bytes(4, "little")
        )
        views[i] = np.frombuffer(len(text).to_bytes(4, "little") + inline.ljust(INLINE_BYTES, b"\0"), np.uint8)
    return pa.py_buffer(b"".join(texts) or b"\0")


def _array(views: npt.NDArray[np.uint8], missing: Flags, data: list[pa.Buffer]) -> pa.Array:
    validity = pa.py_buffer(np.packbits(~missing, bitorder="little")) if missing.any() else None
    return pa.Array.from_buffers(pa.string_view(), len(views), [validity, pa.py_buffer(views), *data])


def _missing(views: npt.NDArray[np.uint8], null_spellings: frozenset[str]) -> Flags:
    lengths = views.view(np.int32)[:, 0]
    missing: Flags = lengths == 0
    longest, patterns = _null_patterns(null_spellings)
    short = np.flatnonzero(lengths <= longest)
    if not len(short):
        return missing
    halves = views.view(np.uint64)[short]
    for first, second in patterns:
        missing[short[(halves[:, 0] == first) & (halves[:, 1] == second)]] = True
    return missing


@lru_cache(maxsize=64)
def _null_patterns(null_spellings: frozenset[str]) -> tuple[int, list[tuple[np.uint64, np.uint64]]]:
    """The spellings as views; profiles keep them to INLINE_BYTES, so that a view holds the whole text."""
    texts = [spelling.encode() for spelling in null_spellings if spelling]
    patterns = []
    for text in texts:
        view = np.frombuffer(len(text).to_bytes(4, "little") + text.ljust(INLINE_BYTES, b"\0"), np.uint64)
        patterns.append((view[0], view[1]))
    return max((len(text) for text in texts), default=0), patterns
