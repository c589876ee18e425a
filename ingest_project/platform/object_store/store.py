"""The interface of object stores, with three back ends: a local folder, S3, and OneLake or another ADLS Gen2 account.

Each back end gives the same guarantees. A reader never sees a partial object: content gets its final name atomically,
after its length and digest were verified. Storing is idempotent. A killed writer leaves nothing under a final name.
Memory use does not grow with the object, and threads may share a store.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from pydantic import SecretStr

from ingest_project.core.errors import ForbiddenPathError, PermanentError, SettingsError, StoreUnavailableError
from ingest_project.core.local_files import LocalFile
from ingest_project.core.settings import Settings, StorageSettings
from ingest_project.platform.azure import OneLakeOptions, safe_path

# Names of the metadata with the digest of the content, and with its declared media type.
SHA256 = "sha256"
CONTENT_TYPE = "content_type"
# File systems accept 255 bytes, and the name of a hidden description is six characters longer than its file's.
MAX_PART_BYTES = 240
# Characters of all values as headers carry them: S3, which takes least, accepts 2 KB with the names and the digest.
MAX_VALUES_LENGTH = 1_700
MAX_CONFLICTS = 10
_PLAIN = "!#$&'()*+,/:;=?@[]-._~"
_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_CONTENT_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}", re.ASCII)


@dataclass(frozen=True)
class S3Options:
    """Connection options of S3. boto3's own configuration replaces a None.

    Args:
        endpoint_url: address of a server other than Amazon's.
    """

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | SecretStr | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Bucket:
    """A prefix of an S3 bucket; the prefix is empty or ends with a slash."""

    name: str
    prefix: str

    @property
    def url(self) -> str:
        """Return the address in the form of a setting."""
        return f"s3://{self.name}/{self.prefix}"


@dataclass(frozen=True)
class StoredObject:
    """An object in a store.

    Args:
        location: location for people and results: a file's path, or an s3:// or https:// address.
        size_bytes: size of the content; UNFINISHED if its name is claimed but the content is not stored yet.
        metadata: metadata of the object.
        version: version of the content, if the service has versions.
    """

    location: str
    size_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    version: str = field(default="", compare=False)


UNFINISHED = -1

MayReplace = Callable[[StoredObject], bool]
"""Decides about an object that has the name already: True replaces it, False keeps it, an exception refuses."""


class ObjectStore(Protocol):
    """Objects by relative name, parts separated by `/`.

    Raises:
        ForbiddenPathError: from every method: the name leads out of the store, is hidden, or is too long.
        StoreUnavailableError: from every method: the store cannot be used at the moment.
        PermanentError: from every method: the store refuses permanently.
    """

    @property
    def scratch(self) -> Path:
        """Return the folder for files that will be stored: a store on the same disk links them instead of copying."""

    def location(self, name: str) -> str:
        """Return the location that an object of this name has or would have, for people."""

    def put(
        self,
        name: str,
        content: LocalFile | bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        may_replace: MayReplace | None = None,
    ) -> StoredObject:
        """Store an object. Idempotent.

        Args:
            name: name of the object.
            content: complete file that is not modified afterwards, or a small content.
            metadata: metadata to store with it, see `kept_metadata`.
            may_replace: decides if an existing object may be replaced. The store replaces only exactly the accepted
                version, even with concurrent writers. None replaces any object.

        Returns:
            the object that has the name afterwards: the new one, or the existing one if it may not be replaced.

        Raises:
            SourceNotFoundError, SourceChangedError: the local file is missing or has changed; nothing is stored.
        """

    def stat(self, name: str) -> StoredObject | None:
        """Return the object's size and metadata; None if it does not exist."""

    def local_path(self, name: str) -> AbstractContextManager[Path]:
        """Open a local file with the content for reading: the file itself, or a temporary copy of a remote one.

        Raises:
            SourceNotFoundError: the object does not exist.
        """

    def remove(self, name: str) -> None:
        """Remove an object. Idempotent."""

    def remove_orphaned(self, older_than: timedelta) -> int:
        """Remove the temporary data of killed writers and return the number of removed items."""


@dataclass(frozen=True)
class StoreOptions:
    """How to reach stores.

    Args:
        s3: connection options of S3.
        onelake: connection options of OneLake.
        settings: settings of this process, for the stores of other packages; None in a tool without settings.
    """

    s3: S3Options = field(default_factory=S3Options)
    onelake: OneLakeOptions = field(default_factory=OneLakeOptions)
    settings: Settings | None = None


StoreFactory = Callable[[str, StoreOptions], ObjectStore]
"""Makes the store at an address; contacts nothing remote."""


