"""What a listing page names: the auto-index of a web server, a JSON list, or a plain list of links.

Read piece by piece. Times and sizes of an HTML index are rounded for people: they are not taken over.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from ingest_project.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LINK_NAMES = ("href", "url", "link", "path", "name", "file_name", "filename", "key")
SIZE_NAMES = ("size", "size_bytes", "length", "content_length")
TIME_NAMES = ("mtime", "mod_time", "modified", "modified_at", "last_modified", "lastModified")
LIST_NAMES = ("files", "items", "entries", "links", "objects", "results", "data")
FOLDER_TYPES = ("directory", "dir", "folder")
MAX_JSON_BYTES = 64 * 1024**2
LONGEST_LINE = 16_384
# Enough to tell the kinds of listing apart.
HEAD_BYTES = 512


@dataclass(frozen=True, slots=True)
class Link:
    """One entry of a listing.

    Args:
        target: as it stands there, relative or not; a folder ends with a slash.
        size_bytes: exact; None where the listing does not say.
        modified_at: to the second, UTC; None where the listing does not say.
        etag: as its server sends it.
    """

    target: str
    size_bytes: int | None = None
    modified_at: datetime | None = None
    etag: str | None = None

    @property
    def tells_version(self) -> bool:
        """Whether the file need not be asked for the version it has."""
        return self.etag is not None or (self.size_bytes is not None and self.modified_at is not None)


def links_of(chunks: Iterable[bytes], content_type: str, location: str) -> Iterator[Link]:
    """What a listing names, in its order.

    Args:
        chunks: the body.
        content_type: as its server calls it.
        location: for messages.

    Raises:
        PermanentError: JSON that is no list of files, or is too long.
    """
    pieces = iter(chunks)
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= HEAD_BYTES:
            break
    body = _chained(head, pieces)
    media_type = content_type.partition(";")[0].strip().lower()
    beginning = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if media_type.endswith(("json", "+json")) or beginning in (b"[", b"{"):
        return _of_json(body, location)
    if media_type in ("text/html", "application/xhtml+xml") or beginning == b"<":
        return _of_html(body, _charset(content_type))
    return _of_lines(body)


def _chained(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from rest


def _charset(content_type: str) -> str:
    name = content_type.lower().partition("charset=")[2].strip(' "').partition(";")[0]
    try:
        b"".decode(name or "utf-8")
    except LookupError:
        return "utf-8"
    return name or "utf-8"


class _Anchors(HTMLParser):
    """Collects the targets of links."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for name, value in attrs if name == "href" and value]


def _of_html(chunks: Iterator[bytes], charset: str) -> Iterator[Link]:
    import codecs  # noqa: PLC0415 - of this kind alone

    decoder = codecs.getincrementaldecoder(charset)(errors="replace")
    anchors = _Anchors()
    for chunk in chunks:
        anchors.feed(decoder.decode(chunk))
        targets, anchors.targets = anchors.targets, []
        # `?C=M;O=A` sorts an index of Apache's; a fragment is a place in this page.
        yield from (Link(target.strip()) for target in targets if not target.startswith(("?", "#")))
    anchors.close()
    yield from (Link(target.strip()) for target in anchors.targets if not target.startswith(("?", "#")))


def _of_lines(chunks: Iterator[bytes]) -> Iterator[Link]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from map(Link, _stated(lines))
        if len(rest) > LONGEST_LINE:
            raise PermanentError(f"A line of this listing has more than {LONGEST_LINE} bytes: it is no list of links.")
    yield from map(Link, _stated([rest]))


def _stated(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        text = line.decode("utf-8-sig", "replace").strip()
        if text and not text.startswith("#"):
            yield text


def _of_json(chunks: Iterator[bytes], location: str) -> Iterator[Link]:
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > MAX_JSON_BYTES:
            raise PermanentError(f"{location} is JSON of more than {MAX_JSON_BYTES} bytes; a plain list may be longer.")
    try:
        found = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PermanentError(f"{location} is not the JSON it seems to be: {str(error)[:100]}.") from error
    if isinstance(found, dict):
        found = next((found[name] for name in LIST_NAMES if isinstance(found.get(name), list)), None)
    if not isinstance(found, list):
        raise PermanentError(f"{location} is JSON without a list of files ({', '.join(LIST_NAMES)}).")
    yield from (link for entry in found if (link := _of_entry(entry)) is not None)


def _of_entry(entry: object) -> Link | None:
    if isinstance(entry, str):
        return Link(entry)
    if not isinstance(entry, dict):
        return None
    target = next((value for name in LINK_NAMES if isinstance(value := entry.get(name), str) and value), None)
    if target is None:
        return None
    folder = str(entry.get("type", "")).lower() in FOLDER_TYPES or entry.get("is_dir") is True
    if folder:
        return Link(target if target.endswith("/") else f"{target}/")
    etag = entry.get("etag")
    return Link(target, _size(entry), _time(entry), etag if isinstance(etag, str) and etag else None)


def _size(entry: dict[str, Any]) -> int | None:
    value = next((entry[name] for name in SIZE_NAMES if name in entry), None)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _time(entry: dict[str, Any]) -> datetime | None:
    text = next((entry[name] for name in TIME_NAMES if isinstance(entry.get(name), str)), "")
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(text)
        except (ValueError, IndexError, TypeError):
            continue
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None
