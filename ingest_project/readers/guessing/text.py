"""Guess the encoding of a text, and how it is divided into cells: by a delimiter, by white space or at fixed positions.

Guesses rest on the parts of a file that are read here: its first MiB and last 64 KiB.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.formats.csv_text import (
    BYTE_ORDER_MARKS,
    CANDIDATE_DELIMITERS,
    is_blank,
    require_text,
    split_records,
)

HEAD_BYTES = 1024**2
TAIL_BYTES = 64 * 1024
SAMPLED_BYTES = 32 * 1024
CONTROLS = bytes([*range(9), *range(14, 32)])
UTF_16_NULS = 0.2
MAX_CONTROLS = 0.005
# Signs of units and western letters, which Windows-1252 and Latin-1 write with the same bytes.
WESTERN = frozenset("°²³µ±·äöüßÄÖÜéèêëàâáçñåøæÅØÆÉíóúôîïãõ€“”\u00a0\u00d7\u2013\u2019")
# Signs of Cyrillic text in a wrong encoding: capital letters inside words, and characters of other scripts.
NOT_CYRILLIC = re.compile("[\\u0430-\\u0451][\\u0401-\\u042f]|[^\\0-\\x7f\\u0401-\\u0451]")


class Sample(NamedTuple):
    """Parts of a file.

    Args:
        head: its beginning.
        tail: its end, from the beginning of a line on; empty if the head is the whole file.
        size: of the file, in bytes.
    """

    head: bytes
    tail: bytes
    size: int


class Encoding(NamedTuple):
    """Encoding of a text.

    Args:
        name: as Python calls it.
        why: evidence for the guess.
        sure: False for one that another tool may decide otherwise.
        marked: True if a byte order mark names it.
    """

    name: str
    why: str
    sure: bool = True
    marked: bool = False


def take_sample(path: Path) -> Sample:
    """Read the beginning and the end of a file.

    Raises:
        FileRejectedError: `empty_file`, or `unreadable_container` for a file that is not text.
    """
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        size = file.seek(0, 2)
        file.seek(max(len(head), size - TAIL_BYTES))
        tail = file.read(TAIL_BYTES) if size > len(head) else b""
    if not head.strip(b" \t\r\n\0"):
        raise FileRejectedError("empty_file", "The file has no text.")
    require_text(head)
    if head.lstrip().startswith((b'{"', b"[{")):
        raise FileRejectedError("unreadable_container", "The file is JSON: give it the ending .json or .jsonl.")
    return Sample(head, tail, size)


def excerpt(path: Path, folder: Path) -> Path:
    """Write the sampled parts of a large file to a file of the same name; return a small file as it is."""
    sample = take_sample(path)
    if not sample.tail:
        return path
    parts = (sample.head[: sample.head.rfind(b"\n") + 1], sample.tail[sample.tail.find(b"\n") + 1 :])
    copy = folder / path.name
    copy.write_bytes(b"".join(parts))
    return copy


def guess_encoding(sample: Sample) -> Encoding:
    """Guess the encoding: byte order mark, UTF-8, UTF-16 by its NUL bytes, western letters, charset-normalizer.

    Raises:
        FileRejectedError: `unreadable_container` for bytes that are no text in any encoding.
    """
    head = sample.head
    for mark, name in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return Encoding(name, "a byte order mark says so", marked=True)
    if head.count(0) > UTF_16_NULS * len(head):
        name = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
        return Encoding(name, "every other byte is NUL, and there is no byte order mark")
    if len(head) - len(head.translate(None, CONTROLS)) > MAX_CONTROLS * len(head):
        raise FileRejectedError("unreadable_container", "The file is not text: it has too many control characters.")
    both = head + sample.tail
    if both.isascii():
        return Encoding("utf-8", "every character is ASCII")
    invalid = _invalid_in_utf_8(head) + _invalid_in_utf_8(sample.tail)
    if not invalid:
        return Encoding("utf-8", "all bytes are valid UTF-8")
    valid = len(re.findall(rb"[\xc2-\xf4][\x80-\xbf]+", both))
    if valid > 10 * invalid:
        return Encoding("utf-8", f"{valid:,} letters are valid UTF-8, {invalid:,} bytes are not: these rows are bad")
    return _single_byte_encoding(both)


def _invalid_in_utf_8(part: bytes) -> int:
    """Count the bytes that are not UTF-8, except those of letters that the ends of a part cut."""
    inner = part.lstrip(bytes(range(0x80, 0xC0)))
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    return decoder.decode(inner).count("\\x") - inner.count(b"\\x")


def _single_byte_encoding(text: bytes) -> Encoding:
    signs = bytes(set(text)).translate(None, bytes(range(0x80)))
    high = set(signs.decode("cp1252", "replace"))
    # In a DOS encoding these bytes are letters and often stand between letters; quotes never do.
    if high <= WESTERN and not re.search(rb"[A-Za-z][\x84\x93\x94][a-z]", text):
        letters = "".join(sorted(high))
        return Encoding("cp1252", f"not UTF-8; its letters beyond ASCII would be {letters} in Windows-1252")
    if all(letter.isalpha() and letter in WESTERN for letter in signs.decode("cp850")):
        return Encoding("cp850", "not UTF-8; its letters beyond ASCII are western ones of DOS", sure=False)
    from charset_normalizer import from_bytes  # for files that are not UTF-8 alone

    lines = [line for line in text.splitlines() if not line.isascii()]
    best = from_bytes(b"\n".join(lines)[:SAMPLED_BYTES]).best()
    name = best.encoding if best else "latin-1"
    if NOT_CYRILLIC.search(text.decode(name, "replace")) and not NOT_CYRILLIC.search(text.decode("koi8-r")):
        return Encoding("koi8-r", "not UTF-8; in KOI8-R its words are Cyrillic", sure=False)
    return Encoding(name, "not UTF-8; this is charset-normalizer's best guess: check names and units", sure=False)


MAX_ROWS = 20_000
ROWS_TO_COMPARE = 400
MAX_ABOVE = 50
BLANKS = "whitespace"
FIXED = "fixed width"
RARE_DELIMITERS = "~^!:"
MIN_SHARE = 0.5
GOOD_SHARE = 0.8
BLANKS_DISCOUNT = 0.85
LATER_DISCOUNT = 0.7

NUMBER = r"[+-]?(?:[0-9]+(?:[.,' \u00a0\u202f][0-9]+)*[.,]?|[.,][0-9]+)(?:[eE][+-]?[0-9]+)?"
MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
CLOCK = "[0-9 :.,apmzutgc+-]*"
TIME = (
    rf"(?:[a-z]{{3}}, )?[0-9]{{1,4}}[-/. ](?:[0-9]{{1,3}}|{MONTH})(?:[-/. ][0-9]{{1,4}})?(?:[T ,_-]{CLOCK})?"
    rf"|{MONTH}\.? [0-9]{{1,2}},? {CLOCK}"
    r"|[0-9]{1,2}[:.][0-9]{2}(?:[:.][0-9]{2})?(?:[.,][0-9]+)?(?: ?[ap]m)?|[0-9]{8}T?[0-9]{0,6}Z?"
)
TYPED = re.compile(rf"(?i)(?:{NUMBER}|{TIME})")
MISSING = frozenset({"", "-", "--", "---", "?", "*", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "missing"})


class Row(NamedTuple):
    """One record that is not blank.

    Args:
        line: on which it begins: physical line, or row of a sheet; the first is 1.
        cells: trimmed.
        kinds: of the cells of a workbook, see `cells`.
    """

    line: int
    cells: list[str]
    kinds: str = ""


class Grid(NamedTuple):
    """A file as rows of cells, before anything is known of their meaning.

    Args:
        rows: of its beginning.
        last_rows: of its end, if the rows are not all.
        delimiter: one character, BLANKS or FIXED; None in a workbook.
        why: evidence for the delimiter.
        widths: of the columns where they have a fixed width.
        above: the first lines as they are written.
        labels: names of the columns for people, where they are not those of the header.
        question: about the delimiter or the sheet, where the file does not decide; empty otherwise.
    """

    rows: list[Row]
    last_rows: list[Row]
    delimiter: str | None
    why: str
    widths: tuple[int, ...] = ()
    above: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    question: str = ""


def read_grid(sample: Sample, encoding: Encoding) -> Grid:
    """Split a text into rows of cells by the delimiter that fits best."""
    head, tail = (_decoded(part, encoding.name) for part in (sample.head, sample.tail))
    if sample.tail:
        head, tail = head[: head.rfind("\n") + 1] or head, tail[tail.find("\n") + 1 :]
    fits = {mark: _fit(head, mark) for mark in (*CANDIDATE_DELIMITERS, BLANKS)}
    # Cells hold blanks of their own: white space needs to be clearly better.
    best = max(fits, key=lambda mark: fits[mark].score * (BLANKS_DISCOUNT if mark == BLANKS else 1))
    above = tuple(head.splitlines()[:MAX_ABOVE])
    fit, question = fits[best], ""
    why = f"{fit.number:,} of {fit.compared:,} lines have {fit.width} cells"
    if not fit.is_table:
        (best, question), why = _rare_delimiter(head), "no usual delimiter splits the lines"
    widths = fixed_widths(head) if best == BLANKS and fit.share < 1 else ()
    if widths and len(widths) >= fit.width:
        lines = (enumerate(part.split("\n"), 1) for part in (head, tail))
        rows = ([Row(number, cut_by_widths(line, widths)) for number, line in part] for part in lines)
        cut, last = ([row for row in part if any(row.cells)] for part in rows)
        return Grid(cut, last, FIXED, f"every line is blank at {len(widths) - 1} positions", widths, above)
    return Grid(_rows(head, best), _rows(tail, best), best, why, above=above, question=question)


def _rare_delimiter(text: str) -> tuple[str, str]:
    """Return a sign that divides every line alike, or a comma where there is one column; and the question about it."""
    lines = [line.strip() for line in text.split("\n", MAX_ABOVE)[:MAX_ABOVE] if line.strip()]
    for mark in () if all(map(is_typed, lines)) else RARE_DELIMITERS:
        fit = _fit(text, mark)
        if fit.from_first and fit.share == 1 and fit.width > 1:
            return mark, f"does {mark!r} divide the cells?"
    return ",", "what divides the cells?" if re.search(r"\w[^\w\s.-]+\w", "".join(lines[:1])) else ""


def _decoded(part: bytes, encoding: str) -> str:
    text = codecs.getincrementaldecoder(encoding)("replace").decode(part).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")


class _Fit(NamedTuple):
    """How well a delimiter splits the lines.

    Args:
        width: the commonest number of cells.
        number: lines that have it, of the `compared` ones.
        typed: share of the cells that are a number or a time.
        undivided: share of the cells that hold another delimiter.
        from_first: True if the first line has this width.
    """

    width: int
    number: int
    compared: int
    typed: float
    undivided: float
    from_first: bool

    @property
    def share(self) -> float:
        return self.number / self.compared if self.compared else 0.0

    @property
    def score(self) -> float:
        fit = self.share * (0.3 + 0.7 * self.typed) * (1 - self.undivided) if self.width > 1 else 0.0
        # In a short file, a header that another delimiter divides counts as much as the records.
        return fit if self.from_first else fit * LATER_DISCOUNT

    @property
    def is_table(self) -> bool:
        return self.score > MIN_SHARE * 0.3 and (self.from_first or self.share > GOOD_SHARE)


def _fit(text: str, delimiter: str) -> _Fit:
    rows = list(islice(_split(text, delimiter), ROWS_TO_COMPARE))
    widths = Counter(len(row.cells) for row in rows[len(rows) // 4 :])
    width = max(widths, key=lambda each: (widths[each], each), default=0)
    # Lines above the header have any number of cells.
    start = next((index for index, row in enumerate(rows) if len(row.cells) == width), 0)
    table = [row for row in rows[start:] if len(row.cells) == width]
    cells = [cell for row in table for cell in row.cells if not is_missing(cell)]
    others = [mark for mark in CANDIDATE_DELIMITERS if mark != delimiter]
    typed = [is_typed(cell) for cell in cells]
    undivided = sum(not fits and any(map(cell.__contains__, others)) for cell, fits in zip(cells, typed, strict=True))
    total = max(len(cells), 1)
    return _Fit(width, len(table), len(rows) - start, sum(typed) / total, undivided / total, start == 0)


def _rows(text: str, delimiter: str) -> list[Row]:
    return list(islice(_split(text, delimiter), MAX_ROWS))


def _split(text: str, delimiter: str) -> Iterator[Row]:
    if delimiter == BLANKS:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip() and not line.startswith("#"):
                yield Row(number, line.split())
        return
    encoded = text.encode("utf-8", "replace")
    for record in split_records(encoded, delimiter, final=True, max_row_bytes=HEAD_BYTES):
        written = encoded[record.start : record.end]
        if not is_blank(written, delimiter):
            cells = record.cells or [written]
            yield Row(record.line + 1, [cell.decode("utf-8", "replace").strip() for cell in cells])


def fixed_widths(text: str) -> tuple[int, ...]:
    """Return the widths of columns that are separated by positions that are blank in every line; empty for none."""
    lines = [line for line in text.split("\n")[:ROWS_TO_COMPARE] if line.strip()]
    lines = lines[len(lines) // 4 :]
    length = max(map(len, lines), default=0)
    blank = [all(line[at : at + 1].strip() == "" for line in lines) for at in range(length)]
    starts = [at for at in range(length) if not blank[at] and (at == 0 or blank[at - 1])]
    # A column reaches from the end of the one before it to its own: numbers are written to the right.
    ends = [*(next(at for at in range(start, length + 1) if at == length or blank[at]) for start in starts)]
    widths = tuple(end - before for end, before in zip(ends, [0, *ends], strict=False))
    return widths if len(widths) > 1 else ()


def cut_by_widths(line: str, widths: Sequence[int]) -> list[str]:
    """Return the trimmed cells of a line with columns of these widths."""
    ends = [sum(widths[: index + 1]) for index in range(len(widths))]
    return [line[end - width : end].strip() for end, width in zip(ends, widths, strict=True)]


def is_typed(cell: str) -> bool:
    """Return True for text with the shape of a number or a time."""
    return TYPED.fullmatch(cell) is not None


def is_missing(cell: str) -> bool:
    """Return True for a common spelling of "no value"."""
    return cell.casefold() in MISSING
