"""The object store in a prefix of an S3 bucket, and the one factory of S3 clients. Loads boto3: import it lazily.

S3 makes an object visible when its only request, or the last one of a multipart upload, succeeds; the content is
verified before that. Each request carries a checksum, which the service verifies. Conditions on the present version
(`If-Match`, `If-None-Match`) are sent only with `may_replace`: not every S3 server supports them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal  # noqa: TID251 - see below

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from botocore import UNSIGNED
from botocore.config import Config
from botocore.credentials import CredentialProvider, CredentialResolver, Credentials, ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError
from botocore.loaders import Loader

from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SettingsError,
    SourceNotFoundError,
    StoreUnavailableError,
)
from ingest_project.core.local_files import LocalFile
from ingest_project.core.secrets import SecretReference, renewed, text_of
from ingest_project.platform.object_store.store import (
    Bucket,
    ConflictError,
    MayReplace,
    S3Options,
    StoredObject,
    StoreOptions,
    content_type_of,
    from_header_values,
    header_values,
    location_of,
    require_safe_name,
    temporary_copy,
    write_conditionally,
)

if TYPE_CHECKING:
    # boto3 creates its classes at run time; the package with their types is only a development dependency.
    import mypy_boto3_s3
    from mypy_boto3_s3 import type_defs

    S3Client = mypy_boto3_s3.S3Client
    ListingPage = type_defs.ListObjectsV2OutputTypeDef
    ListedObject = type_defs.ObjectTypeDef
else:
    S3Client = ListingPage = ListedObject = object

TIMEOUT_SECONDS = 20.0
MAX_ATTEMPTS = 4
# S3 accepts at most 10,000 parts of at least 5 MiB: objects of up to 80 GB.
PART_BYTES = 8 * 1024**2
MAX_KEY_BYTES = 1_024
# S3 accepts 2 KB of metadata, names included.
MAX_METADATA_BYTES = 1_800
MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
# Refusals of one object, for its name, size or metadata. Any other, such as of a missing right, ends without a change
# of the object.
REFUSED = frozenset({"KeyTooLongError", "EntityTooLarge", "MetadataTooLarge", "InvalidURI", "InvalidObjectName"})
# Of MinIO: it keeps objects as files, so that one of them cannot be another one's folder.
REFUSED |= {f"XMinio{code}" for code in ("InvalidObjectName", "ParentIsObject", "ObjectExistsAsDirectory")}
CONFLICTS = frozenset({"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}) | MISSING


class _SharedLoader(Loader):
    """Parses botocore's description of S3, a megabyte of JSON, once: each session would spend 0.1 s on it."""

    @property
    def search_paths(self) -> list[str]:
        """Return a copy: each boto3 session appends a folder, which is already in the list."""
        return list(super().search_paths)


_LOADER = _SharedLoader([str(Path(boto3.__file__).parent / "data")])


def s3_client(
    options: S3Options, timeout_seconds: float = TIMEOUT_SECONDS, *, unsigned: bool = False, proxied: bool = True
) -> S3Client:
    """Return an S3 client; all stores and sources use this function.

    Args:
        options: endpoint, region and keys.
        timeout_seconds: longest silence of a server in each attempt; boto3's own is a minute.
        unsigned: send no credential.
        proxied: use the environment's proxies.
    """
    key_id, secret = options.access_key_id, options.secret_access_key
    key: _PresentKey | None = None
    if isinstance(secret, SecretReference) and key_id is not None and not unsigned:
        key = _PresentKey(key_id, secret)
    session = botocore.session.Session()
    session.register_component("data_loader", _LOADER)
    if key:
        session.register_component("credential_provider", CredentialResolver([_KeyProvider(key)]))
    # Use path style for servers other than Amazon's, which rarely have a host name for every bucket.
    style: Literal["path", "auto"] = "path" if options.endpoint_url else "auto"
    client = boto3.Session(botocore_session=session).client(
        "s3",
        region_name=options.region,
        endpoint_url=options.endpoint_url,
        aws_access_key_id=None if key else key_id,
        aws_secret_access_key=None if key or secret is None else text_of(secret),
        config=Config(
            connect_timeout=timeout_seconds,
            read_timeout=timeout_seconds,
            retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
            s3={"addressing_style": style},
            signature_version=UNSIGNED if unsigned else None,
            proxies=None if proxied else {},
        ),
    )
    if key:
        events: Any = client.meta.events
        events.register_first("needs-retry.s3", key.try_again)
    return client


