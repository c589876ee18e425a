"""Files that a web server lists, `source_type` http: an auto-index page, a JSON list, or a plain list of links.

A job's `source_config`: `path` (address of the listing), `credentials` (they go to their own hosts only), `elsewhere`
(true: links may lead out of the listing's folder, to any address that may be contacted). What may be contacted at all
is what the web client's rules allow, at every redirect.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any, BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

from ingest_project.errors import AddressRefused, ForbiddenPath, PermanentError, SourceForbidden, SourceMissing
from ingest_project.sources.access import named_credential, require_for_host
from ingest_project.sources.http_files import LONGEST_CONVERSATION, WebFileReader, described, strong_etag, web_errors
from ingest_project.sources.http_listing import links_of
from ingest_project.sources.protocol import Skipped, SourceFile
from ingest_project.sources.resumed_reading import resumed_reading
from ingest_project.sources.selection import Pattern, refusal
from ingest_project.web.deadlines import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from ingest_project.settings import Credential
    from ingest_project.sources.access import SourceAccess
    from ingest_project.sources.http_listing import Link
    from ingest_project.web.client import WebClient
    from ingest_project.web.urls import WebAddress

MAX_LISTING_BYTES = 1024**3
MEMORY_BYTES = 8 * 1024**2
READ_BYTES = 256 * 1024
MAX_FOLDERS = 10_000
MAX_DEPTH = 32


def open_http(source_config: Mapping[str, Any], access: SourceAccess) -> HttpSource:
    """Files that one listing names.

    Raises:
        UnknownCredentials: it names some that are not stored.
    """
    return HttpSource(
        str(source_config.get("path") or ""),
        access.clients.web,
        named_credential(source_config, access.credentials),
        elsewhere=source_config.get("elsewhere") in (True, "true"),
        concurrency=access.settings.source_connections_per_host,
    )


@dataclass(frozen=True)
class HttpSource:
    """One listing.

    Args:
        listing: its address; empty where a single file is opened by its own.
        client: makes the web client.
        credential: that the job names; the web client sends it by itself.
        elsewhere: whether files may lie outside of the listing's folder.
        concurrency: files that are asked for their version at a time.
    """

    listing: str
    client: Callable[[], WebClient]
    credential: Credential | None = None
    elsewhere: bool = False
    concurrency: int = 4

    @property
    def location(self) -> str:
        """The listing's address, without a query, which may be a signature."""
        return self._printable(self.listing)

    def canonical_location(self, path: str) -> str:
        """The address in its one spelling, its query included: another query is another file."""
        try:
            return self.client().check(path).url
        except AddressRefused:
            # An address that may not be asked for still needs a stable name in reports.
            return self._printable(path)

    def require_allowed(self, path: str) -> None:
        """Refuse an address that may not be contacted, or that lies outside of the listing's folder."""
        address = self._checked(path)
        if self.listing and not self.elsewhere and not _is_below(address, self._checked(self.listing)):
            raise ForbiddenPath(
                address.printable, 'it is outside of the listing\'s folder. Say "elsewhere": true in source_config.'
            )
        if self.credential is not None:
            require_for_host(self.credential, address.host, address.port, address.printable)

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """The listing's links as they are read, and those of its folders where the pattern reaches them."""
        parsed = Pattern.parse(pattern)
        self.require_allowed(self.listing)
        with ThreadPoolExecutor(self.concurrency, "http-versions") as pool:
            try:
                yield from _in_order(self._found(parsed), pool, self.concurrency, self._versioned)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def stat(self, path: str) -> SourceFile:
        """What the server says about the file now."""
        self.require_allowed(path)
        return described(self.client(), path, _name(self._checked(path)))

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """The file's bytes; a cut connection is replaced and the reading goes on, of the same version."""
        self.require_allowed(path)
        location = self._printable(path)
        return resumed_reading(WebFileReader(self.client(), path, location).opened, location)

    def _found(self, pattern: Pattern) -> Iterator[tuple[SourceFile, bool] | Skipped]:
        """Files, each with whether its version is known, folder by folder."""
        root = self._checked(self.listing)
        waiting, seen = deque([(root, "")]), {root.url}
        while waiting:
            folder, below = waiting.popleft()
            before = ""
            for link in self._links(folder, first=not below):
                address = self._linked(folder, link)
                if isinstance(address, Skipped):
                    yield address
                # An index may link a name and its icon.
                elif address.url != before and address.url not in seen and not _is_above(address, folder):
                    before = address.url
                    relative = below + _name(address)
                    if not _is_folder(address):
                        yield from self._file(address, link, relative, pattern, root)
                    elif _name(address).startswith("."):
                        yield Skipped(address.printable, "A hidden folder.", visible=False)
                    elif _is_below(address, folder) and pattern.may_match_below(relative):
                        seen.add(address.url)
                        self._require_bounded(len(seen), relative)
                        waiting.append((address, f"{relative}/"))

    def _links(self, folder: WebAddress, *, first: bool) -> Iterator[Link]:
        with SpooledTemporaryFile(MEMORY_BYTES) as page:
            try:
                content_type = self._read(folder, page)
            except (SourceMissing, SourceForbidden):
                if first:
                    raise
                return  # removed meanwhile, or not for us: the rest of the listing is
            page.seek(0)
            yield from links_of(iter(lambda: page.read(READ_BYTES), b""), content_type, folder.printable)

    def _read(self, folder: WebAddress, page: IO[bytes]) -> str:
        """Copy a listing and say what kind it is: its server must not wait while its files are asked for."""
        with web_errors(folder.printable), self.client().get(folder.url, Deadline(LONGEST_CONVERSATION)) as answer:
            for chunk in answer.chunks():
                page.write(chunk)
                if page.tell() > MAX_LISTING_BYTES:
                    raise PermanentError(f"{folder.printable} has more than {MAX_LISTING_BYTES} bytes.")
            return answer.headers.get("Content-Type", "")

    def _linked(self, folder: WebAddress, link: Link) -> WebAddress | Skipped:
        try:
            return self.client().check(urljoin(folder.url, link.target))
        except (AddressRefused, ValueError) as error:
            return Skipped(self._printable(link.target), str(error), visible="://" in link.target)

    def _file(
        self, address: WebAddress, link: Link, relative: str, pattern: Pattern, root: WebAddress
    ) -> Iterator[tuple[SourceFile, bool] | Skipped]:
        if not pattern.matches(relative):
            return
        name = _name(address)
        if (skipped := refusal(address.printable, name)) is not None:
            yield skipped
        elif not self.elsewhere and not _is_below(address, root):
            yield Skipped(address.printable, "A link that leads out of the listing's folder.")
        else:
            etag = link.etag if link.modified_at is None else strong_etag(link.etag)
            file = SourceFile(address.url, name, link.size_bytes, link.modified_at, etag)
            yield file, link.tells_version

    def _versioned(self, file: SourceFile) -> SourceFile | Skipped:
        try:
            found = described(self.client(), file.path, file.name)
        except (SourceMissing, SourceForbidden, ForbiddenPath) as error:
            return Skipped(self._printable(file.path), str(error))
        return replace(found, size_bytes=found.size_bytes if found.size_bytes is not None else file.size_bytes)

    def _require_bounded(self, folders: int, relative: str) -> None:
        if folders > MAX_FOLDERS or relative.count("/") > MAX_DEPTH:
            raise PermanentError(
                f"{self.location} has more than {MAX_FOLDERS} folders, or is more than {MAX_DEPTH} levels deep. "
                "Name a folder further down."
            )

    def _checked(self, url: str) -> WebAddress:
        try:
            return self.client().check(url)
        except AddressRefused as error:
            raise ForbiddenPath(error.url, str(error)) from error

    def _printable(self, url: str) -> str:
        try:
            return self.client().check(url).printable
        except AddressRefused as error:
            return error.url


