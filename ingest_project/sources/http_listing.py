"""Read one page of a web listing: the index of a web server, a JSON list, or a plain list of links.

Times and sizes in an HTML index are rounded for people and therefore not used. A small page is parsed in this process,
in linear time; a larger one in a confined process, which a hostile page can crash without consequences. That process
runs this file as a script: it reads the page from standard input, writes one line per entry to standard output, and
writes the facts of the page, or why it is not a listing, to the file named on its command line.
"""

from __future__ import annotations

import codecs
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import IO

import msgspec
from requests.utils import parse_header_links

from ingest_project.core.errors import SourceAccessDeniedError, UnreadableListingError
from ingest_project.platform.confined import KILLED, OUT_OF_MEMORY, ProcessLimits, run_confined
from ingest_project.sources import sanitized
from ingest_project.sources.http_parsers import (
    Link,
    NotAListingError,
    PageFacts,
    Unusable,
    html_links,
    json_links,
    root_element,
    text_links,
)

MAX_PAGE_BYTES = 256 * 1024**2
MAX_ENTRIES = 1_000_000
PARSED_HERE_BYTES = 256 * 1024
PROCESS_LIMITS = ProcessLimits(memory_bytes=2 * 1024**3, cpu_seconds=120, output_bytes=1024**3)
# Number of bytes that suffice to distinguish the kinds of listing.
_HEAD_BYTES = 4_096
_HTML_TYPES = ("text/html", "application/xhtml+xml")
# Servers send the last three types for unknown files.
_KNOWN_TYPES = (*_HTML_TYPES, "text/plain", "text/uri-list", "", "application/octet-stream", "binary/octet-stream")
# Charsets of HTML in which a byte below 128 is always an ASCII character.
_CHARSETS = frozenset(
    {"ascii", "utf-8", "koi8-r", "koi8-u", "euc_jp", "euc_kr", "gb2312", "gbk", "gb18030", "big5", "shift_jis", "cp932"}
    | {f"iso8859-{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16)}
    | {f"cp{page}" for page in (874, 1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257, 1258)}
)
_LONGEST_CHARSET = 40
# Headers of GitLab and WordPress.
_NEXT_PAGE, _PAGE, _PAGES = "X-Next-Page", "X-Page", "X-Total-Pages"


class Refusal(msgspec.Struct, tag=True):
    """Why a page is not a listing; the arguments of `NotAListingError`."""

    seen: str
    login: bool


def read_page(
    page: IO[bytes], size_bytes: int, headers: Mapping[str, str], location: str
) -> tuple[PageFacts, Iterator[Link | Unusable]]:
    """Read the facts and the entries of a page, including links to its next pages.

    Args:
        page: bytes of the page, positioned at the beginning; an operating-system file if the page is large.
        size_bytes: size of the page.
        headers: headers of the response.
        location: location of the page for messages.

    Raises:
        UnreadableListingError: the page is not a readable listing, or is known to be incomplete.
        SourceAccessDeniedError: the page is a login page.
    """
    content_type = headers.get("Content-Type", "")
    try:
        if size_bytes <= PARSED_HERE_BYTES:
            facts, entries = parse_page(page.read(), content_type)
        else:
            facts, entries = _parse_confined(page, content_type)
    except NotAListingError as error:
        if error.login:
            raise SourceAccessDeniedError(location, f"it answers with {error.seen}; check the credentials") from error
        raise UnreadableListingError(location, f"it answers with {error.seen}") from error
    if reason := missing_pages(headers):
        raise UnreadableListingError(location, reason)
    return facts, _with_next_pages(entries, headers)


def parse_page(body: bytes, content_type: str) -> tuple[PageFacts, Iterator[Link | Unusable]]:
    """Parse a page in memory.

    Raises:
        NotAListingError: the page is not a listing.
    """
    facts = PageFacts()
    entries = list(_counted(_page_entries(body, content_type, facts), facts))
    return facts, iter(entries)


def next_links(headers: Mapping[str, str]) -> Iterator[Link]:
    """Yield the addresses of `Link: <…>; rel="next"`."""
    for stated in parse_header_links(headers.get("Link", "")):
        target = stated.get("url", "")
        if target and "next" in stated.get("rel", "").lower().split():
            yield Link(target, is_next_page=True)


def missing_pages(headers: Mapping[str, str]) -> str | None:
    """Return why a page is known to be incomplete, if the headers lack the address of the next page."""
    if next(next_links(headers), None) is not None:
        return None
    if headers.get(_NEXT_PAGE, "").strip():
        return f"it is one page of several ({_NEXT_PAGE}: {sanitized(headers[_NEXT_PAGE])[:20]})"
    page, pages = headers.get(_PAGE, "1").strip(), headers.get(_PAGES, "").strip()
    if _is_number(page) and _is_number(pages) and int(page) < int(pages):
        return f"it is page {page} of {pages}, and no header gives the address of the next one"
    return None


def main() -> None:
    """Parse the page from standard input, in the confined process."""
    outcome, content_type = Path(sys.argv[1]), sys.argv[2]
    facts = PageFacts()
    result: PageFacts | Refusal = facts
    encoder = msgspec.json.Encoder()
    try:
        for entry in _counted(_page_entries(sys.stdin.buffer.read(), content_type, facts), facts):
            sys.stdout.buffer.write(encoder.encode(entry) + b"\n")
    except NotAListingError as error:
        result = Refusal(error.seen, error.login)
    sys.stdout.buffer.flush()
    outcome.write_bytes(encoder.encode(result))


def _with_next_pages(entries: Iterator[Link | Unusable], headers: Mapping[str, str]) -> Iterator[Link | Unusable]:
    yield from entries
    yield from next_links(headers)


def _page_entries(body: bytes, content_type: str, facts: PageFacts) -> Iterator[Link | Unusable]:
    """Parse the entries of a page one by one; the facts are complete after the last one."""
    media_type = content_type.partition(";")[0].strip().lower()
    beginning = body[:_HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not beginning:
        raise NotAListingError("an empty answer")
    if media_type.endswith(("/json", "+json")) or (media_type in _KNOWN_TYPES and beginning.startswith((b"[", b"{"))):
        return json_links(body, facts)
    if media_type in _HTML_TYPES or beginning.startswith(b"<"):
        _require_html(body, beginning.lower(), media_type)
        return html_links(body, _charset(content_type), facts)
    if media_type in _KNOWN_TYPES:
        return text_links(body, facts)
    raise NotAListingError(f"Content-Type {sanitized(media_type)[:60]!r}")


def _counted(entries: Iterator[Link | Unusable], facts: PageFacts) -> Iterator[Link | Unusable]:
    """Yield the same entries, and store their numbers in the facts at the end."""
    for entry in entries:
        if isinstance(entry, Unusable):
            facts.unusable += 1
        else:
            facts.links += 1
        if facts.links + facts.unusable > MAX_ENTRIES:
            raise NotAListingError(f"a page of more than {MAX_ENTRIES} entries")
        yield entry


def _require_html(body: bytes, beginning: bytes, media_type: str) -> None:
    root = root_element(body)
    if root in ("listbucketresult", "listallmybucketsresult"):
        raise NotAListingError("the XML of an S3 bucket; read it with source_type s3 and endpoint_url")
    if root != "html" and ("xml" in media_type or beginning.startswith(b"<?xml")):
        raise NotAListingError(f"XML whose root is {sanitized(root)!r}")
    if media_type not in _KNOWN_TYPES and "xml" not in media_type:
        raise NotAListingError(f"Content-Type {sanitized(media_type)[:60]!r}")


def _charset(content_type: str) -> str:
    stated = content_type.lower().partition("charset=")[2].partition(";")[0].strip(" \"'")
    if not stated:
        return "utf-8"
    try:
        name = codecs.lookup(stated).name if len(stated) <= _LONGEST_CHARSET and stated.isascii() else ""
    except (LookupError, ValueError):
        name = ""
    if name not in _CHARSETS:
        raise NotAListingError(f"text in the charset {sanitized(stated)[:_LONGEST_CHARSET]!r}, which is not supported")
    return name


def _parse_confined(page: IO[bytes], content_type: str) -> tuple[PageFacts, Iterator[Link | Unusable]]:
    output = tempfile.TemporaryFile()  # noqa: SIM115 - `_decoded` closes it
    page.fileno()  # move the page from memory to an operating-system file
    page.seek(0)
    try:
        with tempfile.TemporaryDirectory(prefix="listing-") as folder:
            outcome = Path(folder, "outcome.json")
            arguments = [str(outcome), content_type[:1_000]]
            code = run_confined(__file__, arguments, PROCESS_LIMITS, stdin=page, stdout=output)
            facts = _outcome(code, outcome)
    except BaseException as error:
        output.close()
        if isinstance(error, TimeoutError):
            raise NotAListingError(f"a page that cannot be parsed: {error}") from error
        raise
    output.seek(0)
    entries = _decoded(output)
    # Start the generator here, so that its `finally` closes the file in every case.
    next(entries)
    return facts, entries


def _outcome(code: int, outcome: Path) -> PageFacts:
    if code == OUT_OF_MEMORY:
        raise NotAListingError(f"a page that takes more than {PROCESS_LIMITS.memory_bytes} bytes of memory to parse")
    if code in KILLED:
        raise NotAListingError(f"a page that takes more than {PROCESS_LIMITS.cpu_seconds} s to parse")
    if code or not outcome.exists():
        raise NotAListingError("a page that cannot be parsed: its process ended early")
    result = msgspec.json.decode(outcome.read_bytes(), type=PageFacts | Refusal)
    if isinstance(result, Refusal):
        raise NotAListingError(result.seen, login=result.login)
    return result


def _decoded(output: IO[bytes]) -> Iterator[Link | Unusable]:
    decoder = msgspec.json.Decoder(Link | Unusable)
    with closing(output):
        yield Unusable("", "")
        yield from map(decoder.decode, output)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < len("1000000000")


if __name__ == "__main__":
    main()
