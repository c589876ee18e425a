"""Files listed by a web server, `source_type` http: an index page, a JSON list, or a plain list of links.

A job's `source_config`: `path` (address of the listing), `credentials` (sent only to their own hosts), `elsewhere`
(true: links may lead out of the listing's folder, to any address that may be contacted). The rules of the web client
decide at every redirect which addresses may be contacted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from http import HTTPStatus
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

from msgspec import structs

from ingest_project.contracts.files import file_type_of, is_readable
from ingest_project.core.errors import (
    AddressRejectedError,
    DownloadFailedError,
    DownloadRejectedError,
    FileRejectedError,
    ForbiddenPathError,
    HostThrottledError,
    IngestError,
    PermanentError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnreadableListingError,
)
from ingest_project.core.settings import Credential
from ingest_project.platform.http import WebAddress
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.pinned_transport import Deadline, deadline_in_force
from ingest_project.platform.http.response import (
    Decoder,
    WebResponse,
    codings_in,
    content_encoding_of,
    parse_date,
    whole_number,
)
from ingest_project.sources import MAX_DEPTH, Pattern, Skipped, SourceFile, refusal, sanitized
from ingest_project.sources.http_listing import MAX_PAGE_BYTES, read_page
from ingest_project.sources.http_parsers import Link, PageFacts, Unusable, is_page_query
from ingest_project.sources.reading import ListingBudget, SourceLimits, pace_of, resumed_reading, skip_bytes
from ingest_project.sources.registry import SourceContext, require_for_host

MAX_EXPANSION = 100.0
# Bounds a server that sends byte by byte; a silent one times out much earlier.
_MAX_REQUEST_TIME = timedelta(hours=2)
_WITHOUT_HEAD = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.FORBIDDEN})
_GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)


@contextmanager
def web_errors(location: str) -> Iterator[None]:
    """Map a failure of the web client to an error of a source.

    Raises:
        ForbiddenPathError: the address may not be contacted.
        SourceNotFoundError: 404 or 410.
        SourceAccessDeniedError: any other refusal, or a body that cannot be decoded.
        SourceUnreachableError: no response, an incomplete one, or a transient error.
    """
    try:
        yield
    except AddressRejectedError as error:
        raise ForbiddenPathError(location, str(error)) from error
    except DownloadRejectedError as error:
        if error.http_status in _GONE:
            raise SourceNotFoundError(location) from error
        answer = f"the server answered {error.http_status}" if error.http_status else error.reason
        raise SourceAccessDeniedError(
            location, f"{answer}; check the address and the credentials of this host"
        ) from error
    except FileRejectedError as error:
        raise SourceAccessDeniedError(location, error.detail.rstrip(".")) from error
    except DownloadFailedError as error:
        raise SourceUnreachableError(location, str(error).partition(" failed: ")[2].rstrip(".") or error) from error
    except HostThrottledError as error:
        raise SourceUnreachableError(location, error) from error


def describe(web: WebClient, url: str, name: str, limits: SourceLimits) -> SourceFile:
    """Describe a file by its server's current headers.

    Raises:
        SourceNotFoundError, SourceAccessDeniedError, SourceUnreachableError, ForbiddenPathError: see `web_errors`.
    """
    with web_errors(web.check(url).redacted):
        with web.get(url, Deadline(limits.answer_time), method="HEAD", accept=(200, *_WITHOUT_HEAD)) as answer:
            if answer.status == HTTPStatus.OK:
                return _file(url, name, answer.headers, answer.content_length)
        # Servers that sign addresses for GET refuse HEAD: a request for the first byte returns the same headers.
        wanted = {"Range": "bytes=0-0"}
        with web.get(url, Deadline(limits.answer_time), headers=wanted, accept=(200, 206, 416)) as answer:
            size = answer.content_length if answer.status == HTTPStatus.OK else _total(answer.headers)
            return _file(url, name, answer.headers, size)


@dataclass
class WebFileReader:
    """Opens one file, and reopens the same version after a broken connection.

    Args:
        web: client for web hosts.
        url: address of the file.
        location: location of the file for messages.
        limits: limits of its source.
    """

    web: WebClient
    url: str
    location: str
    limits: SourceLimits
    version: tuple[str | None, datetime | None] | None = None

    def opened(self, offset: int) -> OpenedWebFile:
        """Open the file at this position.

        Raises:
            SourceChangedError: the file now has another version. Also raises the other errors of a source.
        """
        stack = ExitStack()
        try:
            with web_errors(self.location):
                answer = stack.enter_context(
                    self.web.get(
                        self.url,
                        Deadline(_MAX_REQUEST_TIME),
                        headers=self._range(offset),
                        accept=(200, 206),
                        forgive_breaks=True,
                    )
                )
                self._require_same(answer)
                return self._file(offset, answer, stack)
        except BaseException:
            stack.close()
            raise

    def _range(self, offset: int) -> dict[str, str]:
        if not offset or self.version is None or self.version == (None, None):
            return {}
        etag, _ = self.version
        # Do not send a date as If-Range: servers compare dates differently, and `_require_same` compares both.
        return {"Range": f"bytes={offset}-", **({"If-Range": etag} if strong_etag(etag) and etag else {})}

    def _require_same(self, answer: WebResponse) -> None:
        found = (answer.headers.get("ETag"), parse_date(answer.headers.get("Last-Modified")))
        if self.version is not None and found != self.version:
            raise SourceChangedError(self.location, "the connection was cut, and by then it was another version")
        self.version = found

    def _file(self, offset: int, answer: WebResponse, stack: ExitStack) -> OpenedWebFile:
        resumed = answer.status == HTTPStatus.PARTIAL_CONTENT
        if resumed and _range_start(answer.headers) != offset:
            raise SourceUnreachableError(self.location, "it answers with another range than was requested")
        decoder = decoder_of(answer, self.location)
        if decoder and resumed:
            raise SourceUnreachableError(self.location, "it answers with a range of something compressed")
        size = _total(answer.headers) if resumed else answer.content_length
        file = OpenedWebFile(decoded_body(answer, decoder), stack, self, None if decoder else size)
        # A server that cannot resume sends the whole file again: skip the known bytes.
        skip_bytes(file, 0 if resumed else offset, pace_of(self.limits, self.location))
        return file


class OpenedWebFile:
    """A response of a web server during reading."""

    def __init__(
        self, pieces: Iterator[bytes], stack: ExitStack, reader: WebFileReader, size_bytes: int | None
    ) -> None:
        self._stack = stack
        self._reader = reader
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.size_bytes = size_bytes
        self.modified_at: datetime | None = None

    def read(self, size: int) -> bytes:
        """Read some of the next bytes; empty at the end."""
        while not self._rest:
            # The framing of a chunk may also arrive byte by byte.
            answer_time = Deadline(self._reader.limits.answer_time)
            with web_errors(self._reader.location), deadline_in_force(answer_time):
                piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = memoryview(piece)
        block, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return block

    def close(self) -> None:
        """Stop reading."""
        self._stack.close()


def decoded_body(answer: WebResponse, decoder: Decoder | None) -> Iterator[bytes]:
    """Yield the body without the compression that its server added.

    Raises:
        FileRejectedError: the body does not have its declared encoding, or expands too much.
    """
    if decoder is None:
        yield from answer.chunks()
        return
    for chunk in answer.chunks():
        yield from decoder.decoded(chunk)
    decoder.finish()


def decoder_of(answer: WebResponse, location: str) -> Decoder | None:
    """Return the decoder for the body's Content-Encoding; None without one.

    Raises:
        FileRejectedError: the encoding is not supported.
    """
    encoding = content_encoding_of(answer.headers.get("Content-Encoding"), location)
    return Decoder(encoding, MAX_EXPANSION, "100 times", location) if encoding else None


def strong_etag(value: str | None) -> str | None:
    """Return the ETag if it guarantees the same bytes; None for a weak one."""
    return value if value and value.startswith('"') else None


def _file(url: str, name: str, headers: Mapping[str, str], size_bytes: int | None) -> SourceFile:
    etag, modified_at = headers.get("ETag"), parse_date(headers.get("Last-Modified"))
    return SourceFile(
        path=url,
        name=name,
        size_bytes=None if codings_in(headers.get("Content-Encoding")) else size_bytes,
        modified_at=modified_at,
        # A weak ETag changes with compression and between servers of one host name: the time is more reliable.
        etag=strong_etag(etag) or (None if modified_at else etag),
    )


def _total(headers: Mapping[str, str]) -> int | None:
    return whole_number(headers.get("Content-Range", "").rpartition("/")[2])


def _range_start(headers: Mapping[str, str]) -> int | None:
    return whole_number(headers.get("Content-Range", "").strip().removeprefix("bytes ").partition("-")[0])


MAX_FOLDERS = 10_000
# Of one folder.
MAX_PAGES = 10_000
_MEMORY_BYTES = 8 * 1024**2


def open_http(source_config: Mapping[str, Any], context: SourceContext) -> HttpSource:
    """Create the source for the files of one listing.

    Raises:
        UnknownCredentialsError: the credentials are not stored.
    """
    return HttpSource(
        str(source_config.get("path") or ""),
        context.web,
        context.credential(source_config),
        context.limits,
        elsewhere=source_config.get("elsewhere") in (True, "true"),
        concurrency=context.polling.source_connections_per_host,
    )


@dataclass(frozen=True)
class HttpSource:
    """One listing.

    Args:
        listing: address of the listing; empty to open single files by their addresses.
        web: client for web hosts.
        credential: the job's credential, which the web client sends.
        limits: limits of time and entries.
        elsewhere: accept files outside the listing's folder.
        concurrency: number of concurrent requests for versions of files.
    """

    listing: str
    web: WebClient
    credential: Credential | None
    limits: SourceLimits
    elsewhere: bool = False
    concurrency: int = 4

    @property
    def location(self) -> str:
        """Return the listing's address without its query, which may be a signature."""
        return self._redacted(self.listing)

    def canonical_location(self, path: str) -> str:
        """Return the canonical address including its query: another query means another file."""
        try:
            return self.web.check(path).url
        except AddressRejectedError as error:
            # Even a forbidden address needs a stable name in reports.
            return error.url

    def require_allowed(self, path: str) -> None:
        """Refuse an address that may not be contacted, or that is outside the listing's folder."""
        address = self.checked(path)
        if self.listing and not self.may_hold(address, self.checked(self.listing)):
            raise ForbiddenPathError(
                address.redacted, 'it is outside of the listing\'s folder. Say "elsewhere": true in source_config.'
            )
        if self.credential is not None:
            require_for_host(self.credential, address.host, address.port, address.redacted)

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Yield the listing's links as they are read, and those of subfolders that the pattern reaches."""
        parsed = Pattern.parse(pattern)
        self.require_allowed(self.listing)
        budget = ListingBudget(self.limits, self.location)
        walk = _Walk(self, parsed, budget)

        def with_version(file: SourceFile) -> SourceFile | Skipped:
            budget.seconds_left()
            try:
                found = describe(self.web, file.path, file.name, self.limits)
            except IngestError as error:
                return budget.skipped_file(error, self._redacted(file.path))
            return found if found.size_bytes is not None else structs.replace(found, size_bytes=file.size_bytes)

        with ThreadPoolExecutor(self.concurrency, "http-versions") as pool:
            try:
                yield from _in_order(walk.files(), pool, self.concurrency, with_version)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        # Last: what its server cannot answer for keeps no other file from being announced.
        budget.end()

    def stat(self, path: str) -> SourceFile:
        """Return the server's current description of the file."""
        self.require_allowed(path)
        return describe(self.web, path, _name(self.checked(path)), self.limits)

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open one version of a file; reading resumes on a new connection if the connection breaks."""
        self.require_allowed(path)
        location = self._redacted(path)
        return resumed_reading(WebFileReader(self.web, path, location, self.limits).opened, location, self.limits)

    def checked(self, url: str) -> WebAddress:
        """Parse an address.

        Raises:
            ForbiddenPathError: the address may not be contacted.
        """
        try:
            return self.web.check(url)
        except AddressRejectedError as error:
            raise ForbiddenPathError(error.url, str(error)) from error

    def may_hold(self, address: WebAddress, listing: WebAddress) -> bool:
        """Return True if an address may contain files of this listing."""
        return self.elsewhere or _is_below(address, listing)

    def _redacted(self, url: str) -> str:
        try:
            return self.web.check(url).redacted
        except AddressRejectedError as error:
            return error.url


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to list; `relative` is empty for the first one, and ends with a slash for all others."""

    address: WebAddress
    relative: str


