"""Files in OneLake and other ADLS Gen2 accounts, `source_type` onelake.

A job's `source_config`: `path` (`https://<host>/<workspace>/<item>.Lakehouse/Files/x`, the same with two GUIDs,
`abfss://`, or `<workspace>/<item>.Lakehouse/Files/x` at the configured endpoint) and `credentials` (a SAS or an account
key; without them the settings' own, or azure-identity's default). Whichever it is, it is used for the accounts that the
credentials list as their `hosts`, or for those that a setting names, and for no other. A place by its names and by its
GUIDs counts as two: the service does not say which name a GUID has.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, BinaryIO, cast

from azure.storage.filedatalake import FileSystemClient

from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SettingsError,
    SourceAccessDeniedError,
    SourceUnreachableError,
    StoreUnavailableError,
    UnreadableListingError,
)
from ingest_project.core.settings import Credential
from ingest_project.platform.azure.accounts import (
    ALLOWED_ACCOUNTS,
    AllowedAccount,
    OneLakeAddress,
    OneLakeOptions,
    StoreRejectedError,
    parse_address,
    safe_path,
)
from ingest_project.platform.azure.client import Listed, list_folder, onelake_errors, open_file, open_file_system
from ingest_project.platform.http.deadlines import Deadline, deadline_in_force
from ingest_project.platform.http.urls import parse_url, printable_url
from ingest_project.sources.context import SourceContext, named_credential, require_for_host
from ingest_project.sources.limits import ListingBudget, PacedReader, SourceLimits, within_budget
from ingest_project.sources.protocol import Skipped, SourceFile
from ingest_project.sources.selection import Pattern, refusal

# Which file system is asked for is a message's word, and a client takes megabytes.
KEPT_CLIENTS = 32


def open_onelake(source_config: Mapping[str, Any], access: SourceContext) -> OneLakeSource:
    """One folder of a file system.

    Raises:
        UnknownCredentialsError: it names some that are not stored.
        PermanentError: its credentials are for something else.
    """
    credential = named_credential(source_config, access.credentials)
    if credential is not None and not (credential.sas_token or credential.account_key):
        raise PermanentError("The credentials that the job names have no sas_token and no account_key.")
    path = str(source_config.get("path") or "")
    options = access.clients.onelake_options(credential)
    return OneLakeSource(path, options, access.clients.accounts, credential, SourceLimits.of(access.settings))


@dataclass(frozen=True)
class OneLakeSource:
    """One folder.

    Args:
        path: as the job names it.
        options: who we are, and how patient.
        accounts: that a setting names.
        credential: the stored one that the job names; None where the settings' own is used.
        limits: what it may take.
    """

    path: str
    options: OneLakeOptions
    accounts: Callable[[], tuple[AllowedAccount, ...]] = tuple
    credential: Credential | None = None
    limits: SourceLimits = field(default_factory=SourceLimits)

    @property
    def location(self) -> str:
        """The folder's full address."""
        return self.canonical_location(self.path)

    def address(self, path: str) -> OneLakeAddress:
        """The place that a path names.

        Raises:
            PermanentError: it names none.
            ForbiddenPathError: one that gets no credential of ours.
        """
        address = self._parsed(path)
        if self.credential is not None and self.credential.hosts:
            account = parse_url(address.account_url)
            require_for_host(self.credential, account.host, account.port, address.url)
        elif not any(account.allows(address) for account in self.accounts()):
            raise ForbiddenPathError(
                address.url,
                f"no setting names this account or workspace. List it in {ALLOWED_ACCOUNTS}, as "
                f"{parse_url(address.account_url).host_and_port}/{address.file_system}.",
            )
        return address

    def canonical_location(self, path: str) -> str:
        """The full address, percent-encoded."""
        try:
            return self._parsed(path).url
        except PermanentError:
            # A path that no file can have still needs a stable name in reports.
            return f"onelake:{printable_url(path)}"

    def _parsed(self, path: str) -> OneLakeAddress:
        try:
            return parse_address(path, self.options.endpoint)
        except SettingsError as error:
            # What a job names is no setting.
            raise PermanentError(str(error)) from error

    def require_allowed(self, path: str) -> None:
        """Refuse a host that gets no credential of ours, and a path outside of the source's own file system."""
        found = self.address(path)
        own = self.address(self.path) if self.path else found
        if (found.account_url, found.file_system) != (own.account_url, own.file_system):
            raise ForbiddenPathError(found.url, "it is not in the file system that its source names.")

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """Page by page of 5,000: all below the folder at once where the pattern has `**`, level by level if not."""
        parsed = Pattern.parse(pattern)
        root = self.address(self.path)
        waiting, budget = [root], ListingBudget(self.limits, self.location)
        while waiting:
            folder = waiting.pop()
            for found in within_budget(self._listed(folder, recursive=parsed.recursive), budget):
                relative = _below(found.path, root)
                if not found.is_folder:
                    yield from self._looked_at(found, relative, root, parsed)
                elif not parsed.recursive and parsed.may_match_below(relative) and not _is_hidden(relative):
                    waiting.append(root.child(relative))

    def stat(self, path: str) -> SourceFile:
        """What the service says about the file that is there now."""
        address = self.address(path)
        in_time = deadline_in_force(Deadline(self.limits.page_time))
        with _told_as_source(address.url), onelake_errors(address.url), in_time:
            found = self._files(address).get_file_client(address.path).get_file_properties()
        if (found.metadata or {}).get("hdi_isfolder") == "true":
            raise ForbiddenPathError(address.url, "it is not a regular file.")
        return SourceFile(
            path=address.url,
            name=address.path.rpartition("/")[2],
            size_bytes=found.size,
            modified_at=found.last_modified,
            etag=(found.etag or "").strip('"') or None,
        )

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """The file's bytes, all of one version; the SDK asks again for a part that was cut off."""
        address = self.address(path)
        # Around the whole block: what fails while it is read is told like what fails when it is opened.
        with _told_as_source(address.url), open_file(self._files(address), address) as file:
            yield cast("BinaryIO", io.BufferedReader(PacedReader(cast("BinaryIO", file), self.limits, address.url)))

    def _listed(self, folder: OneLakeAddress, *, recursive: bool) -> Iterator[Listed]:
        try:
            with _told_as_source(folder.url):
                yield from list_folder(self._files(folder), folder, recursive=recursive)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            # The SDK reads numbers and times without a guard.
            said = f"it answers with an impossible value ({type(error).__name__})"
            raise UnreadableListingError(folder.url, said) from error

    def _looked_at(
        self, found: Listed, relative: str, root: OneLakeAddress, pattern: Pattern
    ) -> Iterator[SourceFile | Skipped]:
        if not pattern.matches(relative):
            return
        *folders, name = relative.split("/")
        with suppress(ForbiddenPathError):
            path = root.child(safe_path(relative)).url
            if any(folder.startswith(".") for folder in folders):
                yield Skipped(path, "A file in a hidden folder.", visible=False)
            else:
                file = SourceFile(path, name, found.size_bytes, found.modified_at, found.etag or None, location=path)
                yield refusal(path, name) or file
            return
        yield Skipped(relative.encode("utf-8", "replace").decode(), "Its name cannot be asked for.")

    def _files(self, address: OneLakeAddress) -> FileSystemClient:
        return _file_system(address.account_url, address.file_system, self.options)


@lru_cache(maxsize=KEPT_CLIENTS)
def _file_system(account_url: str, file_system: str, options: OneLakeOptions) -> FileSystemClient:
    """One client for each file system and credential, whose connections all files of a process share."""
    return open_file_system(OneLakeAddress(account_url, file_system), options)


@contextmanager
def _told_as_source(location: str) -> Iterator[None]:
    try:
        yield
    except StoreRejectedError as error:
        said = f"{error.status or ''} {error.code}".strip()
        raise SourceAccessDeniedError(location, f"{said}; check the credential and its rights on this place") from error
    except StoreUnavailableError as error:
        raise SourceUnreachableError(location, str(error).partition(": ")[2] or error) from error


def _below(path: str, root: OneLakeAddress) -> str:
    """The path of a file below the root, counted in levels: the service may answer with the item's GUID."""
    levels = len(root.path.split("/")) if root.path else 0
    return "/".join(path.split("/")[levels:])


def _is_hidden(relative: str) -> bool:
    return relative.rpartition("/")[2].startswith(".")
