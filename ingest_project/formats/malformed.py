"""Records that are no rows of their table: which they are, why, and their text for a person to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from ingest_project.formats.text_columns import SPACE, Flags, Positions, TextBlock, plain_column, trimmed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ingest_project.formats.record_index import RecordIndex

RAW_TEXT_BYTES = 64 * 1024
SCHEMA = {"line_number": pl.Int64, "raw_text": pl.String, "reason": pl.String}
NOTHING = pl.DataFrame(schema=SCHEMA)
REASONS = pl.Series(["too_few_cells", "too_many_cells", "nul_byte"])
FEW, MANY, NUL = range(3)


class Malformed(NamedTuple):
    """A record that is no row of the table.

    Args:
        line_number: physical line it starts on, the first line of the file is 1.
        raw_text: its text, shortened visibly when it is over 64 KiB.
        reason: `too_few_cells`, `too_many_cells`, `unbalanced_quote`, `row_too_long` or `nul_byte`.
    """

    line_number: int
    raw_text: str
    reason: str


def frame_of(records: Iterable[Malformed]) -> pl.DataFrame:
    """Malformed records as a frame: line_number, raw_text, reason."""
    found = list(records)
    return pl.DataFrame(found, schema=SCHEMA, orient="row") if found else NOTHING


def shortened(raw: bytes) -> str:
    """Text for a person: at most RAW_TEXT_BYTES of it, NUL made visible."""
    if len(raw) <= RAW_TEXT_BYTES:
        return raw.decode("utf-8", "replace").replace("\0", "\\x00")
    text = raw[:RAW_TEXT_BYTES].decode("utf-8", "ignore").replace("\0", "\\x00")
    return f"{text}… [{len(raw)} bytes]"


def reason_for(cells: int, width: int, *, nul: bool) -> str | None:
    """Why a record of so many cells is none of a table of this width; None when it is."""
    if nul:
        return "nul_byte"
    if cells == width:
        return None
    return "too_few_cells" if cells < width else "too_many_cells"


def sort_out(
    block: TextBlock, index: RecordIndex, width: int, line_number: int
) -> tuple[Positions | slice, pl.DataFrame]:
    """Tell the rows of the table from malformed records, and drop blank lines.

    Returns:
        the good records' places in the index, and the malformed ones as a frame.
    """
    nul = _with_nul(block, index)
    blank = _blank(block, index, width)
    wrong = (index.cell_counts != width) | nul
    good = ~(wrong | blank)
    if good.all():
        return slice(None), NOTHING
    bad = np.flatnonzero(wrong & ~blank)
    if not len(bad):
        return np.flatnonzero(good), NOTHING
    codes = np.where(nul[bad], NUL, np.where(index.cell_counts[bad] < width, FEW, MANY))
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


def _blank(block: TextBlock, index: RecordIndex, width: int) -> Flags:
    blank = np.zeros(len(index.starts), np.bool_)
    candidates = np.flatnonzero(index.cell_counts == 1)
    if width == 1 and len(candidates):
        # Here every row is a candidate: only those that begin with a blank or a line end need a closer look.
        first = block.codes[np.minimum(index.starts[candidates], block.size - 1)]
        candidates = candidates[first <= SPACE]
    starts, ends = trimmed(block, index.starts[candidates], index.ends[candidates])
    blank[candidates[starts == ends]] = True
    return blank


def _raw_texts(block: TextBlock, starts: Positions, ends: Positions, nul: Flags) -> pl.Series:
    texts = pl.Series(plain_column(block, starts, ends))
    special = np.flatnonzero(nul | (ends - starts > RAW_TEXT_BYTES))
    if not len(special):
        return texts
    shown = [shortened(block.slice(int(starts[i]), int(ends[i]))) for i in special]
    return texts.scatter(special, pl.Series(shown, dtype=pl.String))
