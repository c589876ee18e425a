"""Locate Delta tables, build the credentials and options that delta-rs needs, and map its errors.

A table's address is a local folder, `s3://bucket/prefix`, `abfss://filesystem@account.dfs.core.windows.net/path`, or
OneLake's `https://onelake.dfs.fabric.microsoft.com/<workspace GUID>/<item GUID>/Tables/<name>`. Use GUIDs on OneLake:
with friendly names, listing from a start name failed there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from ingest_project.core.errors import (
    SchemaConflictError,
    SettingsError,
    StoreUnavailableError,
    TransactionConflictError,
    TransientError,
)
from ingest_project.core.secrets import SecretReference, text_of
from ingest_project.core.settings import Settings
from ingest_project.platform.azure import OneLakeCredential, onelake_options
from ingest_project.platform.http import MalformedAddressError, host_and_port, redacted_url, split_address
from ingest_project.platform.object_store.store import Bucket, S3Options, location_of, s3_options

STORAGE_SCOPE = "https://storage.azure.com/.default"
AZURE_SCHEMES = ("abfss", "abfs")
# A token counts as expired if it could expire during one slow commit.
TOKEN_MARGIN = timedelta(minutes=5)
# Timeouts of one request and of all its attempts: a run must learn within about a minute that its store is unreachable.
NETWORK_OPTIONS = {"timeout": "60s", "connect_timeout": "10s", "max_retries": "4", "retry_timeout": "60s"}
LONGEST_REASON = 500
# Errors for names that a store rejects: a partition's folder is named after a row's value.
REFUSED_NAMES = ("file name too long", "os error 36", "key too long", "keytoolong", "invalid argument", "os error 22")
NO_SPACE = ("no space left", "os error 28", "quota", "os error 122")
# delta-rs raises these as failed commits as well, like conflicts.
REFUSED_COMMITS = ("table features", "append-only")
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# A signed address is a secret.
SIGNATURE = re.compile(r"(?i)(\b(?:sig|x-amz-signature|x-amz-credential|x-amz-security-token)=)[^&\s\"']+")


@dataclass(frozen=True)
class TableFigures:
    """Figures of a table at one version. `rows` is None if a writer did not record the row counts of its files."""

    table_version: int
    files: int
    rows: int | None
    size_bytes: int


@dataclass(frozen=True)
class DeltaCredentials:
    """Credentials for every kind of location; a local folder needs none."""

    s3: S3Options = field(default_factory=S3Options)
    azure: OneLakeCredential = field(default_factory=OneLakeCredential)


@dataclass(frozen=True)
class DeltaLocation:
    """One table's address and credentials."""

    url: str
    credentials: DeltaCredentials = field(default_factory=DeltaCredentials)

    @property
    def is_local(self) -> bool:
        """Return True if the location is a folder of this machine."""
        return "://" not in self.url


@dataclass(frozen=True)
class StorageOptions:
    """Options for delta-rs, and when they expire.

    Args:
        ends_at: time of their expiry, UTC; None if they do not expire.
        secret: secret whose value is one of the options; they expire when it changes.
    """

    values: dict[str, str] = field(repr=False)
    ends_at: datetime | None = None
    secret: str | SecretStr | None = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        """Return True if the options have expired, so that a handle opened with them must be reopened."""
        if self.ends_at is not None and datetime.now(UTC) >= self.ends_at:
            return True
        present = text_of(self.secret).removeprefix("?") if isinstance(self.secret, SecretReference) else None
        return present is not None and present not in self.values.values()


def delta_location(url: str, credentials: DeltaCredentials | None = None) -> DeltaLocation:
    """Return a table's location, with its address in the form that delta-rs needs.

    Raises:
        SettingsError: the address is malformed or of an unsupported kind.
    """
    credentials = credentials or DeltaCredentials()
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SettingsError(f"{redacted_url(url)} is no address: {error}.") from None
    if parts.scheme in AZURE_SCHEMES or (parts.scheme == "https" and ".dfs." in parts.netloc):
        return DeltaLocation(_abfss(url), credentials)
    if parts.scheme not in ("", "file", "s3"):
        raise SettingsError(f"{url} cannot hold a Delta table. Use a folder, s3://, abfss:// or OneLake's https://.")
    location = location_of(url)
    if isinstance(location, Bucket):
        return DeltaLocation(location.url.rstrip("/"), credentials)
    return DeltaLocation(str(location.absolute()), credentials)


def storage_options(location: DeltaLocation) -> StorageOptions:
    """Return the options that delta-rs needs for a location, with a new token if the location needs one.

    Raises:
        StoreUnavailableError: there is no token now.
    """
    if location.is_local:
        return StorageOptions({})
    if location.url.startswith("s3://"):
        s3 = location.credentials.s3
        return StorageOptions(NETWORK_OPTIONS | _s3_options(s3), secret=s3.secret_access_key)
    return _azure_options(location)


