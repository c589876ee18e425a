"""Links of an HTML page, and whether it is the index of a folder as web servers write them.

One pass over the bytes, in linear time whatever they are: every step begins where the last one ended, and what is not
closed ends the page. `html.parser` searches the rest of the page again for each construct that is not closed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from ingest_project.sources.http.listing_page import (
    MAX_TARGET_LENGTH,
    Link,
    NotAListingError,
    PageFacts,
    Unusable,
    printable,
)

_OPENING = re.compile(rb"<(?:!|\?|/?[A-Za-z])")
_NAME = re.compile(rb"</?([A-Za-z][^\s/>]*+)")
_ATTRIBUTE = re.compile(rb"[\s/]*+([^\s/>=]++)(?:\s*+=\s*+(?:\"([^\"]*+)\"|'([^']*+)'|([^\s>]*+)))?+")
_AFTER_ATTRIBUTES = re.compile(rb"[\s/]*+>")
# Between these and their end nothing is a tag.
_RAW = {
    name: re.compile(rb"</" + name + rb"(?=[\s/>])", re.IGNORECASE)
    for name in (b"script", b"style", b"textarea", b"title")
}
_WITH_TEXT = frozenset({b"a", b"h1", b"title"})
LONGEST_TEXT = 200
LONGEST_NAME = 32
MOST_NAMES = 100

# How servers head the index of a folder: nginx, Apache and lighttpd; Python and Tomcat; Jetty; Node's servers.
HEADINGS = ("index of", "directory listing", "directory:", "listing directory", "files within", "listing of")
# Go's file server writes nothing but the list.
BARE_LIST = frozenset({b"pre", b"a", b"meta"})
NEXT_TEXTS = frozenset({"next", "next page", "next »", "next →", "next >", "older", "»", "→", ">", ">>", "more"})
PAGE_PARAMETERS = frozenset(
    {"page", "p", "pg", "paged", "pagenumber", "pageindex", "offset", "start", "skip", "marker", "after", "cursor"}
    | {"token", "continuation", "continuationtoken", "pagetoken", "nextpagetoken"}
)


@dataclass(frozen=True, slots=True)
class _Tag:
    begin: int
    end: int
    name: bytes
    attributes: dict[bytes, bytes]
    closing: bool


@dataclass
class _Seen:
    """What was met on the way."""

    title: str = ""
    heading: str = ""
    names: set[bytes] = field(default_factory=set)
    anchors: int = 0
    password: bool = False
    summary: bool = False
    meta_item: bool = False


def html_links(body: bytes, charset: str, facts: PageFacts) -> Iterator[Link | Unusable]:
    """The targets of a page's links, in their order; the facts are complete at the end.

    Raises:
        NotAListingError: it asks for a password.
    """
    seen = _Seen()
    for name, attributes, text in _elements(body):
        if len(seen.names) < MOST_NAMES:
            seen.names.add(name[:LONGEST_NAME])
        if name == b"a":
            seen.anchors += 1
        yield from _looked_at(name, attributes, text, charset, seen, facts)
    facts.recognised = _is_index(seen)
    facts.seen = _described(body, seen)
    if seen.password:
        raise NotAListingError(f"{facts.seen} that asks for a password", login=True)


def is_page_query(query: str) -> bool:
    """Whether a query asks for one page of several."""
    try:
        named = parse_qsl(query, keep_blank_values=True, max_num_fields=20)
    except ValueError:
        return False
    return any(name.lower().replace("_", "").replace("-", "") in PAGE_PARAMETERS for name, _ in named)


def root_element(body: bytes) -> str:
    """The name of the first element, in lower case and without a namespace's prefix; empty where there is none."""
    first = next(_elements(body), None)
    return "" if first is None else first[0].rpartition(b":")[2][:LONGEST_NAME].decode("latin-1")


def _looked_at(  # noqa: PLR0913, PLR0917 - one element of the page
    name: bytes, attributes: dict[bytes, bytes], text: bytes, charset: str, seen: _Seen, facts: PageFacts
) -> Iterator[Link | Unusable]:
    match name:
        case b"a" | b"link" if b"href" in attributes:
            further = b"next" in attributes.get(b"rel", b"").lower().split()
            if name == b"a" or further:
                yield from _link(attributes[b"href"], charset, _text(text, charset), further=further)
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


def _link(href: bytes, charset: str, text: str, *, further: bool) -> Iterator[Link | Unusable]:
    target = _value(href, charset)
    if target is None:
        yield Unusable(printable(href[:MAX_TARGET_LENGTH].decode("latin-1")), "A link that cannot be read.")
    elif target.startswith("?"):
        # `?C=M;O=A` sorts an index of Apache's.
        if further or is_page_query(target[1:]):
            yield Link(target, leads_on=True)
    elif target and not target.startswith("#"):
        yield Link(target, leads_on=further or (text.casefold() in NEXT_TEXTS and "?" in target))


def _value(raw: bytes, charset: str) -> str | None:
    """An attribute's value; None where it is too long, or not of the page's charset."""
    if len(raw) > MAX_TARGET_LENGTH:
        return None
    try:
        text = raw.decode(charset)
        # Of a reference to a character that there is not, html.unescape makes one that was not there.
        found = html.unescape(text).strip(" \t\r\n\f")
    except ValueError:
        return None
    return None if "\ufffd" in found and "\ufffd" not in text else found


def _text(raw: bytes, charset: str) -> str:
    text = raw[:LONGEST_TEXT].decode(charset, "replace")
    try:
        return printable(" ".join(html.unescape(text).split()))
    except ValueError:
        return printable(text)


def _elements(body: bytes) -> Iterator[tuple[bytes, dict[bytes, bytes], bytes]]:
    """Start tags with their attributes and, of a few elements, the text that follows."""
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
    return body[begin : min(end, begin + LONGEST_TEXT)].partition(b"<")[0]


def _tags(body: bytes) -> Iterator[_Tag]:
    position = 0
    while position >= 0 and (opening := _OPENING.search(body, position)) is not None:
        begin = opening.start()
        if body[begin + 1 : begin + 2] in (b"!", b"?"):
            closing = b"-->" if body.startswith(b"<!--", begin) else b">"
            position = _after(body.find(closing, begin + 2), closing)
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


def _after(found: int, closing: bytes) -> int:
    return -1 if found < 0 else found + len(closing)


def _attributes(body: bytes, position: int) -> tuple[dict[bytes, bytes], int]:
    """The attributes of a tag, and where it ends; -1 where it does not."""
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
        if len(name) <= LONGEST_NAME and name.lower() not in attributes:
            attributes[name.lower()] = next((value for value in values if value is not None), b"")


def _is_index(seen: _Seen) -> bool:
    headings = (seen.title.casefold(), seen.heading.casefold())
    if any(heading.startswith(HEADINGS) for heading in headings):
        return True
    # IIS: `host - /folder/`, twice. Caddy: how many folders and files there are. Go: the list alone.
    return (
        (seen.title == seen.heading and " - /" in seen.title)
        or (seen.summary and seen.meta_item)
        or (b"pre" in seen.names and seen.names <= BARE_LIST)
    )


def _described(body: bytes, seen: _Seen) -> str:
    if not seen.names:
        return "text that is called HTML" if body.strip() else "an empty answer"
    titled = f" titled {seen.title!r}" if seen.title else ""
    return f"an HTML page{titled} with {seen.anchors} links"
