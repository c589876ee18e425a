"""One store of bytes by name, with three back ends: a local folder, S3, and OneLake or another ADLS Gen2 account.

Each back end keeps the same promises. A reader never sees a partial object: content gets its final name in one step,
after its length and digest were verified. Storing the same object again leaves the same state. A killed writer leaves
nothing under a final name. Memory use does not grow with the object, and a store may be used from many threads.
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

# The metadata that holds the digest of the content, and its declared media type.
SHA256 = "sha256"
CONTENT_TYPE = "content_type"
# A folder's hidden description has six more characters than its file, and file systems accept 255 bytes.
MAX_PART_BYTES = 240
# Characters of all values as headers carry them: S3, which takes least, accepts 2 KB with the names and the digest.
MAX_VALUES_LENGTH = 1_700
MAX_CONFLICTS = 10
_PLAIN = "!#$&'()*+,/:;=?@[]-._~"
_METADATA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_CONTENT_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}", re.ASCII)


@dataclass(frozen=True)
class S3Options:
    """Connection options of S3. A value of None comes from boto3's own configuration.

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
        """Return the address as a setting has it."""
        return f"s3://{self.name}/{self.prefix}"


@dataclass(frozen=True)
class StoredObject:
    """An object in a store.

    Args:
        location: for people and results: a file's path, or its s3:// or https:// address.
        size_bytes: of the content; UNFINISHED while its name is claimed, and the content is not there yet.
        metadata: as it was put.
        version: of the content, where the service has one.
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
        ForbiddenPathError: from every method: the name leads out of the store, is hidden, or too long.
        StoreUnavailableError: from every method: the store cannot be used at this moment.
        PermanentError: from every method: the store refuses for good.
    """

    @property
    def scratch(self) -> Path:
        """Return the folder for files that are to be put: a store on the same disk links them instead of copying."""

    def location(self, name: str) -> str:
        """Return where an object of this name is or would be, for people."""

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
            name: of the object.
            content: a finished file that is not modified afterwards, or a small content.
            metadata: kept with it, see `kept_metadata`.
            may_replace: decides about an object that has the name already. The store replaces only the very version
                that was decided upon, also with two writers at once. None replaces any.

        Returns:
            the object that has the name now: this one, or the present one if it may not be replaced.

        Raises:
            SourceNotFoundError, SourceChangedError: the local file is missing or not as announced; nothing is stored.
        """

    def stat(self, name: str) -> StoredObject | None:
        """Return the object's size and metadata; None when there is none."""

    def local_path(self, name: str) -> AbstractContextManager[Path]:
        """Open a local file with the content for reading: the file itself, or a temporary copy of a remote one.

        Raises:
            SourceNotFoundError: the object does not exist.
        """

    def remove(self, name: str) -> None:
        """Remove an object; a missing one is removed already."""

    def remove_orphaned(self, older_than: timedelta) -> int:
        """Remove the temporary data of killed writers and return the number of removed items."""


@dataclass(frozen=True)
class StoreOptions:
    """How to reach stores.

    Args:
        s3: connection options of S3.
        onelake: connection options of OneLake.
        settings: of this process, for the stores of other packages; None in a tool without settings.
    """

    s3: S3Options = field(default_factory=S3Options)
    onelake: OneLakeOptions = field(default_factory=OneLakeOptions)
    settings: Settings | None = None


StoreFactory = Callable[[str, StoreOptions], ObjectStore]
"""Makes the store at an address; contacts nothing remote."""


class ConflictError(Exception):
    """A conditional write found another version than the expected one.

    Args:
        error: to raise if the object does not exist after all.
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
        write: writes on the condition that this version, or none, is there; raises ConflictError otherwise.
        present: the version that was decided upon; None expects none.
        stat: returns the present version.
        may_replace: see `ObjectStore.put`.

    Returns:
        the present object if it may not be replaced; None when this call wrote.

    Raises:
        StoreUnavailableError: other writers interfered at every attempt.
    """
    for _ in range(MAX_CONFLICTS):
        try:
            write(present)
        except ConflictError as conflict:
            # Another writer was faster, or the answer to a first attempt was lost.
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
        ForbiddenPathError: absolute, with `..` or empty or overlong parts, or hidden: names that start with a dot are
            the store's own.
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
        PermanentError: a name that no header can carry.
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
        metadata: as `kept_metadata` returns it.
        limit: characters of all values that the service accepts.

    Raises:
        PermanentError: too much altogether.
    """
    values = {name: _header_value(value) for name, value in metadata.items()}
    if sum(map(len, values.values())) > limit:
        raise PermanentError(f"The metadata has more than {limit} characters; leave some out.")
    return values


def from_header_values(values: Mapping[str, str] | None) -> dict[str, str]:
    """Decode the metadata that `header_values` encoded."""
    return {name.lower(): unquote(value) for name, value in (values or {}).items()}


def content_type_of(metadata: Mapping[str, str]) -> str:
    """Return the declared media type, if a header can carry it. File names are untrusted and not used."""
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
    """Return how the settings say that S3 is reached."""
    return S3Options(
        endpoint_url=storage.s3_endpoint_url,
        region=storage.s3_region,
        access_key_id=storage.s3_access_key_id,
        secret_access_key=storage.s3_secret_access_key,
    )


def location_of(url: str) -> Path | Bucket:
    """Parse a folder's path, `file:///folder`, or `s3://bucket/prefix`.

    Raises:
        SettingsError: any other scheme, or no bucket.
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