def delta_credentials(settings: Settings) -> DeltaCredentials:
    """Return the configured credentials for every kind of location."""
    return DeltaCredentials(s3_options(settings.storage), onelake_options(settings.onelake).credential)


def reason_of(error: BaseException) -> str:
    """Return an error as one line: delta-rs prints a tree of causes and its own stack.

    A long text is cut in the middle, where paths are: the system's own message is at its end.
    """
    text = TERMINAL_COLOURS.sub("", str(error)).split("\n   0: ")[0].split("\nPreview of ")[0].replace("↳", "<-")
    text = SIGNATURE.sub(r"\1***", " ".join(text.split()))
    half = LONGEST_REASON // 2
    return text if len(text) <= LONGEST_REASON else f"{text[:half]} … {text[-half:]}"


def may_be_a_rows_fault(error: Exception) -> bool:
    """Return True for an error that a row may have caused; False for the store, its disk, the schema or another writer.

    An unreachable store cannot always be distinguished: try a commit without that row to confirm.
    """
    if isinstance(error, StoreUnavailableError) and (cause := error.__cause__):
        text = str(cause).lower()
        if isinstance(cause, OSError):
            return any(sign in text for sign in REFUSED_NAMES)
        return not any(sign in text for sign in NO_SPACE)
    return not isinstance(error, TransientError | SchemaConflictError | SettingsError | MemoryError)


@contextmanager
def delta_errors(location: DeltaLocation) -> Iterator[None]:
    """Map a failure of delta-rs or of its storage to an error of this project.

    Raises:
        TransactionConflictError: another writer conflicted.
        StoreUnavailableError: the store is unreachable, refused the request or is full, or this is not a Delta table,
            or one that delta-rs cannot or may not write.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError  # a heavy import, already loaded at this point

    try:
        yield
    except (DeltaError, OSError) as error:
        reason = reason_of(error)
        is_conflict = isinstance(error, CommitFailedError) and not any(sign in reason for sign in REFUSED_COMMITS)
        raise (TransactionConflictError if is_conflict else StoreUnavailableError)(location.url, reason) from error


def _abfss(url: str) -> str:
    """Return the address in the form that delta-rs needs, rebuilt from its parts."""
    try:
        parts = split_address(url, ("https", *AZURE_SCHEMES), with_user=not url.lower().startswith("https"))
        reason = "" if parts.query is None and parts.fragment is None else "it carries a query, which may be a secret"
    except MalformedAddressError as error:
        reason = error.reason
    if reason:
        raise SettingsError(f"{redacted_url(url)} names no table: {reason}.")
    scheme, filesystem, path = parts.scheme, parts.user, parts.path.strip("/")
    if scheme == "https":
        scheme, (filesystem, _, path) = "abfss", unquote(parts.path).strip("/").partition("/")
    if not filesystem or "/" in filesystem or not path:
        raise SettingsError(
            f"{redacted_url(url)} names no table: abfss://<file system>@<account>.dfs.<domain>/<path> or "
            "https://<account>.dfs.<domain>/<file system>/<path> is expected."
        )
    return f"{scheme}://{filesystem}@{host_and_port(parts.host, parts.port)}/{path}"


def _s3_options(options: S3Options) -> dict[str, str]:
    # A commit is a conditional PUT, which S3 refuses if the name exists: two writers never both get version N.
    values = {"aws_conditional_put": "etag"}
    if options.endpoint_url:
        values |= {"aws_endpoint_url": options.endpoint_url, "aws_virtual_hosted_style_request": "false"}
        values["aws_allow_http"] = str(options.endpoint_url.startswith("http://")).lower()
    named = {
        "aws_region": options.region,
        "aws_access_key_id": options.access_key_id,
        "aws_secret_access_key": text_of(options.secret_access_key or ""),
    }
    return values | {name: value for name, value in named.items() if value}


def _azure_options(location: DeltaLocation) -> StorageOptions:
    credential = location.credentials.azure
    secrets = {"azure_storage_sas_token": credential.sas, "azure_storage_account_key": credential.account_key}
    for name, secret in secrets.items():
        if secret:
            return StorageOptions(NETWORK_OPTIONS | {name: text_of(secret).removeprefix("?")}, secret=secret)
    from azure.core.exceptions import AzureError

    from ingest_project.platform.azure.identity import default_credential  # takes 0.3 s; a SAS or key needs none

    try:
        # The credential caches its token until it expires, so that a call costs nothing.
        token = default_credential().get_token(STORAGE_SCOPE)
    except AzureError as error:
        # Without a cause: no row is at fault.
        raise StoreUnavailableError(location.url, reason_of(error)) from None
    ends_at = datetime.fromtimestamp(token.expires_on, UTC) - TOKEN_MARGIN
    return StorageOptions(NETWORK_OPTIONS | {"azure_storage_token": token.token}, ends_at)