# A listed file, and True if its version is known.
_Found = tuple[SourceFile, bool] | Skipped


class _Walk:
    """One listing with its folders and pages.

    Args:
        source: the source.
        pattern: pattern of the files.
        budget: budget of the listing.
    """

    def __init__(self, source: HttpSource, pattern: Pattern, budget: ListingBudget) -> None:
        self._source = source
        self._pattern = pattern
        self._budget = budget
        self._root = source.checked(source.listing)
        self._waiting = deque([_Folder(self._root, "")])
        self._folders = {self._root.url}
        # Digests of all links: an index may link a name and its icon, and pages overlap.
        self._links: set[bytes] = set()
        # Number of links to files of an ingested type.
        self._files = 0

    def files(self) -> Iterator[_Found]:
        """Yield the matching files, folder by folder and page by page."""
        doubt = ""
        while self._waiting:
            folder = self._waiting.popleft()
            try:
                found = yield from self._list(folder)
            except IngestError as error:
                if not folder.relative:
                    raise
                yield self._budget.skipped_folder(error, folder.address.redacted)
            else:
                doubt = doubt or found
        if doubt and not self._files:
            raise UnreadableListingError(self._root.redacted, doubt)

    def _list(self, folder: _Folder) -> Generator[_Found, None, str]:
        """List one folder; return why its page may not be a listing; empty if it certainly is one.

        A page that is not recognised as an index counts as one if it links files; an unrecognised one without links is
        doubtful.
        """
        pages, seen, doubt, files_before = deque([folder.address]), {folder.address.url}, "", self._files
        while pages:
            requested = pages.popleft()
            address, facts, entries = self._page(requested)
            if requested == folder.address:
                self._require_same_folder(address, folder)
            doubt, base = doubt or _doubt_about(facts, address), _base(facts, address)
            for entry in self._budget.counted(entries):
                resolved = self._resolved(entry, base)
                if isinstance(resolved, Skipped):
                    yield resolved
                    continue
                link, target = resolved
                if link.is_next_page or _is_page_of(target, requested):
                    _add_page(target, address, pages, seen)
                elif not _is_above(target, address) and self._is_new(target):
                    yield from self._link(target, link, folder)
        if not doubt or self._files > files_before:
            return ""
        if folder.relative:
            raise UnreadableListingError(folder.address.redacted, doubt)
        return doubt

    def _link(self, target: WebAddress, link: Link, folder: _Folder) -> Iterator[_Found]:
        name = _name(target)
        relative = folder.relative + name
        if not urlsplit(target.url).path.endswith("/"):
            allowed = self._source.may_hold(target, self._root)
            self._files += is_readable(file_type_of(relative)) and allowed
            if self._pattern.matches(relative):
                yield self._file(target, name, link, allowed=allowed)
        elif name.startswith("."):
            yield Skipped(target.redacted, "A hidden folder.", visible=False)
        elif (
            _is_below(target, folder.address)
            and self._pattern.may_match_below(relative)
            and target.url not in self._folders
        ):
            self._folders.add(target.url)
            self._require_bounded(relative)
            self._waiting.append(_Folder(target, f"{relative}/"))

    def _file(self, address: WebAddress, name: str, link: Link, *, allowed: bool) -> _Found:
        if (skipped := refusal(address.redacted, name)) is not None:
            return skipped
        if not allowed:
            return Skipped(address.redacted, "A link that leads out of the listing's folder.")
        etag = link.etag if link.modified_at is None else strong_etag(link.etag)
        return SourceFile(address.url, name, link.size_bytes, link.modified_at, etag), link.has_version

    def _page(self, requested: WebAddress) -> tuple[WebAddress, PageFacts, Iterator[Link | Unusable]]:
        """Read one page of a listing; return the final address after redirects, the page's facts and its entries.

        The page is copied first, so that its server need not wait while the versions of files are requested.
        """
        with SpooledTemporaryFile(_MEMORY_BYTES) as copy:
            try:
                address, headers = self._copy(requested, copy)
            except SourceUnreachableError:
                # If the time of the whole listing is over, report that as the reason.
                self._budget.seconds_left()
                raise
            size = copy.tell()
            copy.seek(0)
            return address, *read_page(copy, size, headers, address.redacted)

    def _copy(self, requested: WebAddress, copy: IO[bytes]) -> tuple[WebAddress, Mapping[str, str]]:
        deadline = Deadline(self._budget.page_time())
        with web_errors(requested.redacted), self._source.web.get(requested.url, deadline) as answer:
            location = answer.address.redacted
            pieces = decoded_body(answer, decoder_of(answer, location))
            pace = pace_of(self._source.limits, location)
            while piece := pace.timed(lambda: next(pieces, b"")):
                copy.write(piece)
                if copy.tell() > MAX_PAGE_BYTES:
                    raise UnreadableListingError(location, f"it answers with more than {MAX_PAGE_BYTES} bytes")
            return answer.address, answer.headers

    def _require_same_folder(self, address: WebAddress, folder: _Folder) -> None:
        """Refuse a redirect out of the listing's folder: every link would lead out."""
        if self._source.may_hold(address, self._root):
            return
        if folder.relative:
            raise SourceAccessDeniedError(address.redacted, "it leads out of the listing's folder")
        raise ForbiddenPathError(
            self._root.redacted,
            f"it redirects to {address.redacted}, outside of its folder. Name that address as the path, or say "
            '"elsewhere": true in source_config.',
        )

    def _resolved(self, entry: Link | Unusable, base: str) -> tuple[Link, WebAddress] | Skipped:
        if isinstance(entry, Unusable):
            return Skipped(entry.shown, entry.reason)
        try:
            return entry, self._source.web.check(urljoin(base, entry.target))
        except AddressRejectedError as error:
            shown = sanitized(entry.target.partition("?")[0])
            return Skipped(shown, f"A link that may not be followed: {error.rule}.", visible="://" in entry.target)
        except ValueError:
            return Skipped(sanitized(entry.target), "A link that is no address.")

    def _is_new(self, target: WebAddress) -> bool:
        digest = blake2b(target.url.encode(), digest_size=16).digest()
        known = digest in self._links
        self._links.add(digest)
        return not known

    def _require_bounded(self, relative: str) -> None:
        if len(self._folders) > MAX_FOLDERS or relative.count("/") > MAX_DEPTH:
            raise PermanentError(
                f"{self._source.location} has more than {MAX_FOLDERS} folders, or is more than {MAX_DEPTH} levels "
                "deep. Name a folder further down."
            )