def _in_order(
    found: Iterator[tuple[SourceFile, bool] | Skipped],
    pool: ThreadPoolExecutor,
    ahead: int,
    versioned: Callable[[SourceFile], SourceFile | Skipped],
) -> Iterator[SourceFile | Skipped]:
    """What was found, with its version; a few are asked for at a time."""
    waiting: deque[Future[SourceFile | Skipped]] = deque()
    for entry in found:
        if isinstance(entry, Skipped):
            yield entry
        elif entry[1]:
            yield entry[0]
        else:
            waiting.append(pool.submit(versioned, entry[0]))
            if len(waiting) > 2 * ahead:
                yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _folder_of(address: WebAddress) -> str:
    return urlsplit(address.url).path.rpartition("/")[0] + "/"


def _is_below(address: WebAddress, listing: WebAddress) -> bool:
    path = urlsplit(address.url).path
    return address.origin == listing.origin and path.startswith(_folder_of(listing)) and "/../" not in unquote(path)


def _is_above(address: WebAddress, folder: WebAddress) -> bool:
    return address.origin == folder.origin and _folder_of(folder).startswith(urlsplit(address.url).path)


def _is_folder(address: WebAddress) -> bool:
    return urlsplit(address.url).path.endswith("/")


def _name(address: WebAddress) -> str:
    return unquote(urlsplit(address.url).path.rstrip("/").rpartition("/")[2])