class _PresentKey(Credentials):
    """A key whose secret is read for each request."""

    def __init__(self, key_id: str, secret: SecretReference) -> None:
        super().__init__(key_id, text_of(secret))
        self._secret = secret

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Return the current key."""
        self.secret_key = text_of(self._secret)
        return super().get_frozen_credentials()

    def try_again(self, response: tuple[Any, Any] | None, **_: object) -> int | None:
        """Retry a refused request immediately if the secret has changed."""
        status = response[0].status_code if response else None
        return 0 if status == HTTPStatus.FORBIDDEN and renewed(self._secret, self.secret_key) else None


class _KeyProvider(CredentialProvider):
    METHOD = CANONICAL_NAME = "ingest-secret"

    def __init__(self, key: Credentials) -> None:
        super().__init__()
        self._key = key

    def load(self) -> Credentials:
        """Return the key."""
        return self._key


@contextmanager
def bucket_errors(bucket: Bucket) -> Iterator[None]:
    """Map a failure of S3 to an error of this project.

    Raises:
        PermanentError: the service refuses this object for its name, size or metadata.
        StoreUnavailableError: the service is unreachable or refuses all requests, or the bucket does not exist.
    """
    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        if isinstance(error, ClientError) and _code(error) in REFUSED:
            raise PermanentError(f"The store at {bucket.url} refuses an object: {error}.") from error
        raise StoreUnavailableError(bucket.url, error) from error


# Arguments of a request.
_Args = dict[str, Any]


def open_s3(url: str, options: StoreOptions) -> S3Store:
    """Return the store at a prefix of a bucket.

    Raises:
        SettingsError: the address has no bucket.
    """
    location = location_of(url)
    if not isinstance(location, Bucket):
        raise SettingsError(f"{url} names no bucket.")
    return S3Store(s3_client(options.s3), location)


class S3Store:
    """An `ObjectStore` in a prefix of a bucket.

    Args:
        client: from `s3_client`.
        bucket: bucket and prefix to which names are relative.
    """

    scratch = Path(tempfile.gettempdir())

    def __init__(self, client: S3Client, bucket: Bucket) -> None:
        self._client = client
        self._bucket = bucket

    def location(self, name: str) -> str:
        """Return the s3:// address of an object."""
        return f"{self._bucket.url}{require_safe_name(name)}"

    def put(
        self,
        name: str,
        content: LocalFile | bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        may_replace: MayReplace | None = None,
    ) -> StoredObject:
        """Store an object; see `ObjectStore.put`."""
        key, kept = self._key(name), metadata or {}

        def write(present: StoredObject | None) -> None:
            with self._conflicts():
                self._write(key, content, kept, _unchanged(present))

        with bucket_errors(self._bucket):
            if may_replace is None:
                self._write(key, content, kept, {})
            elif retained := write_conditionally(write, None, lambda: self.stat(name), may_replace):
                return retained
        size_bytes = len(content) if isinstance(content, bytes) else content.size_bytes
        return StoredObject(self.location(name), size_bytes, kept)

    def stat(self, name: str) -> StoredObject | None:
        """Return size and metadata; see `ObjectStore.stat`."""
        key = self._key(name)
        with bucket_errors(self._bucket):
            try:
                head = self._client.head_object(Bucket=self._bucket.name, Key=key)
            except ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise
        metadata = from_header_values(head["Metadata"])
        return StoredObject(self.location(name), head["ContentLength"], metadata, head["ETag"])

    def local_path(self, name: str) -> AbstractContextManager[Path]:
        """Download into a temporary file; see `ObjectStore.local_path`."""
        return temporary_copy(name, lambda path: self._download(name, path))

    def remove(self, name: str) -> None:
        """Remove an object; see `ObjectStore.remove`."""
        with bucket_errors(self._bucket):
            self._client.delete_object(Bucket=self._bucket.name, Key=self._key(name))

    def remove_orphaned(self, older_than: timedelta) -> int:
        """Abort the multipart uploads of killed writers; see `ObjectStore.remove_orphaned`."""
        oldest = datetime.now(UTC) - older_than
        name, removed = self._bucket.name, 0
        with bucket_errors(self._bucket):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=name, Prefix=self._bucket.prefix
            )
            for upload in [upload for page in pages for upload in page.get("Uploads", [])]:
                if upload["Initiated"] < oldest:
                    self._client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
                    removed += 1
        return removed

    def _write(self, key: str, content: LocalFile | bytes, metadata: Mapping[str, str], condition: _Args) -> None:
        target = _Args(Bucket=self._bucket.name, Key=key)
        kept = _Args(Metadata=header_values(metadata, MAX_METADATA_BYTES), ContentType=content_type_of(metadata))
        if isinstance(content, bytes):
            self._client.put_object(**target, **kept, **condition, Body=content)
            return
        with content:
            if content.size_bytes <= PART_BYTES:
                self._client.put_object(**target, **kept, **condition, Body=content.read_all())
            else:
                self._upload_parts(target, content, kept, condition)

    def _upload_parts(self, target: _Args, file: LocalFile, kept: _Args, condition: _Args) -> None:
        upload = {**target, "UploadId": self._client.create_multipart_upload(**target, **kept)["UploadId"]}
        parts: list[Any] = []
        try:
            while part := file.read(PART_BYTES):
                answer = self._client.upload_part(**upload, PartNumber=len(parts) + 1, Body=part)
                parts.append({"PartNumber": len(parts) + 1, "ETag": answer["ETag"]})
            file.finish()
            self._client.complete_multipart_upload(**upload, **condition, MultipartUpload={"Parts": parts})
        except BaseException:
            # `remove_orphaned` aborts an upload that cannot be aborted now.
            with contextlib.suppress(BotoCoreError, ClientError):
                self._client.abort_multipart_upload(**upload)
            raise

    def _download(self, name: str, path: Path) -> None:
        with bucket_errors(self._bucket):
            try:
                self._client.download_file(self._bucket.name, self._key(name), str(path))
            except ClientError as error:
                if _code(error) in MISSING:
                    raise SourceNotFoundError(self.location(name)) from error
                raise

    @contextmanager
    def _conflicts(self) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if _code(error) in CONFLICTS:
                raise ConflictError(error) from error
            raise

    def _key(self, name: str) -> str:
        key = self._bucket.prefix + require_safe_name(name)
        if len(key.encode()) > MAX_KEY_BYTES:
            raise ForbiddenPathError(name[:200], f"its key in the bucket has more than {MAX_KEY_BYTES} bytes.")
        return key


def _unchanged(present: StoredObject | None) -> _Args:
    """Return the condition that an object still has this version, or still does not exist."""
    return {"IfMatch": present.version} if present else {"IfNoneMatch": "*"}


def _code(error: ClientError) -> str:
    return error.response["Error"]["Code"]