def _in_order(
    found: Iterator[_Found],
    pool: ThreadPoolExecutor,
    ahead: int,
    with_version: Callable[[SourceFile], SourceFile | Skipped],
) -> Iterator[SourceFile | Skipped]:
    """Yield the files with their versions, in order; request a few versions concurrently."""
    waiting: deque[Future[SourceFile | Skipped]] = deque()
    for entry in found:
        if isinstance(entry, Skipped):
            yield entry
        elif entry[1]:
            yield entry[0]
        else:
            waiting.append(pool.submit(with_version, entry[0]))
            if len(waiting) > 2 * ahead:
                yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _doubt_about(facts: PageFacts, address: WebAddress) -> str:
    """Return why a page may not be a listing; empty if it certainly is one.

    Raises:
        UnreadableListingError: the page is not a listing.
    """
    if facts.unusable and not facts.links:
        raise UnreadableListingError(address.redacted, f"it answers with {facts.seen}, none of which is understood")
    doubt = "" if facts.recognised else f"it answers with {facts.seen}, which is no index of a folder"
    if doubt and not facts.links:
        raise UnreadableListingError(address.redacted, doubt)
    return doubt


def _base(facts: PageFacts, address: WebAddress) -> str:
    """Return the base address of a page's links."""
    try:
        return urljoin(address.url, facts.base or "")
    except ValueError:
        raise UnreadableListingError(address.redacted, "the base of its links is no address") from None


