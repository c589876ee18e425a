"""One page of a web listing: the index of a web server, a JSON list, or a plain list of links.

Times and sizes of an HTML index are rounded for people: they are not taken over. A small page is parsed here, in linear
time; a larger one in a confined process, which may be stopped without harm.
"""

from __future__ import annotations

import codecs
import json
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import IO

from ingest_project.core.errors import SourceAccessDeniedError, UnreadableListingError
from ingest_project.platform.confined import KILLED, OUT_OF_MEMORY, ProcessLimits, run_confined
from ingest_project.sources.http.page import (
    Link,
    NotAListingError,
    Page,
    PageFacts,
    Unusable,
    counted,
    printable,
)
from ingest_project.sources.http.parsers import html_links, json_links, root_element, text_links

MAX_PAGE_BYTES = 256 * 1024**2
PARSED_HERE_BYTES = 256 * 1024
PROCESS_LIMITS = ProcessLimits(memory_bytes=2 * 1024**3, cpu_seconds=120, output_bytes=1024**3)
# Enough to tell the kinds of listing apart.
HEAD_BYTES = 4_096
WORKER = Path(__file__).with_name("worker.py")
HTML_TYPES = ("text/html", "application/xhtml+xml")
TEXT_TYPES = ("text/plain", "text/uri-list")
# How servers send what they do not know; it says nothing.
UNSAID_TYPES = ("", "application/octet-stream", "binary/octet-stream")
# Of those that HTML is written in, the ones in which a byte below 128 is always an ASCII character.
CHARSETS = frozenset(
    {"ascii", "utf-8", "koi8-r", "koi8-u", "euc_jp", "euc_kr", "gb2312", "gbk", "gb18030", "big5", "shift_jis", "cp932"}
    | {f"iso8859-{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16)}
    | {f"cp{page}" for page in (874, 1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257, 1258)}
)
LONGEST_CHARSET = 40


def read_page(page: IO[bytes], size_bytes: int, content_type: str, location: str) -> Page:
    """What a page says.

    Args:
        page: its bytes, from the beginning; a file of the operating system where it is large.
        size_bytes: of the page.
        content_type: as its server calls it.
        location: for messages.

    Raises:
        UnreadableListingError: it is no listing, or none that can be read.
        SourceAccessDeniedError: it asks for a password.
    """
    try:
        if size_bytes <= PARSED_HERE_BYTES:
            return parsed_page(page.read(), content_type)
        return _parsed_elsewhere(page, content_type)
    except NotAListingError as error:
        if error.login:
            raise SourceAccessDeniedError(location, f"it answers with {error.seen}; check the credentials") from error
        raise UnreadableListingError(location, f"it answers with {error.seen}") from error


def parsed_page(body: bytes, content_type: str) -> Page:
    """A page in memory.

    Raises:
        NotAListingError: as `read_page` tells it.
    """
    facts = PageFacts()
    entries = list(counted(page_entries(body, content_type, facts), facts))
    return Page(facts, iter(entries))


def page_entries(body: bytes, content_type: str, facts: PageFacts) -> Iterator[Link | Unusable]:
    """The entries of a page one by one; the facts are complete at the end.

    Raises:
        NotAListingError: as `read_page` tells it.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    beginning = body[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if not beginning:
        raise NotAListingError("an empty answer")
    known = media_type in (*HTML_TYPES, *TEXT_TYPES, *UNSAID_TYPES)
    if media_type.endswith(("/json", "+json")) or (known and beginning in (b"[", b"{")):
        return json_links(body, facts)
    if media_type in HTML_TYPES or beginning == b"<":
        return html_links(body, _charset(content_type), facts) if _is_html(body, media_type) else iter(())
    if known:
        return text_links(body, facts)
    raise NotAListingError(f"Content-Type {printable(media_type)[:60]!r}")


def _is_html(body: bytes, media_type: str) -> bool:
    root = root_element(body)
    preamble = body[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if root in ("listbucketresult", "listallmybucketsresult"):
        raise NotAListingError("the XML of an S3 bucket; read it with source_type s3 and endpoint_url")
    if root != "html" and ("xml" in media_type or preamble.startswith(b"<?xml")):
        raise NotAListingError(f"XML whose root is {printable(root)!r}")
    if media_type not in (*HTML_TYPES, *TEXT_TYPES, *UNSAID_TYPES) and "xml" not in media_type:
        raise NotAListingError(f"Content-Type {printable(media_type)[:60]!r}")
    return True


def _charset(content_type: str) -> str:
    stated = content_type.lower().partition("charset=")[2].partition(";")[0].strip(" \"'")
    if not stated:
        return "utf-8"
    try:
        name = codecs.lookup(stated).name if len(stated) <= LONGEST_CHARSET and stated.isascii() else ""
    except (LookupError, ValueError):
        name = ""
    if name not in CHARSETS:
        raise NotAListingError(
            f"text in the charset {printable(stated)[:LONGEST_CHARSET]!r}, which pages are not read in"
        )
    return name


def _parsed_elsewhere(page: IO[bytes], content_type: str) -> Page:
    output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who reads the entries
    page.fileno()  # from memory to a file of the operating system
    page.seek(0)
    try:
        with tempfile.TemporaryDirectory(prefix="listing-") as folder:
            outcome = Path(folder, "outcome.json")
            arguments = [str(outcome), content_type[:1_000]]
            try:
                code = run_confined(str(WORKER), arguments, PROCESS_LIMITS, stdin=page, stdout=output)
            except TimeoutError as error:
                raise NotAListingError(f"a page that cannot be parsed: {error}") from error
            facts = _outcome(code, outcome)
    except BaseException:
        output.close()
        raise
    output.seek(0)
    entries = _entries_of(output)
    # Begun, so that it closes the file however it ends.
    next(entries)
    return Page(facts, entries)


def _outcome(code: int, outcome: Path) -> PageFacts:
    if code == OUT_OF_MEMORY:
        raise NotAListingError(f"a page that takes more than {PROCESS_LIMITS.memory_bytes} bytes of memory to parse")
    if code in KILLED:
        raise NotAListingError(f"a page that takes more than {PROCESS_LIMITS.cpu_seconds} s to parse")
    if code or not outcome.exists():
        raise NotAListingError("a page that cannot be parsed: the process that did came to an end")
    told = json.loads(outcome.read_text(encoding="utf-8"))
    if "seen" not in told["facts"]:
        raise NotAListingError(told["facts"]["not_a_listing"], login=told["facts"]["login"])
    return PageFacts(**told["facts"])


def _entries_of(output: IO[bytes]) -> Iterator[Link | Unusable]:
    with closing(output):
        yield Unusable("", "")
        for line in output:
            kind, *fields = json.loads(line)
            if kind == "unusable":
                yield Unusable(*fields)
            else:
                target, size, time, etag, leads_on = fields
                yield Link(target, size, datetime.fromisoformat(time) if time else None, etag, leads_on)


def as_line(entry: Link | Unusable) -> str:
    """An entry as the confined process writes it."""
    if isinstance(entry, Unusable):
        return json.dumps(["unusable", entry.shown, entry.reason])
    time = entry.modified_at.isoformat() if entry.modified_at else None
    return json.dumps(["link", entry.target, entry.size_bytes, time, entry.etag, entry.leads_on])


def as_outcome(facts: PageFacts | NotAListingError) -> str:
    """What became of a page, as the confined process writes it."""
    told = asdict(facts) if isinstance(facts, PageFacts) else {"not_a_listing": facts.seen, "login": facts.login}
    return json.dumps({"facts": told})
