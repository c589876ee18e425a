"""What one page of a web listing says, whatever its format: links, entries that cannot be used, and whether it is all.

Imports little: the confined process that parses large pages starts with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from requests.utils import parse_header_links

MAX_TARGET_LENGTH = 8_192
MAX_ENTRIES = 1_000_000
# What a database and a file system can hold.
MAX_SIZE_BYTES = 2**63 - 1
MAX_SIZE_DIGITS = 19
MAX_TIME_LENGTH = 64
PRINTED_LENGTH = 200
FIRST_PRINTABLE = 0x20
DELETE = 0x7F


class NotAListingError(Exception):
    """The page is no listing, or cannot be read as one.

    Args:
        seen: what it is instead; starts in lower case, ends without a full stop.
        login: whether it asks for a password.
    """

    def __init__(self, seen: str, *, login: bool = False) -> None:
        self.seen = seen
        self.login = login
        super().__init__(seen)


@dataclass(frozen=True, slots=True)
class Link:
    """One entry of a listing.

    Args:
        target: a URL reference, relative or not, percent-encoded; a folder ends with a slash.
        size_bytes: exact; None where the listing does not say.
        modified_at: to the second, UTC; None where the listing does not say.
        etag: as its server sends it.
        leads_on: whether it is the next page of this listing.
    """

    target: str
    size_bytes: int | None = None
    modified_at: datetime | None = None
    etag: str | None = None
    leads_on: bool = False

    @property
    def tells_version(self) -> bool:
        """Whether the file need not be asked for the version it has."""
        return self.etag is not None or (self.size_bytes is not None and self.modified_at is not None)


@dataclass(frozen=True, slots=True)
class Unusable:
    """An entry that is refused.

    Args:
        shown: what stands there, shortened.
        reason: one of a few sentences.
    """

    shown: str
    reason: str


@dataclass
class PageFacts:
    """What is known of a page once it was read to its end.

    Args:
        seen: what it is, for a person.
        recognised: it is a listing for certain, even when it names nothing.
        base: what its links are relative to, where it says so.
        unfinished: why it is known not to be all, where the rest cannot be asked for.
        links: how many entries can be used.
        unusable: how many cannot.
    """

    seen: str = ""
    recognised: bool = False
    base: str | None = None
    unfinished: str | None = None
    links: int = 0
    unusable: int = 0


Entries = "Iterator[Link | Unusable]"


@dataclass
class Page:
    """A page that was read: its facts, and its entries in their order."""

    facts: PageFacts
    entries: Iterator[Link | Unusable] = field(default_factory=lambda: iter(()))


def counted(entries: Iterator[Link | Unusable], facts: PageFacts) -> Iterator[Link | Unusable]:
    """The same entries; their numbers are in the facts at the end.

    Raises:
        NotAListingError: more than one page may have.
    """
    for entry in entries:
        if isinstance(entry, Unusable):
            facts.unusable += 1
        else:
            facts.links += 1
        if facts.links + facts.unusable > MAX_ENTRIES:
            raise NotAListingError(f"a page of more than {MAX_ENTRIES} entries")
        yield entry


def printable(text: str) -> str:
    """A stranger's text for messages: short, without control characters."""
    shown = text[:PRINTED_LENGTH].encode("utf-8", "replace").decode()
    return "".join(char if char.isprintable() else "\ufffd" for char in shown)


def encoded_name(name: str) -> str | None:
    """A file name as part of an address, percent-encoded once; None where no address can ask for it."""
    if name in ("", ".", "..") or len(name) > MAX_TARGET_LENGTH:
        return None
    if "/" in name or any(ord(char) < FIRST_PRINTABLE or ord(char) == DELETE for char in name):
        return None
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        return None


def encoded_path(path: str) -> str | None:
    """A path of names, relative or from the host's root, each name percent-encoded once; a folder keeps its slash."""
    names = path.removeprefix("./").removeprefix("/").removesuffix("/").split("/")
    encoded = [encoded_name(name) for name in names]
    if any(name is None for name in encoded):
        return None
    # A colon in the first name would make it a scheme: it is percent-encoded, like everything that has a meaning.
    return ("/" if path.startswith("/") else "") + "/".join(map(str, encoded)) + ("/" if path.endswith("/") else "")


def stated_size(value: Any) -> int | None:  # noqa: ANN401 - whatever JSON holds
    """Bytes as a listing states them; None where it states none.

    Raises:
        ValueError: it states something that no file can have.
    """
    if value is None or value in ("", "-") or isinstance(value, bool):
        return None
    if isinstance(value, str):
        if not (value.isascii() and value.isdigit() and len(value) <= MAX_SIZE_DIGITS):
            raise ValueError("not a number of bytes")
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or not 0 <= value <= MAX_SIZE_BYTES:
        raise ValueError("not a number of bytes")
    return value


def stated_time(value: Any) -> datetime | None:  # noqa: ANN401 - whatever JSON holds
    """A moment as a listing states it, ISO 8601 or an HTTP date, in UTC; None where it states none.

    Raises:
        ValueError: it states something that is no moment.
    """
    if not isinstance(value, str) or value.strip() in ("", "-"):
        return None
    if len(value) > MAX_TIME_LENGTH:
        raise ValueError("not a time")
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            moment = read(value.strip())
            # Without a zone it is UTC, as HTTP's times are.
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        except (ValueError, IndexError, TypeError, OverflowError):
            continue
    raise ValueError("not a time")


# GitLab's and WordPress's.
NEXT_PAGE, PAGE, PAGES = "X-Next-Page", "X-Page", "X-Total-Pages"


def next_links(headers: Mapping[str, str]) -> Iterator[Link]:
    """The addresses of `Link: <…>; rel="next"`."""
    for stated in parse_header_links(headers.get("Link", "")):
        target = stated.get("url", "")
        if target and "next" in stated.get("rel", "").lower().split():
            yield Link(target, leads_on=True)


def unfinished_by(headers: Mapping[str, str]) -> str | None:
    """Why a page is known not to be all, where the headers do not say where the next one is."""
    if next(next_links(headers), None) is not None:
        return None
    if headers.get(NEXT_PAGE, "").strip():
        return f"it is one page of several ({NEXT_PAGE}: {printable(headers[NEXT_PAGE])[:20]})"
    page, pages = headers.get(PAGE, "1").strip(), headers.get(PAGES, "").strip()
    if _is_number(page) and _is_number(pages) and int(page) < int(pages):
        return f"it is page {page} of {pages}, and no header says where the next one is"
    return None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < len("1000000000")
