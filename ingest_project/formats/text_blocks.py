"""A file's bytes as blocks of valid UTF-8, whatever encoding it came in."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, BinaryIO

from ingest_project.errors import FileRejected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


def text_blocks(path: Path, encoding: str, block_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """The text of a file, in order, as UTF-8, each block with whether it is the last.

    Args:
        path: a file that does not change while it is read.
        encoding: of files without a byte order mark; a mark always wins and is taken off.
        block_bytes: how much of the file to read at a time. No block ends between a CR and an LF.

    Raises:
        FileRejected: `empty_file`; `unreadable_container` for a file that is not text; `encoding`, with the offset of
            the first byte that cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(LONGEST_MAGIC)
        if not start:
            raise FileRejected("empty_file", "The file has no bytes.")
        for magic, what in CONTAINERS:
            if start.startswith(magic):
                raise FileRejected("unreadable_container", f"The file is {what}, not text.")
        mark, encoding = next(
            ((mark, marked) for mark, marked in BYTE_ORDER_MARKS if start.startswith(mark)), (b"", encoding)
        )
        file.seek(len(mark))
        yield from _blocks(file, codecs.lookup(encoding).name, block_bytes, len(mark))


def _blocks(file: BinaryIO, encoding: str, block_bytes: int, offset: int) -> Iterator[tuple[bytes, bool]]:
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    held = b""
    raw = file.read(block_bytes)
    while True:
        following = file.read(block_bytes)
        text = held + _decoded(decoder, raw, encoding, offset, final=not following)
        if not following:
            yield text, True
            return
        # A CR may be half of a CRLF.
        held = b"\r" if text.endswith(b"\r") else b""
        yield text.removesuffix(b"\r"), False
        offset += len(raw)
        raw = following


def _decoded(decoder: codecs.IncrementalDecoder, raw: bytes, encoding: str, offset: int, *, final: bool) -> bytes:
    pending = len(decoder.getstate()[0])
    if encoding == "utf-8" and not pending and raw.isascii():
        return raw
    try:
        text = decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        place = offset - pending + error.start
        raise FileRejected(
            "encoding",
            f"The bytes at offset {place} are not {encoding}. Name the encoding in the file's reader profile.",
        ) from None
    # The bytes of a character cut by the block's end go on as they are: blocks are joined again before they are split.
    return raw if encoding == "utf-8" else text.encode()
