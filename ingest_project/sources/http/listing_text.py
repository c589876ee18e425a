"""A plain list of links, one on each line: URL references, percent-encoded. Lines that begin with # are comments."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from ingest_project.sources.http.listing_page import MAX_TARGET_LENGTH, Link, PageFacts, Unusable, printable

NOT_IN_ADDRESSES = frozenset(' <>"{}|\\^`')
LONGEST_ENDING = 12
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def text_links(body: bytes, facts: PageFacts) -> Iterator[Link | Unusable]:
    """The links of a plain list, in its order; a sentence is none."""
    facts.seen = f"text of {len(body)} bytes"
    for line in _lines(body.removeprefix(BYTE_ORDER_MARK)):
        if line.startswith(b"#"):
            # Text alone may be anything; with a comment it is a list for certain, even when it names nothing.
            facts.recognised = True
        elif line:
            link = _link(line)
            facts.recognised |= isinstance(link, Link)
            yield link


def _lines(body: bytes) -> Iterator[bytes]:
    begin = 0
    while begin < len(body):
        end = body.find(b"\n", begin)
        end = len(body) if end < 0 else end
        yield body[begin:end].strip()
        begin = end + 1


def _link(line: bytes) -> Link | Unusable:
    text = line[: MAX_TARGET_LENGTH + 1].decode("utf-8", "surrogateescape")
    if (
        len(text) <= MAX_TARGET_LENGTH
        and text.isprintable()
        and not NOT_IN_ADDRESSES & set(text)
        and _names_a_file(text)
    ):
        return Link(text)
    return Unusable(printable(text), "A line that is no address of a file or folder.")


def _names_a_file(text: str) -> bool:
    """Whether an address ends in a folder's slash or in a name with an ending, as no word of an error does."""
    try:
        path = urlsplit(text).path
    except ValueError:
        return False
    stem, _, ending = path.rpartition("/")[2].rpartition(".")
    return path.endswith("/") or (bool(stem) and ending[:1].isalpha() and len(ending) <= LONGEST_ENDING)
