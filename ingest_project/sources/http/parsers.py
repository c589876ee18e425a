r"""Parse a page of a web listing: an HTML index, a JSON listing, or a plain list of links.

HTML takes one pass over the bytes, in linear time whatever they are: every step begins where the last one ended, and
what is not closed ends the page. `html.parser` searches the rest of the page again for each construct left open.

JSON is nginx's `autoindex_format json`, or our own shape of it:

    [{"name": "a#1 50%.csv", "type": "file", "size": 5213, "mtime": "Thu, 15 Jan 2026 10:30:45 GMT"}]

    {"files": [{"url": "https://files.example.com/a%231.csv", "size": 5213, "modified_at": "2026-01-15T10:30:45Z",
                "etag": "\"1-2\""}],
     "next": "?page=2"}

A `name` is one file's name and a `path` several, as they are: they are percent-encoded here, once. A `url` is a URL
reference, encoded already. A text alone is a path, or a URL where it begins with http:// or https://.

A plain list has one percent-encoded URL reference on each line. Lines that begin with # are comments.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ingest_project.sources.http.page import (
    MAX_TARGET_LENGTH,
    Link,
    NotAListingError,
    PageFacts,
    Unusable,
    encoded_name,
    encoded_path,
    printable,
    stated_size,
    stated_time,
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


URL_FIELDS = ("url", "href", "link")
PATH_FIELDS = ("path", "key")
NAME_FIELDS = ("name", "file_name", "filename")
SIZE_FIELDS = ("size", "size_bytes", "length", "content_length")
TIME_FIELDS = ("mtime", "mod_time", "modified", "modified_at", "last_modified", "lastModified")
LIST_FIELDS = ("files", "items", "entries", "links", "objects", "results", "data")
FOLDER_TYPES = ("directory", "dir", "folder")
MAX_JSON_BYTES = 64 * 1024**2

# How APIs say that this is one page of several; compared in lower case, without `_`, `-`, `@` and `.`.
NEXT_ADDRESSES = ("next", "nexturl", "nextlink", "nextpageurl", "odatanextlink", "nexthref", "nextpage")
NEXT_TOKENS = (
    *("nextcursor", "nexttoken", "nextpagetoken", "nextmarker", "nextcontinuationtoken", "nextoffset", "nextkey"),
    *("continuationtoken", "continuation", "cursor", "marker"),
)
MORE_FLAGS = (
    "istruncated",
    "truncated",
    "hasmore",
    "more",
    "hasnext",
    "hasnextpage",
    "incomplete",
    "incompleteresults",
)
TOTALS = ("total", "totalcount", "totalfiles", "totalitems", "totalresults")
PAGES = ("pages", "totalpages", "pagecount", "lastpage")
AROUND_PAGES = ("links", "paging", "pagination", "meta", "pageinfo")
SHOWN_KEYS = 8


def json_links(body: bytes, facts: PageFacts) -> Iterator[Link | Unusable]:
    """What a JSON listing names, in its order.

    Raises:
        NotAListingError: no JSON, none that is a list of files, or too long.
    """
    if len(body) > MAX_JSON_BYTES:
        raise NotAListingError(f"JSON of more than {MAX_JSON_BYTES} bytes; a plain list of links may be longer")
    try:
        found = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise NotAListingError(f"not the JSON it seems to be ({printable(str(error))[:100]})") from error
    entries = _list_of(found)
    facts.seen, facts.recognised = f"JSON with {len(entries)} entries", True
    yield from map(_of_entry, entries)
    if isinstance(found, dict):
        yield from _next_page(found, len(entries), facts)


def _list_of(found: object) -> list[Any]:
    if isinstance(found, dict):
        listed: list[Any] | None = next(
            (found[name] for name in LIST_FIELDS if isinstance(found.get(name), list)), None
        )
        if listed is None:
            keys = ", ".join(printable(key)[:40] for key in list(found)[:SHOWN_KEYS])
            raise NotAListingError(f"a JSON object without a list of files ({', '.join(LIST_FIELDS)}); it has: {keys}")
        return listed
    if not isinstance(found, list):
        raise NotAListingError(f"JSON that is no list of files but a {type(found).__name__}")
    return found


def _of_entry(entry: object) -> Link | Unusable:
    if isinstance(entry, str):
        return _at(entry if _is_url(entry) else encoded_path(entry), entry)
    if not isinstance(entry, dict):
        return Unusable(f"({type(entry).__name__})", "An entry of a JSON listing that is no file.")
    shown, target = _target(entry)
    folder = str(entry.get("type", "")).lower() in FOLDER_TYPES or entry.get("is_dir") is True
    if target is not None and folder:
        return _at(target if target.endswith("/") else f"{target}/", shown)
    try:
        size = stated_size(_first(entry, SIZE_FIELDS))
    except ValueError:
        return Unusable(printable(shown), "Its size is not one that a file can have.")
    try:
        time = stated_time(_first(entry, TIME_FIELDS))
    except ValueError:
        return Unusable(printable(shown), "Its time is not one.")
    etag = entry.get("etag")
    return _at(target, shown, size, time, etag if isinstance(etag, str) and etag else None)


def _at(target: str | None, shown: str, *version: Any) -> Link | Unusable:  # noqa: ANN401 - size, time and ETag
    if target is None or len(target) > MAX_TARGET_LENGTH:
        return Unusable(
            printable(shown), "An entry of a JSON listing without a name, path or url that can be asked for."
        )
    return Link(target, *version)


def _target(entry: dict[str, Any]) -> tuple[str, str | None]:
    """What stands there, and the URL reference that it means."""
    for fields, read in ((URL_FIELDS, str), (PATH_FIELDS, encoded_path), (NAME_FIELDS, _named)):
        value = _first(entry, fields)
        if isinstance(value, str) and value:
            return value, read(value)
    return "(no name)", None


def _named(name: str) -> str | None:
    folder = name.endswith("/")
    encoded = encoded_name(name[:-1] if folder else name)
    return None if encoded is None else encoded + ("/" if folder else "")


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _first(entry: dict[str, Any], names: tuple[str, ...]) -> Any:  # noqa: ANN401 - whatever JSON holds
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _next_page(found: dict[str, Any], count: int, facts: PageFacts) -> Iterator[Link]:
    fields = {_plain(name): value for name, value in found.items()}
    for around in AROUND_PAGES:
        for name in (around, f"_{around}"):
            inner = found.get(name)
            if isinstance(inner, dict):
                fields |= {_plain(key): value for key, value in inner.items()}
    for name in NEXT_ADDRESSES:
        value = fields.get(name)
        value = value.get("href") if isinstance(value, dict) else value
        if isinstance(value, str) and value:
            yield Link(value, leads_on=True)
            return
    facts.unfinished = _rest(fields, count)


def _rest(fields: dict[str, Any], count: int) -> str | None:
    """Why there is more than this page, where its address is not told."""
    for name in (*NEXT_ADDRESSES, *NEXT_TOKENS, *MORE_FLAGS):
        if fields.get(name) not in (None, False, "", 0, [], {}, "false"):
            return f"it is one page of several ({name!r} is set), and does not give the address of the next in 'next'"
    total = _first(fields, TOTALS)
    if isinstance(total, int) and total > count:
        return f"it is one page of several (it has {count} of {printable(str(total)[:20])} entries)"
    page, pages = fields.get("page"), _first(fields, PAGES)
    if isinstance(page, int) and isinstance(pages, int) and page < pages:
        return "it is one page of several, and does not give the address of the next in 'next'"
    return None


def _plain(name: str) -> str:
    return name[:60].lower().translate({ord(char): None for char in "_-@."})


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
            link = _text_link(line)
            facts.recognised |= isinstance(link, Link)
            yield link


def _lines(body: bytes) -> Iterator[bytes]:
    begin = 0
    while begin < len(body):
        end = body.find(b"\n", begin)
        end = len(body) if end < 0 else end
        yield body[begin:end].strip()
        begin = end + 1


def _text_link(line: bytes) -> Link | Unusable:
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