def _add_page(target: WebAddress, page: WebAddress, pages: deque[WebAddress], seen: set[str]) -> None:
    """Add another page of the same folder, once."""
    if target.url in seen:
        return
    seen.add(target.url)
    if target.origin != page.origin:
        raise UnreadableListingError(page.redacted, f"its next page is on another host ({target.redacted})")
    if len(seen) > MAX_PAGES:
        raise UnreadableListingError(page.redacted, f"it has more than {MAX_PAGES} pages")
    pages.append(target)


def _is_page_of(target: WebAddress, page: WebAddress) -> bool:
    """Return True if a link leads to another page of the same folder, by its query."""
    there, here = urlsplit(target.url), urlsplit(page.url)
    return target.origin == page.origin and there.path == here.path and is_page_query(there.query)


def _folder_of(address: WebAddress) -> str:
    return urlsplit(address.url).path.rpartition("/")[0] + "/"


def _is_below(address: WebAddress, listing: WebAddress) -> bool:
    path = urlsplit(address.url).path
    return address.origin == listing.origin and path.startswith(_folder_of(listing)) and "/../" not in unquote(path)


def _is_above(address: WebAddress, folder: WebAddress) -> bool:
    return address.origin == folder.origin and _folder_of(folder).startswith(urlsplit(address.url).path)


def _name(address: WebAddress) -> str:
    name = urlsplit(address.url).path.rstrip("/").rpartition("/")[2]
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        # Some servers encode names in Latin-1; the address keeps their bytes.
        return unquote(name, encoding="latin-1")
