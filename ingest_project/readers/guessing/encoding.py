"""Read the parts of a file that guesses rest on, its first MiB and last 64 KiB, and guess its encoding."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import NamedTuple

from ingest_project.core.errors import FileRejectedError
from ingest_project.readers.formats.csv_text import BYTE_ORDER_MARKS, CONTAINERS

HEAD_BYTES = 1024**2
TAIL_BYTES = 64 * 1024
SAMPLED_BYTES = 32 * 1024
CONTROLS = bytes([*range(9), *range(14, 32)])
MORE_CONTAINERS = ((b"PAR1", "a Parquet file"), (b"BZh", "a bzip2 archive"), (b"\x89PNG", "a picture"))
UTF_16_NULS = 0.2
MAX_CONTROLS = 0.005
# Signs of units and western letters, which Windows-1252 and Latin-1 write with the same bytes.
WESTERN = frozenset("°²³µ±·äöüßÄÖÜéèêëàâáçñåøæÅØÆÉíóúôîïãõ€“”\u00a0\u00d7\u2013\u2019")


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
        why: what the guess rests on.
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
    for magic, kind in (*CONTAINERS, *MORE_CONTAINERS):
        if head.startswith(magic):
            raise FileRejectedError("unreadable_container", f"The file is {kind}, not text.")
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
    high = set(bytes(set(text)).translate(None, bytes(range(0x80))).decode("cp1252", "replace"))
    if high <= WESTERN:
        letters = "".join(sorted(high))
        return Encoding("cp1252", f"not UTF-8; its letters beyond ASCII would be {letters} in Windows-1252")
    from charset_normalizer import from_bytes  # for files that are not UTF-8 alone

    lines = [line for line in text.splitlines() if not line.isascii()]
    best = from_bytes(b"\n".join(lines)[:SAMPLED_BYTES]).best()
    name = best.encoding if best else "latin-1"
    return Encoding(name, "not UTF-8; this is charset-normalizer's best guess: check names and units", sure=False)
