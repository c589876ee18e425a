"""A file's bytes as blocks of valid UTF-8, whatever encoding it came in."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ingest_project.core.errors import FileRejectedError

# Longest first: the mark of UTF-16 begins that of UTF-32.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
CONTAINERS = (
    (b"PK\x03\x04", "a zip archive or a workbook"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"%PDF-", "a PDF document"),
)
LONGEST_MAGIC = 5
# No text has a NUL, so a row with this one is told from every good row.
INVALID_BYTE = "\0\\x"
MARKED = "ingest_project.marked"
# Beyond this, the encoding is the wrong one, and marking would cost more than reading.
MOST_INVALID_BYTES = 100_000


def text_blocks(path: Path, encoding: str, block_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """The text of a file, in order, as UTF-8, each block with whether it is the last.

    A byte that is not of the encoding is the fault of its row, not of the file: it is marked by INVALID_BYTE.

    Args:
        path: a file that does not change while it is read.
        encoding: of files without a byte order mark; a mark always wins and is taken off.
        block_bytes: how much of the file to read at a time. No block ends between a CR and an LF.

    Raises:
        FileRejectedError: `empty_file`; `unreadable_container` for a file that is not text; `encoding` where more than
            MOST_INVALID_BYTES are not of its encoding.
    """
    with path.open("rb") as file:
        start = file.read(LONGEST_MAGIC)
        if not start:
            raise FileRejectedError("empty_file", "The file has no bytes.")
        for magic, what in CONTAINERS:
            if start.startswith(magic):
                raise FileRejectedError("unreadable_container", f"The file is {what}, not text.")
        mark, encoding = next(
            ((mark, marked) for mark, marked in BYTE_ORDER_MARKS if start.startswith(mark)), (b"", encoding)
        )
        file.seek(len(mark))
        yield from _blocks(file, codecs.lookup(encoding).name, block_bytes)


def _blocks(file: BinaryIO, encoding: str, block_bytes: int) -> Iterator[tuple[bytes, bool]]:
    decoder = codecs.getincrementaldecoder(encoding)(MARKED)
    held = b""
    invalid = 0
    raw = file.read(block_bytes)
    while True:
        following = file.read(block_bytes)
        text, marked = _decoded(decoder, raw, encoding, final=not following)
        invalid += marked
        if invalid > MOST_INVALID_BYTES:
            detail = f"More than {MOST_INVALID_BYTES:,} bytes of the file are not {encoding}."
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
    """The text of the next bytes as UTF-8, and how many of them were not valid."""
    is_utf_8 = encoding == "utf-8"
    pending = bool(decoder.getstate()[0])
    if is_utf_8 and not pending and raw.isascii():
        return raw, 0
    text = decoder.decode(raw, final)
    marked = text.count(INVALID_BYTE) if "\0" in text else 0
    # A character cut by the block's end waits in the decoder: it goes with the next block, once it is known to be one.
    unchanged = is_utf_8 and not marked and not pending and not decoder.getstate()[0]
    return (raw if unchanged else text.encode()), marked


def _mark(error: UnicodeError) -> tuple[str, int]:
    """Write each byte that is no text as INVALID_BYTE and its two digits: what it was can be told, and is no text."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(f"{INVALID_BYTE}{byte:02x}" for byte in error.object[error.start : error.end]), error.end


codecs.register_error(MARKED, _mark)
