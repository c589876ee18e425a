r"""Parse a page of a web listing: an HTML index, a JSON listing, or a plain list of links.

HTML is parsed in one pass over the bytes, in linear time for any input: every step begins where the last one ended, and
an unclosed construct ends the page. `html.parser` searches the rest of the page again for each unclosed construct.

JSON is nginx's `autoindex_format json`, or the same list with the address of its next page:

    [{"name": "a#1 50%.csv", "type": "file", "size": 5213, "mtime": "Thu, 15 Jan 2026 10:30:45 GMT"}]

    {"files": [{"url": "https://files.example.com/a%231.csv", "size": 5213, "modified_at": "2026-01-15T10:30:45Z",
                "etag": "\"1-2\""}],
     "next": "?page=2"}

A `name` is one unencoded name and a `path` several: they are percent-encoded here, once. A `url` is an already encoded
URL reference. A string instead of an object is a path, or a URL if it begins with http:// or https://.

A plain list has one percent-encoded URL reference per line. Lines that begin with # are comments.

This module imports little, because the confined process that parses large pages imports it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Annotated
from urllib.parse import parse_qsl, quote, urlsplit

import msgspec

from ingest_project.contracts import plainly, require_single_names
from ingest_project.core.errors import UnreadableMessageError
from ingest_project.core.items import as_utc
from ingest_project.sources import MAX_SIZE_BYTES, sanitized

MAX_TARGET_LENGTH = 8_192
MAX_JSON_BYTES = 64 * 1024**2
_MAX_TIME_LENGTH = 64

_OPENING = re.compile(rb"<(?:!|\?|/?[A-Za-z])")
_NAME = re.compile(rb"</?([A-Za-z][^\s/>]*+)")
_ATTRIBUTE = re.compile(rb"[\s/]*+([^\s/>=]++)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s>]*+)))?+")
_AFTER_ATTRIBUTES = re.compile(rb"[\s/]*+>")
# The content of these elements is plain text, in which no tag begins.
_RAW = {
    name: re.compile(rb"</" + name + rb"(?=[\s/>])", re.IGNORECASE)
    for name in (b"script", b"style", b"textarea", b"title")
}
_WITH_TEXT = frozenset({b"a", b"h1", b"title"})
_LONGEST_TEXT = 200
_LONGEST_NAME = 32
_MAX_NAMES = 100
# Headings of folder indexes: nginx, Apache and lighttpd; Python and Tomcat; Jetty; Node's servers.
_HEADINGS = ("index of", "directory listing", "directory:", "listing directory", "files within", "listing of")
# Go's file server writes a list without a heading.
_BARE_LIST = frozenset({b"pre", b"a", b"meta"})
_NEXT_TEXTS = frozenset({"next", "next page", "next »", "next →", "next >", "older", "»", "→", ">", ">>", "more"})
_PAGE_PARAMETERS = frozenset(
    {"page", "p", "pg", "paged", "pagenumber", "pageindex", "offset", "start", "skip", "marker", "after", "cursor"}
    | {"token", "continuation", "continuationtoken", "pagetoken", "nextpagetoken"}
)
_NOT_IN_ADDRESSES = frozenset(' <>"{}|\\^`')
_LONGEST_ENDING = 12
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class NotAListingError(Exception):
    """The page is not a readable listing.

    Args:
        seen: description of the page; starts in lower case, ends without a full stop.
        login: True for a login page.
    """

    def __init__(self, seen: str, *, login: bool = False) -> None:
        self.seen = seen
        self.login = login
        super().__init__(seen)


class Link(msgspec.Struct, frozen=True, tag=True):
    """One entry of a listing.

    Args:
        target: relative or absolute URL reference, percent-encoded; a folder ends with a slash.
        size_bytes: exact size; None if the listing does not contain it.
        modified_at: time of the last change to the second, UTC; None if the listing does not contain it.
        etag: ETag in the listing.
        is_next_page: True if the link leads to the next page of this listing.
    """

    target: str
    size_bytes: int | None = None
    modified_at: datetime | None = None
    etag: str | None = None
    is_next_page: bool = False

    @property
    def has_version(self) -> bool:
        """Return True if the listing contains the version of the file."""
        return self.etag is not None or (self.size_bytes is not None and self.modified_at is not None)


class Unusable(msgspec.Struct, frozen=True, tag=True):
    """A refused entry.

    Args:
        shown: shortened text of the entry.
        reason: one of a few sentences.
    """

    shown: str
    reason: str


class PageFacts(msgspec.Struct, tag=True):
    """Facts about a page; complete once all its entries have been read.

    Args:
        seen: description of the page for people.
        recognised: True if the page certainly is a listing, even an empty one.
        base: base address of its links, if the page states one.
        links: number of usable entries.
        unusable: number of other entries.
    """

    seen: str = ""
    recognised: bool = False
    base: str | None = None
    links: int = 0
    unusable: int = 0


@dataclass(frozen=True, slots=True)
class _Tag:
    begin: int
    end: int
    name: bytes
    attributes: dict[bytes, bytes]
    closing: bool


@dataclass
class _Seen:
    """Elements that reveal the kind of a page."""

    title: str = ""
    heading: str = ""
    names: set[bytes] = field(default_factory=set)
    anchors: int = 0
    password: bool = False
    summary: bool = False
    meta_item: bool = False


def html_links(body: bytes, charset: str, facts: PageFacts) -> Iterator[Link | Unusable]:
    """Yield the links of an HTML page in order; the facts are complete after the last one.

    Raises:
        NotAListingError: the page is a login page.
    """
    seen = _Seen()
    for name, attributes, text in _elements(body):
        if len(seen.names) < _MAX_NAMES:
            seen.names.add(name[:_LONGEST_NAME])
        if name == b"a":
            seen.anchors += 1
        yield from _links_of(name, attributes, text, charset, seen, facts)
    facts.recognised = _is_index(seen)
    facts.seen = _described(body, seen)
    if seen.password:
        raise NotAListingError(f"{facts.seen} with a password field", login=True)


def is_page_query(query: str) -> bool:
    """Return True if a query selects one page of several."""
    try:
        named = parse_qsl(query, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return False
    return any(name.lower().replace("_", "").replace("-", "") in _PAGE_PARAMETERS for name, _ in named)


def root_element(body: bytes) -> str:
    """Return the name of the first element, in lower case and without a namespace prefix; empty without an element."""
    first = next(_elements(body), None)
    return "" if first is None else first[0].rpartition(b":")[2][:_LONGEST_NAME].decode("latin-1")


def _links_of(  # noqa: PLR0913, PLR0917 - one element of the page
    name: bytes, attributes: dict[bytes, bytes], text: bytes, charset: str, seen: _Seen, facts: PageFacts
) -> Iterator[Link | Unusable]:
    match name:
        case b"a" | b"link" if b"href" in attributes:
            is_next = b"next" in attributes.get(b"rel", b"").lower().split()
            if name == b"a" or is_next:
                yield from _link(attributes[b"href"], charset, _text(text, charset), is_next=is_next)
        case b"base" if b"href" in attributes and facts.base is None:
            facts.base = _value(attributes[b"href"], charset)
        case b"title":
            seen.title = seen.title or _text(text, charset)
        case b"h1":
            seen.heading = seen.heading or _text(text, charset)
        case b"input":
            seen.password |= attributes.get(b"type", b"").strip().lower() == b"password"
        case _:
            seen.summary |= attributes.get(b"id") == b"summary"
            seen.meta_item |= b"meta-item" in attributes.get(b"class", b"")


def _link(href: bytes, charset: str, text: str, *, is_next: bool) -> Iterator[Link | Unusable]:
    target = _value(href, charset)
    if target is None:
        yield Unusable(sanitized(href[:MAX_TARGET_LENGTH].decode("latin-1")), "A link that cannot be read.")
    elif target.startswith("?"):
        # `?C=M;O=A` sorts an Apache index.
        if is_next or is_page_query(target[1:]):
            yield Link(target, is_next_page=True)
    elif target and not target.startswith("#"):
        yield Link(target, is_next_page=is_next or (text.casefold() in _NEXT_TEXTS and "?" in target))


def _value(raw: bytes, charset: str) -> str | None:
    """Return an attribute's value; None if it is too long, or invalid in the page's charset."""
    if len(raw) > MAX_TARGET_LENGTH:
        return None
    try:
        text = raw.decode(charset)
        # html.unescape replaces a reference to an invalid character by U+FFFD.
        found = html.unescape(text).strip(" \t\r\n\f")
    except ValueError:
        return None
    return None if "\ufffd" in found and "\ufffd" not in text else found


def _text(raw: bytes, charset: str) -> str:
    text = raw[:_LONGEST_TEXT].decode(charset, "replace")
    try:
        return sanitized(" ".join(html.unescape(text).split()))
    except ValueError:
        return sanitized(text)


def _elements(body: bytes) -> Iterator[tuple[bytes, dict[bytes, bytes], bytes]]:
    """Yield start tags with their attributes and, for a few elements, the following text."""
    held: _Tag | None = None
    for tag in _tags(body):
        if held is not None and (not tag.closing or tag.name == held.name):
            yield held.name, held.attributes, _text_between(body, held.end, tag.begin)
            held = None
        if not tag.closing and tag.name in _WITH_TEXT:
            held = tag
        elif not tag.closing:
            yield tag.name, tag.attributes, b""
    if held is not None:
        yield held.name, held.attributes, _text_between(body, held.end, len(body))


def _text_between(body: bytes, begin: int, end: int) -> bytes:
    return body[begin : min(end, begin + _LONGEST_TEXT)].partition(b"<")[0]


def _tags(body: bytes) -> Iterator[_Tag]:
    position = 0
    while position >= 0 and (opening := _OPENING.search(body, position)) is not None:
        begin = opening.start()
        if body[begin + 1 : begin + 2] in (b"!", b"?"):
            closing = b"-->" if body.startswith(b"<!--", begin) else b">"
            found = body.find(closing, begin + 2)
            position = -1 if found < 0 else found + len(closing)
            continue
        name = _NAME.match(body, begin)
        assert name is not None  # noqa: S101 - an opening has a letter
        attributes, position = _attributes(body, name.end())
        if position < 0:
            return
        tag = _Tag(begin, position, name[1].lower(), attributes, closing=body.startswith(b"</", begin))
        yield tag
        if tag.name in _RAW and not tag.closing:
            end = _RAW[tag.name].search(body, position)
            position = -1 if end is None else end.start()


def _attributes(body: bytes, position: int) -> tuple[dict[bytes, bytes], int]:
    """Return the attributes of a tag, and its end position; -1 if it does not end."""
    attributes: dict[bytes, bytes] = {}
    while True:
        if (closed := _AFTER_ATTRIBUTES.match(body, position)) is not None:
            return attributes, closed.end()
        found = _ATTRIBUTE.match(body, position)
        if found is None:
            end = body.find(b">", position)
            return attributes, end + 1 if end >= 0 else -1
        position = found.end()
        name, *values = found.groups()
        if len(name) <= _LONGEST_NAME and name.lower() not in attributes:
            attributes[name.lower()] = next((value for value in values if value is not None), b"")


def _is_index(seen: _Seen) -> bool:
    headings = (seen.title.casefold(), seen.heading.casefold())
    if any(heading.startswith(_HEADINGS) for heading in headings):
        return True
    # IIS: `host - /folder/`, twice. Caddy: numbers of folders and files. Go: only the list.
    return (
        (seen.title == seen.heading and " - /" in seen.title)
        or (seen.summary and seen.meta_item)
        or (b"pre" in seen.names and seen.names <= _BARE_LIST)
    )


def _described(body: bytes, seen: _Seen) -> str:
    if not seen.names:
        return "text that is called HTML" if body.strip() else "an empty answer"
    titled = f" titled {seen.title!r}" if seen.title else ""
    return f"an HTML page{titled} with {seen.anchors} links"


class _JsonFile(msgspec.Struct):
    name: str | None = None
    path: str | None = None
    url: str | None = None
    type: str = "file"
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_SIZE_BYTES)] | None = None
    mtime: str | None = None
    modified_at: str | None = None
    etag: str | None = None


class _JsonListing(msgspec.Struct, forbid_unknown_fields=True):
    files: list[object]
    next: str | None = None


def json_links(body: bytes, facts: PageFacts) -> Iterator[Link | Unusable]:
    """Yield the files of a JSON listing in order.

    Raises:
        NotAListingError: the page is not JSON, not a list of files, or too long.
    """
    if len(body) > MAX_JSON_BYTES:
        raise NotAListingError(f"JSON of more than {MAX_JSON_BYTES} bytes; a plain list of links may be longer")
    try:
        # Use `json`, because msgspec refuses the whole page if one name is not valid Unicode.
        found = msgspec.convert(json.loads(body.decode("utf-8-sig")), _JsonListing | list[object])
        require_single_names(body)
    except msgspec.ValidationError as error:
        # Refuse unknown fields: one of them may mean that this is one page of several.
        raise NotAListingError(
            f"JSON that is no list of files ({sanitized(plainly(error))}); its fields are 'files' and, for the address "
            "of a further page, 'next'"
        ) from error
    except (ValueError, RecursionError, UnreadableMessageError) as error:
        raise NotAListingError(f"not the JSON it seems to be ({sanitized(str(error))[:100]})") from error
    listing = _JsonListing(found) if isinstance(found, list) else found
    facts.seen, facts.recognised = f"JSON with {len(listing.files)} entries", True
    yield from map(_json_entry, listing.files)
    if listing.next:
        yield Link(listing.next, is_next_page=True)


def _json_entry(entry: object) -> Link | Unusable:
    shown = _shown(entry)
    try:
        file = _file_named(entry) if isinstance(entry, str) else msgspec.convert(entry, _JsonFile)
        target = _json_target(file)
    except ValueError:
        return Unusable(shown, "An entry of a JSON listing that is not understood.")
    if target is None or len(target) > MAX_TARGET_LENGTH:
        return Unusable(shown, "An entry of a JSON listing without a name, path or url that can be requested.")
    if file.type == "directory":
        return Link(target if target.endswith("/") else f"{target}/")
    try:
        return Link(target, file.size, _json_time(file), file.etag or None)
    except (ValueError, IndexError, TypeError, OverflowError):
        return Unusable(shown, "An entry of a JSON listing with an impossible time.")


def _shown(entry: object) -> str:
    names = (entry.get(name) for name in ("url", "path", "name")) if isinstance(entry, dict) else (entry,)
    return sanitized(next((name for name in names if isinstance(name, str)), f"({type(entry).__name__})"))


def _file_named(text: str) -> _JsonFile:
    return _JsonFile(url=text) if text.startswith(("http://", "https://")) else _JsonFile(path=text)


def _json_target(file: _JsonFile) -> str | None:
    """Return the URL reference of a file; None without a valid one."""
    if file.url:
        return file.url
    path = file.path or file.name or ""
    names = path.removeprefix("./").removeprefix("/").removesuffix("/").split("/")
    encoded = [_encoded_name(name) for name in names]
    if None in encoded or (not file.path and len(names) > 1):
        return None
    # A colon in the first name would turn it into a scheme: encode it, like all characters with a meaning.
    return ("/" if path.startswith("/") else "") + "/".join(map(str, encoded)) + ("/" if path.endswith("/") else "")


def _encoded_name(name: str) -> str | None:
    if name in ("", ".", "..") or len(name) > MAX_TARGET_LENGTH or any(char < " " or char == "\x7f" for char in name):
        return None
    return quote(name, safe="")


def _json_time(file: _JsonFile) -> datetime | None:
    stated = file.modified_at or file.mtime
    if not stated:
        return None
    if len(stated) > _MAX_TIME_LENGTH:
        raise ValueError("not a time")
    moment = datetime.fromisoformat(stated) if file.modified_at else parsedate_to_datetime(stated)
    # A time without a zone is UTC, as in HTTP.
    return as_utc(moment)


def text_links(body: bytes, facts: PageFacts) -> Iterator[Link | Unusable]:
    """Yield the links of a plain list in order; a sentence is not a link."""
    facts.seen = f"text of {len(body)} bytes"
    for line in map(bytes.strip, BytesIO(body.removeprefix(_BYTE_ORDER_MARK))):
        if line.startswith(b"#"):
            # Plain text may be anything, but with a comment it certainly is a list, even an empty one.
            facts.recognised = True
        elif line:
            link = _text_link(line)
            facts.recognised |= isinstance(link, Link)
            yield link


def _text_link(line: bytes) -> Link | Unusable:
    text = line[: MAX_TARGET_LENGTH + 1].decode("utf-8", "surrogateescape")
    if (
        len(text) <= MAX_TARGET_LENGTH
        and text.isprintable()
        and not _NOT_IN_ADDRESSES & set(text)
        and _names_a_file(text)
    ):
        return Link(text)
    return Unusable(sanitized(text), "A line that is no address of a file or folder.")


def _names_a_file(text: str) -> bool:
    """Return True if an address ends with a slash or a name with an extension, unlike words of an error message."""
    try:
        path = urlsplit(text).path
    except ValueError:
        return False
    stem, _, ending = path.rpartition("/")[2].rpartition(".")
    return path.endswith("/") or (bool(stem) and ending[:1].isalpha() and len(ending) <= _LONGEST_ENDING)
