"""Files in OneLake and other ADLS Gen2 accounts, `source_type` onelake.

A job's `source_config`: `path` (`https://<host>/<workspace>/<item>.Lakehouse/Files/x`, the same with two GUIDs,
`abfss://`, or `<workspace>/<item>.Lakehouse/Files/x` at the configured endpoint) and `credentials` (a SAS or an account
key; without them the settings' own, or azure-identity's default). Each of them is used only for the accounts that the
credentials list as their `hosts`, or that a setting names. A location by names and the same one by GUIDs count as two:
the service does not reveal the name of a GUID.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO, cast

from azure.storage.filedatalake import FileSystemClient

from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SettingsError,
    SourceAccessDeniedError,
    SourceNotFoundError,
    SourceUnreachableError,
    StoreUnavailableError,
    UnreadableListingError,
)
from ingest_project.core.settings import Credential
from ingest_project.platform.azure import (
    ALLOWED_ACCOUNTS,
    AllowedAccount,
    OneLakeAddress,
    OneLakeOptions,
    StoreRejectedError,
    accounts_of,
    onelake_options,
    parse_address,
    safe_path,
)
from ingest_project.platform.azure.client import Listed, list_folder, onelake_errors, open_file, shared_file_system
from ingest_project.platform.http import parse_url, redacted_url
from ingest_project.platform.http.pinned_transport import Deadline, deadline_in_force
from ingest_project.sources import Pattern, Skipped, SourceFile, refusal, sanitized
from ingest_project.sources.reading import ListingBudget, PacedReader, SourceLimits
from ingest_project.sources.registry import SourceContext, require_for_host


def open_onelake(source_config: Mapping[str, Any], context: SourceContext) -> OneLakeSource:
    """Create the source for one folder of a file system.

    Raises:
        UnknownCredentialsError: the credentials are not stored.
        PermanentError: the credentials are for another service.
    """
    credential = context.credential(source_config)
    if credential is not None and not (credential.sas_token or credential.account_key):
        raise PermanentError("The credentials that the job names have no sas_token and no account_key.")
    path = str(source_config.get("path") or "")
    return OneLakeSource(path, onelake_options(context.settings.onelake, credential), context, credential)


@dataclass(frozen=True)
class OneLakeSource:
    """One folder.

    Args:
        path: path from the job.
        options: identity and timeouts.
        context: settings with the allowed accounts.
        credential: the job's stored credential; None to use the settings' own.
    """

    path: str
    options: OneLakeOptions
    context: SourceContext
    credential: Credential | None = None

    @property
    def limits(self) -> SourceLimits:
        """Return the limits of time and entries."""
        return self.context.limits

    @property
    def location(self) -> str:
        """Return the folder's full address."""
        return self.canonical_location(self.path)

    def address(self, path: str) -> OneLakeAddress:
        """Return the location for a path.

        Raises:
            PermanentError: the path is not an address.
            ForbiddenPathError: our credential may not be sent to this address.
        """
        address = self._parsed(path)
        if self.credential is not None and self.credential.hosts:
            account = parse_url(address.account_url)
            require_for_host(self.credential, account.host, account.port, address.url)
        elif not any(account.allows(address) for account in allowed_accounts(self.context)):
            raise ForbiddenPathError(
                address.url,
                f"no setting names this account or workspace. List it in {ALLOWED_ACCOUNTS}, as "
                f"{parse_url(address.account_url).host_and_port}/{address.file_system}.",
            )
        return address

    def canonical_location(self, path: str) -> str:
        """Return the full address, percent-encoded."""
        try:
            return self._parsed(path).url
        except PermanentError:
            # Even an impossible path needs a stable name in reports.
            return f"onelake:{redacted_url(path)}"

    def _parsed(self, path: str) -> OneLakeAddress:
        try:
            return parse_address(path, self.options.endpoint)
        except SettingsError as error:
            # The text comes from a job, not from a setting.
            raise PermanentError(str(error)) from error

    def require_allowed(self, path: str) -> None:
        """Refuse a host to which our credential may not be sent, and a path outside the source's file system."""
        found = self.address(path)
        own = self.address(self.path) if self.path else found
        if (found.account_url, found.file_system) != (own.account_url, own.file_system):
            raise ForbiddenPathError(found.url, "it is not in the file system that its source names.")

    def list_files(self, pattern: str) -> Iterator[SourceFile | Skipped]:
        """List pages of 5,000 entries: the whole tree if the pattern has `**`, otherwise level by level."""
        parsed = Pattern.parse(pattern)
        root = self.address(self.path)
        waiting, budget = [root], ListingBudget(self.limits, self.location)
        while waiting:
            folder = waiting.pop()
            try:
                for found in budget.counted_in_time(self._listed(folder, recursive=parsed.recursive)):
                    relative = _below(found.path, root)
                    if not found.is_folder:
                        yield from self._entry(found, relative, root, parsed)
                    elif not parsed.recursive and parsed.may_match_below(relative) and "/." not in f"/{relative}":
                        waiting.append(root.child(relative))
            except (SourceNotFoundError, SourceAccessDeniedError) as error:
                if folder is root:
                    raise
                yield budget.skipped_folder(error, folder.url)

    def stat(self, path: str) -> SourceFile:
        """Return the service's current description of the file."""
        address = self.address(path)
        in_time = deadline_in_force(Deadline(self.limits.page_time))
        with _mapped_errors(address.url), onelake_errors(address.url), in_time:
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
        """Open one version of a file; the SDK requests an incomplete part again."""
        address = self.address(path)
        # Cover the whole block, so that failures while reading are mapped like failures to open.
        with _mapped_errors(address.url), open_file(self._files(address), address) as file:
            yield cast("BinaryIO", io.BufferedReader(PacedReader(cast("BinaryIO", file), self.limits, address.url)))

    def _listed(self, folder: OneLakeAddress, *, recursive: bool) -> Iterator[Listed]:
        try:
            with _mapped_errors(folder.url):
                yield from list_folder(self._files(folder), folder, recursive=recursive)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            # The SDK does not handle malformed numbers and times.
            reason = f"it answers with an impossible value ({type(error).__name__})"
            raise UnreadableListingError(folder.url, reason) from error

    def _entry(
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
                yield refusal(path, name, found.size_bytes) or file
            return
        yield Skipped(sanitized(relative), "Its name cannot be requested.")

    def _files(self, address: OneLakeAddress) -> FileSystemClient:
        return shared_file_system(address.account_url, address.file_system, self.options)


@lru_cache(maxsize=4)
def allowed_accounts(context: SourceContext) -> tuple[AllowedAccount, ...]:
    """Return the accounts that the settings list, or name as a store, a table or a source.

    Raises:
        SettingsError: INGEST_ONELAKE_ENDPOINT, or an entry of INGEST_ONELAKE_ALLOWED_ACCOUNTS, is not an account.
    """
    settings = context.settings
    configured = [source.source_config for source in settings.sources.values()]
    addresses = [
        settings.storage.landing_url,
        settings.storage.quarantine_url,
        settings.attachments.store_url,
        settings.attachments.results_url,
        settings.user_activity.table_url,
        *settings.attachments.destinations.values(),
        *(str(config.get("path") or "") for config in configured if config["source_type"] == "onelake"),
    ]
    listed = map(AllowedAccount.parse, settings.onelake.allowed_accounts)
    return (*listed, *accounts_of(addresses, settings.onelake.endpoint))


@contextmanager
def _mapped_errors(location: str) -> Iterator[None]:
    try:
        yield
    except StoreRejectedError as error:
        answer = f"{error.status or ''} {error.code}".strip()
        raise SourceAccessDeniedError(
            location, f"{answer}; check the credential and its rights on this location"
        ) from error
    except StoreUnavailableError as error:
        raise SourceUnreachableError(location, str(error).partition(": ")[2] or error) from error


def _below(path: str, root: OneLakeAddress) -> str:
    """Return the path below the root by counting levels, because the service may answer with the item's GUID."""
    levels = len(root.path.split("/")) if root.path else 0
    return "/".join(path.split("/")[levels:])
