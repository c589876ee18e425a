r"""Files that a JSON listing names: nginx's `autoindex_format json`, or our own shape of it.

    [{"name": "a#1 50%.csv", "type": "file", "size": 5213, "mtime": "Thu, 15 Jan 2026 10:30:45 GMT"}]

    {"files": [{"url": "https://files.example.com/a%231.csv", "size": 5213, "modified_at": "2026-01-15T10:30:45Z",
                "etag": "\"1-2\""}],
     "next": "?page=2"}

A `name` is one file's name and a `path` several, as they are: they are percent-encoded here, once. A `url` is a URL
reference, encoded already. A text alone is a path, or a URL where it begins with http:// or https://.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ingest_project.sources.http.listing_page import (
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
