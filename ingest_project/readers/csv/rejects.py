"""Records that are no rows of their table: which they are, why, and their text for a person to look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from ingest_project.readers.csv.arrow_strings import (
    BLANKS,
    SPACE,
    TAB,
    Flags,
    Positions,
    TextBlock,
    plain_column,
)
from ingest_project.readers.csv.row_index import RecordIndex

# No text has a NUL, so a row with this one is told from every good row.
INVALID_BYTE = "\0\\x"


@dataclass(frozen=True)
class Dialect:
    """How to split text into the cells that are wanted.

    Args:
        delimiter: one ASCII character.
        width: cells of every good record.
        spare: columns without a name at the end of the header: as many further cells a record may have, all empty.
        wanted: the columns to read: the name each gets, and its index.
        null_spellings: texts that mean "missing", each at most 12 bytes.
        max_row_bytes: longer records are malformed.
    """

    delimiter: str
    width: int
    wanted: Mapping[str, int]
    null_spellings: frozenset[str]
    max_row_bytes: int
    spare: int = 0


RAW_TEXT_BYTES = 64 * 1024
SCHEMA = {"line_number": pl.Int64, "raw_text": pl.String, "reason": pl.String}
NOTHING = pl.DataFrame(schema=SCHEMA)
REASONS = pl.Series(["too_few_cells", "too_many_cells", "nul_byte", "invalid_bytes"])
FEW, MANY, NUL, INVALID = range(4)


class Malformed(NamedTuple):
    """A record that is no row of the table.

    Args:
        line_number: physical line it starts on, the first line of the file is 1.
        raw_text: its text, shortened visibly when it is over 64 KiB.
        reason: `too_few_cells`, `too_many_cells`, `unbalanced_quote`, `row_too_long`, `nul_byte` or
            `invalid_bytes` (not in the file's encoding).
    """

    line_number: int
    raw_text: str
    reason: str


def frame_of(records: Iterable[Malformed]) -> pl.DataFrame:
    """Malformed records as a frame: line_number, raw_text, reason."""
    found = list(records)
    return pl.DataFrame(found, schema=SCHEMA, orient="row") if found else NOTHING


def shortened(raw: bytes) -> str:
    """Text for a person: at most RAW_TEXT_BYTES of it, NUL and bytes that are no text made visible by their digits."""
    if len(raw) <= RAW_TEXT_BYTES:
        return _visible(raw.decode("utf-8", "replace"))
    text = _visible(raw[:RAW_TEXT_BYTES].decode("utf-8", "ignore"))
    return f"{text}… [{len(raw)} bytes]"


def _visible(text: str) -> str:
    return text.replace(INVALID_BYTE, "\\x").replace("\0", "\\x00")


def is_blank(raw: bytes, delimiter: str) -> bool:
    """Whether a record has no text at all: nothing but delimiters and blanks."""
    return not raw.strip(b" \t" + delimiter.encode())


def reason_for(raw: bytes, cells: Sequence[bytes], dialect: Dialect) -> str | None:
    """Why a record with these cells is no row of its table; None when it is."""
    if b"\0" in raw:
        return "invalid_bytes" if INVALID_BYTE.encode() in raw else "nul_byte"
    if len(cells) < dialect.width:
        return "too_few_cells"
    spare = cells[dialect.width :]
    return "too_many_cells" if len(spare) > dialect.spare or any(cell.strip(BLANKS) for cell in spare) else None


def sort_out(
    block: TextBlock, index: RecordIndex, dialect: Dialect, line_number: int
) -> tuple[Positions | slice, pl.DataFrame]:
    """Tell the rows of the table from malformed records, and drop blank lines and rows of nothing but delimiters.

    Returns:
        the good records' places in the index, and the malformed ones as a frame.
    """
    nul = _with_nul(block, index)
    blank = _blank(block, index, dialect.delimiter)
    few, many = index.cell_counts < dialect.width, _too_wide(block, index, dialect)
    wrong = few | many | nul
    good = ~(wrong | blank)
    if good.all():
        return slice(None), NOTHING
    bad = np.flatnonzero(wrong & ~blank)
    if not len(bad):
        return np.flatnonzero(good), NOTHING
    codes = np.where(few[bad], FEW, MANY)
    for place in np.flatnonzero(nul[bad]):
        raw = block.slice(int(index.starts[bad[place]]), int(index.ends[bad[place]]))
        codes[place] = INVALID if INVALID_BYTE.encode() in raw else NUL
    return np.flatnonzero(good), pl.DataFrame(
        {
            "line_number": index.lines[bad] + line_number,
            "raw_text": _raw_texts(block, index.starts[bad], index.ends[bad], nul[bad]),
            "reason": REASONS.gather(codes),
        },
        schema=SCHEMA,
    )


def _with_nul(block: TextBlock, index: RecordIndex) -> Flags:
    found = np.zeros(len(index.starts), np.bool_)
    if block.find(b"\0"):
        places = np.flatnonzero(block.codes[: index.consumed] == 0)
        found[np.searchsorted(index.starts, places, side="right") - 1] = True
    return found


def _too_wide(block: TextBlock, index: RecordIndex, dialect: Dialect) -> Flags:
    """Which records have more cells than the table has columns, except empty ones where it has spare columns."""
    wide = index.cell_counts > dialect.width
    if dialect.spare and wide.any():
        within = np.flatnonzero(wide & (index.cell_counts <= dialect.width + dialect.spare))
        after = index.delimiters[index.first_delimiters[within] + dialect.width - 1]
        spare = (block.slice(int(a), int(b)) for a, b in zip(after, index.ends[within], strict=True))
        wide[within] = [not is_blank(text.replace(b'"', b""), dialect.delimiter) for text in spare]
    return wide


def _blank(block: TextBlock, index: RecordIndex, delimiter: str) -> Flags:
    """Which records hold no text. Only those that begin and end with a blank or a delimiter need a closer look."""
    blank: Flags = index.ends == index.starts
    first = block.codes[np.minimum(index.starts, max(block.size - 1, 0))]
    candidates = np.flatnonzero(_is_empty_code(first, delimiter) & ~blank)
    last = block.codes[index.ends[candidates] - 1]
    for place in candidates[_is_empty_code(last, delimiter)]:
        blank[place] = is_blank(block.slice(int(index.starts[place]), int(index.ends[place])), delimiter)
    return blank


def _is_empty_code(codes: npt.NDArray[np.uint8], delimiter: str) -> Flags:
    found: Flags = (codes == ord(delimiter)) | (codes == SPACE) | (codes == TAB)
    return found


def _raw_texts(block: TextBlock, starts: Positions, ends: Positions, nul: Flags) -> pl.Series:
    texts = pl.Series(plain_column(block, starts, ends))
    special = np.flatnonzero(nul | (ends - starts > RAW_TEXT_BYTES))
    if not len(special):
        return texts
    shown = [shortened(block.slice(int(starts[i]), int(ends[i]))) for i in special]
    return texts.scatter(special, pl.Series(shown, dtype=pl.String))
