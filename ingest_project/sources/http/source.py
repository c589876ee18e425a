"""Files that a web server lists, `source_type` http: an auto-index page, a JSON list, or a plain list of links.

A job's `source_config`: `path` (address of the listing), `credentials` (they go to their own hosts only), `elsewhere`
(true: links may lead out of the listing's folder, to any address that may be contacted). What may be contacted at all
is what the web client's rules allow, at every redirect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import chain
from tempfile import SpooledTemporaryFile
from typing import IO, Any, BinaryIO
from urllib.parse import unquote, urljoin, urlsplit

from ingest_project.contracts.files import INGESTIBLE_TYPES, file_type_of
from ingest_project.core.errors import (
    AddressRejectedError,
    ForbiddenPathError,
    PermanentError,
    SourceAccessDeniedError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnreadableListingError,
)
from ingest_project.core.settings import Credential
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.deadlines import Deadline
from ingest_project.platform.http.urls import WebAddress
from ingest_project.sources.context import SourceContext, named_credential, require_for_host
from ingest_project.sources.http.files import (
    WebFileReader,
    decoded_body,
    decoder_of,
    described,
    strong_etag,
    web_errors,
)
from ingest_project.sources.http.listing import MAX_PAGE_BYTES, read_page
from ingest_project.sources.http.page import Link, Page, Unusable, next_links, printable, unfinished_by
from ingest_project.sources.http.parsers import is_page_query
from ingest_project.sources.limits import ListingBudget, Pace, SourceLimits
from ingest_project.sources.protocol import Skipped, SourceFile
from ingest_project.sources.resumed_reading import resumed_reading
from ingest_project.sources.selection import Pattern, refusal

MEMORY_BYTES = 8 * 1024**2
MAX_FOLDERS = 10_000
MAX_DEPTH = 32
# Of one folder.
MAX_PAGES = 10_000
NO_LISTING: Mapping[type[PermanentError], str] = {
    SourceNotFoundError: "A folder that was removed meanwhile.",
    SourceAccessDeniedError: "A folder that its server does not let us into.",
    UnreadableListingError: "A folder whose page is no listing that can be read.",
}


def open_http(source_config: Mapping[str, Any], access: SourceContext) -> HttpSource:
    """Files that one listing names.

    Raises:
        UnknownCredentialsError: it names some that are not stored.
    """
    return HttpSource(
        str(source_config.get("path") or ""),
        access.clients.web,
        named_credential(source_config, access.credentials),
        elsewhere=source_config.get("elsewhere") in (True, "true"),
        concurrency=access.settings.source_connections_per_host,
        limits=SourceLimits.of(access.settings),
    )


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder to look into; `below` is empty for the first one, and ends with a slash for all others."""

    address: WebAddress
    below: str


@dataclass
class _Look:
    """One look at a listing.

    Args:
        root: the listing's own address.
        waiting: folders that are still to be looked into.
        folders: addresses of all folders so far.
        files: how many files of a type that is ingested were linked.
        doubt: why the first page may be no listing at all; empty without a doubt.
        known: digests of what was linked.
    """

    root: WebAddress
    waiting: deque[_Folder]
    folders: set[str]
    files: int = 0
    doubt: str = ""
    known: set[bytes] = field(default_factory=set)

    def is_new(self, target: WebAddress) -> bool:
        """Whether it was not met before: an index may link a name and its icon, and pages overlap."""
        digest = blake2b(target.url.encode(), digest_size=16).digest()
        known = digest in self.known
        self.known.add(digest)
        return not known