class ConflictError(Exception):
    """A conditional write found a version other than the expected one.

    Args:
        error: error to raise if the object turns out not to exist.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error
        super().__init__(str(error))


def write_conditionally(
    write: Callable[[StoredObject | None], object],
    present: StoredObject | None,
    stat: Callable[[], StoredObject | None],
    may_replace: MayReplace,
) -> StoredObject | None:
    """Replace only the version that `may_replace` accepted; check the present version again after each conflict.

    Args:
        write: writes if the store has this version, or no object for None; raises ConflictError otherwise.
        present: the version that was accepted; None if no object is expected.
        stat: returns the present version.
        may_replace: see `ObjectStore.put`.

    Returns:
        the present object if it may not be replaced; None if this call wrote.

    Raises:
        StoreUnavailableError: other writers interfered at every attempt.
    """
    for _ in range(MAX_CONFLICTS):
        try:
            write(present)
        except ConflictError as conflict:
            # Another writer was faster, or the answer to an earlier attempt was lost.
            present = stat()
            if present is None:
                raise conflict.error from None
        else:
            return None
        if not may_replace(present):
            return present
    raise StoreUnavailableError(present.location if present else "", "other writers interfered at every attempt")


def require_safe_name(name: str) -> str:
    """Return the name without slashes at its end.

    Raises:
        ForbiddenPathError: the name is absolute, has `..`, empty or overlong parts, or is hidden: names that start with
            a dot are reserved for the store.
    """
    if name.startswith("/"):
        raise ForbiddenPathError(name[:200], "a name is relative to its store.")
    parts = safe_path(name).split("/")
    if any(part.startswith(".") for part in parts):
        raise ForbiddenPathError(name[:200], "names that start with a dot are the store's own.")
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise ForbiddenPathError(name[:200], f"a part of it has more than {MAX_PART_BYTES} bytes.")
    return "/".join(parts)


def kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata as every back end keeps it: names in lower case, and no empty values.

    What every store has room for is kept, the first values first: of the others the beginning, or nothing.

    Raises:
        PermanentError: a name is not valid in a header.
    """
    kept, room = {}, MAX_VALUES_LENGTH
    for name, value in metadata.items():
        if not _METADATA_NAME.fullmatch(name):
            raise PermanentError(f"{name[:80]!r} cannot name metadata: ASCII letters, digits and `_` only.")
        encoded = re.sub(r"%[0-9A-F]?$", "", _header_value(value.strip())[:room])
        if text := unquote(encoded, errors="ignore"):
            kept[name.lower()] = text
            room -= len(encoded)
    return kept


def header_values(metadata: Mapping[str, str], limit: int) -> dict[str, str]:
    """Encode metadata for HTTP headers.

    Args:
        metadata: metadata from `kept_metadata`.
        limit: total number of characters that the service accepts.

    Raises:
        PermanentError: the metadata exceed the limit.
    """
    values = {name: _header_value(value) for name, value in metadata.items()}
    if sum(map(len, values.values())) > limit:
        raise PermanentError(f"The metadata has more than {limit} characters; leave some out.")
    return values


def from_header_values(values: Mapping[str, str] | None) -> dict[str, str]:
    """Decode the metadata that `header_values` encoded."""
    return {name.lower(): unquote(value) for name, value in (values or {}).items()}


def content_type_of(metadata: Mapping[str, str]) -> str:
    """Return the declared media type if it is valid in a header. File names are untrusted and not used."""
    declared = metadata.get(CONTENT_TYPE, "")
    return declared if _CONTENT_TYPE.fullmatch(declared) else "application/octet-stream"


@contextmanager
def temporary_copy(name: str, download: Callable[[Path], object]) -> Iterator[Path]:
    """Download into a temporary folder, and remove it after use."""
    with tempfile.TemporaryDirectory(prefix="ingest-") as folder:
        path = Path(folder) / name.rpartition("/")[2]
        download(path)
        yield path


def s3_options(storage: StorageSettings) -> S3Options:
    """Build the connection options of S3 from the settings."""
    return S3Options(
        endpoint_url=storage.s3_endpoint_url,
        region=storage.s3_region,
        access_key_id=storage.s3_access_key_id,
        secret_access_key=storage.s3_secret_access_key,
    )


def location_of(url: str) -> Path | Bucket:
    """Parse a folder's path, `file:///folder`, or `s3://bucket/prefix`.

    Raises:
        SettingsError: the address has another scheme, or no bucket.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SettingsError(f"{url} is neither a folder nor s3://bucket/prefix: {error}.") from None
    if parts.scheme == "s3":
        if not parts.netloc:
            raise SettingsError(f"{url} names no bucket. Example: s3://bucket/prefix.")
        prefix = parts.path.strip("/")
        return Bucket(parts.netloc, f"{prefix}/" if prefix else "")
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if "://" in url:
        raise SettingsError(f"{url} is neither a folder nor s3://bucket/prefix.")
    return Path(url)


def _header_value(value: str) -> str:
    return quote(value.encode("utf-8", "replace"), safe=_PLAIN)
