"""Arrow's reader and the splitter of records agree with each other, and with Python's csv module."""

from __future__ import annotations

import csv
import io

from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest_project.readers.formats.csv_reader import Dialect, read_regular, split_blocks
from ingest_project.readers.formats.csv_text import split_records
from ingest_project.readers.layout import TableChunk

Cell = st.text(st.sampled_from("ab é€😀,;\"\r\n\t'\\=0123456789"), max_size=20)
AWKWARD = st.lists(
    st.sampled_from(['"', '""', ",", "\n", "\r", "\r\n", " ", "a", "long text of a cell", "é", "\0"])
).map("".join)


def dialect(width: int, max_row_bytes: int = 10_000) -> Dialect:
    return Dialect(",", width, {f"c{i}": i for i in range(width)}, frozenset(), max_row_bytes)


def pieces(text: bytes, size: int) -> list[tuple[bytes, bool]]:
    """Text cut into blocks, none of which ends between CR and LF."""
    cut = []
    while len(text) > size:
        end = size + (text[size - 1 : size + 1] == b"\r\n")
        cut.append((text[:end], False))
        text = text[end:]
    return [*cut, (text, True)]


def everything(chunks: list[TableChunk]) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    rows = [row for chunk in chunks for row in chunk.columns.rows()]
    return rows, [row for chunk in chunks for row in chunk.malformed.rows()]


def expected_cell(cell: str) -> str | None:
    return cell.strip(" \t") or None


@given(st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(Cell, min_size=n, max_size=n), min_size=1, max_size=12)))
@settings(deadline=None)
def test_any_table_that_python_writes_is_read_back_equal(table: list[list[str]]) -> None:
    file = io.StringIO()
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows(table)
    text = file.getvalue().encode()
    rows, malformed = everything(list(split_blocks([(text, True)], dialect(len(table[0])), 1)))
    assert malformed == []
    assert [row[1:] for row in rows] == [tuple(expected_cell(cell) for cell in record) for record in table]


@given(AWKWARD)
@settings(deadline=None)
@example('"a""b",c\nd,e')
@example('a,"b\r\nc"\rd,"e"\r\n')
@example('"a,b\nc,d\n')
def test_arrow_and_the_splitter_read_the_same_cells(text: str) -> None:
    raw = text.encode()
    read = read_regular(raw, dialect(2), 1, final=True)
    if read is None:
        return
    chunk, consumed, lines = read
    records = list(split_records(raw, ",", final=True, max_row_bytes=10_000))
    assert consumed == len(raw)
    assert lines == sum(record.lines for record in records)
    assert all(record.cells is not None for record in records)
    filled = [record for record in records if raw[record.start : record.end].strip(b" \t,")]
    good = [record for record in filled if len(record.cells or []) == 2]
    bad = [record for record in filled if record not in good]
    assert chunk.columns["line_number"].to_list() == [record.line + 1 for record in good]
    assert chunk.malformed["line_number"].to_list() == [record.line + 1 for record in bad]
    raw_texts = [[raw[record.start : record.end].decode() for record in found] for found in (good, bad)]
    assert chunk.raw_text(chunk.columns["line_number"].to_list()) == raw_texts[0]
    assert chunk.malformed["raw_text"].to_list() == raw_texts[1]


@given(AWKWARD, st.integers(1, 40), st.integers(1, 3))
@settings(deadline=None)
@example('a,"' + "b\n" * 30 + '",c\n', 7, 2)
def test_the_cut_into_blocks_makes_no_difference(text: str, size: int, width: int) -> None:
    raw = text.encode()
    whole = everything(list(split_blocks([(raw, True)], dialect(width), 1)))
    assert everything(list(split_blocks(pieces(raw, size), dialect(width), 1))) == whole


@given(AWKWARD, st.integers(1, 3))
@settings(deadline=None)
def test_every_line_is_read_or_reported_and_raw_text_is_what_was_written(text: str, width: int) -> None:
    chunks = list(split_blocks([(text.encode(), True)], dialect(width), 1))
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    seen = 0
    for chunk in chunks:
        numbers = chunk.columns["line_number"].to_list()
        raws = chunk.raw_text(numbers)
        for number, raw in [*zip(numbers, raws, strict=True), *((bad[0], bad[1]) for bad in chunk.malformed.rows())]:
            shown = raw.replace("\r\n", "\n").replace("\r", "\n").split("\n")
            assert [line.replace("\0", "\\x00") for line in lines[number - 1 : number - 1 + len(shown)]] == shown
            seen += len(shown)
    assert seen + sum(not line.strip(" \t,") for line in lines) >= len(lines)


@given(AWKWARD)
@settings(deadline=None)
def test_columns_hold_the_cells_that_the_splitter_finds(text: str) -> None:
    raw = text.encode()
    split = [
        tuple(expected_cell(cell.decode()) for cell in record.cells)
        for record in split_records(raw, ",", final=True, max_row_bytes=10_000)
        if record.cells is not None
        and len(record.cells) == 2
        and raw[record.start : record.end].strip(b" \t,")
        and b"\0" not in raw[record.start : record.end]
    ]
    rows, _ = everything(list(split_blocks([(raw, True)], dialect(2), 1)))
    assert [row[1:] for row in rows] == split