@dataclass(frozen=True)
class HttpSource:
    """One listing.

    Args:
        listing: its address; empty where a single file is opened by its own.
        client: makes the web client.
        credential: that the job names; the web client sends it by itself.
        elsewhere: whether files may lie outside of the listing's folder.
        concurrency: files that are asked for their version at a time.
        limits: what it may take.
    """

    listing: str
    client: Callable[[], WebClient]
    credential: Credential | None = None
    elsewhere: bool = False
    concurrency: int = 4
    limits: SourceLimits = field(default_factory=SourceLimits)

    @property
    def location(self) -> str:
        """The listing's address, without a query, which may be a signature."""
        return self._printable(self.listing)

    def canonical_location(self, path: str) -> str:
        """The address in its one spelling, its query included: another query is another file."""
        try:
            return self.client().check(path).url
        except AddressRejectedError:
            # An address that may not be asked for still needs a stable name in reports.
            return self._printable(path)

    def require_allowed(self, path: str) -> None:
        """Refuse an address that may not be contacted, or that lies outside of the listing's folder."""
        address = self._checked(path)
        if self.listing and not self.elsewhere and not _is_below(address, self._checked(self.listing)):
            raise ForbiddenPathError(
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
                budget = ListingBudget(self.limits, self.location)
                versioned = partial(self._versioned, budget)
                yield from _in_order(self._found(parsed, budget), pool, self.concurrency, versioned)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def stat(self, path: str) -> SourceFile:
        """What the server says about the file now."""
        self.require_allowed(path)
        return described(self.client(), path, _name(self._checked(path)), self.limits)

    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """The file's bytes; a cut connection is replaced and the reading goes on, of the same version."""
        self.require_allowed(path)
        location = self._printable(path)
        reader = WebFileReader(self.client(), path, location, self.limits)
        return resumed_reading(reader.opened, location, self.limits)

    def _found(self, pattern: Pattern, budget: ListingBudget) -> Iterator[tuple[SourceFile, bool] | Skipped]:
        """Files, each with whether its version is known, folder by folder and page by page."""
        root = self._checked(self.listing)
        look = _Look(root, deque([_Folder(root, "")]), {root.url})
        while look.waiting:
            folder = look.waiting.popleft()
            try:
                yield from self._looked_into(folder, look, pattern, budget)
            except (SourceNotFoundError, SourceAccessDeniedError, UnreadableListingError) as error:
                if not folder.below:
                    raise
                # The rest of the listing is; one that was removed meanwhile is none of anybody's business.
                visible = not isinstance(error, SourceNotFoundError)
                yield Skipped(folder.address.printable, NO_LISTING[type(error)], visible=visible)
        if look.doubt and not look.files:
            raise UnreadableListingError(root.printable, look.doubt)

    def _looked_into(
        self, folder: _Folder, look: _Look, pattern: Pattern, budget: ListingBudget
    ) -> Iterator[tuple[SourceFile, bool] | Skipped]:
        pages, seen, doubt, files_before = deque([folder.address]), {folder.address.url}, "", look.files
        while pages:
            asked = pages.popleft()
            address, base, page = self._page(asked, budget)
            if asked == folder.address:
                self._require_same_place(address, folder, look.root)
            doubt = doubt or _doubt_about(page, address)
            for entry in self._resolved(budget.counted(page.entries), base):
                if isinstance(entry, Skipped):
                    yield entry
                    continue
                link, target = entry
                if link.leads_on or _is_page_of(target, asked):
                    _add_page(target, address, pages, seen)
                elif not _is_above(target, address) and look.is_new(target):
                    yield from self._entry(target, link, folder, look, pattern)
        # A page that is no index for certain is one if it leads to files. Without any it is not known to be empty.
        if doubt and look.files == files_before:
            if folder.below:
                raise UnreadableListingError(folder.address.printable, doubt)
            look.doubt = doubt

    def _entry(
        self, target: WebAddress, link: Link, folder: _Folder, look: _Look, pattern: Pattern
    ) -> Iterator[tuple[SourceFile, bool] | Skipped]:
        relative = folder.below + _name(target)
        if not _is_folder(target):
            look.files += file_type_of(relative) in INGESTIBLE_TYPES and self._may_hold(target, look.root)
            yield from self._file(target, link, relative, pattern, look.root)
        elif _name(target).startswith("."):
            yield Skipped(target.printable, "A hidden folder.", visible=False)
        elif _is_below(target, folder.address) and pattern.may_match_below(relative) and target.url not in look.folders:
            look.folders.add(target.url)
            self._require_bounded(len(look.folders), relative)
            look.waiting.append(_Folder(target, f"{relative}/"))

    def _page(self, asked: WebAddress, budget: ListingBudget) -> tuple[WebAddress, str, Page]:
        """One page of a listing: the address that answered in the end, what its links are relative to, and its entries.

        It is copied first: its server must not wait while its files are asked for.
        """
        with SpooledTemporaryFile(MEMORY_BYTES) as copy:
            try:
                address, headers = self._read(asked, copy, budget)
            except SourceUnreachableError:
                # Where the time of the whole was over, that is what went wrong.
                budget.seconds_left()
                raise
            size = copy.tell()
            copy.seek(0)
            page = read_page(copy, size, headers.get("Content-Type", ""), address.printable)
        unfinished = page.facts.unfinished or unfinished_by(headers)
        if unfinished:
            raise UnreadableListingError(address.printable, unfinished)
        page.entries = chain(page.entries, next_links(headers))
        try:
            return address, urljoin(address.url, page.facts.base or ""), page
        except ValueError:
            raise UnreadableListingError(address.printable, "the base of its links is no address") from None

    def _read(self, asked: WebAddress, copy: IO[bytes], budget: ListingBudget) -> tuple[WebAddress, Mapping[str, str]]:
        deadline = Deadline(budget.page_time())
        with web_errors(asked.printable), self.client().get(asked.url, deadline) as answer:
            location = answer.address.printable
            pieces = decoded_body(answer, location, decoder_of(answer, location))
            pace = Pace(self.limits, location)
            while piece := pace.timed(lambda: next(pieces, b"")):
                copy.write(piece)
                if copy.tell() > MAX_PAGE_BYTES:
                    raise UnreadableListingError(location, f"it answers with more than {MAX_PAGE_BYTES} bytes")
            return answer.address, answer.headers

    def _require_same_place(self, address: WebAddress, folder: _Folder, root: WebAddress) -> None:
        """A redirect to another place would make every link one that leads out."""
        if self._may_hold(address, root):
            return
        if folder.below:
            raise SourceAccessDeniedError(address.printable, "it leads out of the listing's folder")
        raise ForbiddenPathError(
            root.printable,
            f"it redirects to {address.printable}, outside of its folder. Name that address as the path, or say "
            '"elsewhere": true in source_config.',
        )

    def _resolved(self, entries: Iterator[Link | Unusable], base: str) -> Iterator[tuple[Link, WebAddress] | Skipped]:
        for entry in entries:
            if isinstance(entry, Unusable):
                yield Skipped(entry.shown, entry.reason)
                continue
            try:
                yield entry, self.client().check(urljoin(base, entry.target))
            except AddressRejectedError as error:
                shown = printable(entry.target.partition("?")[0])
                yield Skipped(shown, f"A link that may not be followed: {error.rule}.", visible="://" in entry.target)
            except ValueError:
                yield Skipped(printable(entry.target), "A link that is no address.")

    def _may_hold(self, address: WebAddress, root: WebAddress) -> bool:
        return self.elsewhere or _is_below(address, root)

    def _file(
        self, address: WebAddress, link: Link, relative: str, pattern: Pattern, root: WebAddress
    ) -> Iterator[tuple[SourceFile, bool] | Skipped]:
        if not pattern.matches(relative):
            return
        name = _name(address)
        if (skipped := refusal(address.printable, name)) is not None:
            yield skipped
        elif not self._may_hold(address, root):
            yield Skipped(address.printable, "A link that leads out of the listing's folder.")
        else:
            etag = link.etag if link.modified_at is None else strong_etag(link.etag)
            file = SourceFile(address.url, name, link.size_bytes, link.modified_at, etag)
            yield file, link.tells_version

    def _versioned(self, budget: ListingBudget, file: SourceFile) -> SourceFile | Skipped:
        budget.seconds_left()
        try:
            found = described(self.client(), file.path, file.name, self.limits)
        except SourceNotFoundError:
            return Skipped(self._printable(file.path), "It was removed while the listing was read.")
        except (SourceAccessDeniedError, ForbiddenPathError) as error:
            return Skipped(self._printable(file.path), f"No access: {error.reason.rstrip('.')}.")
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
        except AddressRejectedError as error:
            raise ForbiddenPathError(error.url, str(error)) from error

    def _printable(self, url: str) -> str:
        try:
            return self.client().check(url).printable
        except AddressRejectedError as error:
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


def _doubt_about(page: Page, address: WebAddress) -> str:
    """Why a page may be no listing; empty where it is one for certain.

    Raises:
        UnreadableListingError: it is none.
    """
    facts = page.facts
    if facts.unusable and not facts.links:
        raise UnreadableListingError(address.printable, f"it answers with {facts.seen}, none of which is understood")
    doubt = "" if facts.recognised else f"it answers with {facts.seen}, which is no index of a folder"
    if doubt and not facts.links:
        raise UnreadableListingError(address.printable, doubt)
    return doubt


def _add_page(target: WebAddress, page: WebAddress, pages: deque[WebAddress], seen: set[str]) -> None:
    """Have a further page of the same folder read, once."""
    if target.url in seen:
        return
    seen.add(target.url)
    if target.origin != page.origin:
        raise UnreadableListingError(page.printable, f"its next page is on another host ({target.printable})")
    if len(seen) > MAX_PAGES:
        raise UnreadableListingError(page.printable, f"it has more than {MAX_PAGES} pages")
    pages.append(target)


def _is_page_of(target: WebAddress, page: WebAddress) -> bool:
    """Whether a link leads to the same folder by another query that names a page."""
    there, here = urlsplit(target.url), urlsplit(page.url)
    return target.origin == page.origin and there.path == here.path and is_page_query(there.query)


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
    name = urlsplit(address.url).path.rstrip("/").rpartition("/")[2]
    try:
        return unquote(name, errors="strict")
    except UnicodeDecodeError:
        # Names of servers that write latin-1; the address keeps their bytes.
        return unquote(name, encoding="latin-1")
