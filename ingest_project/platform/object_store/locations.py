"""Where bytes are kept: a local folder or a prefix of an S3 bucket, and what it means when it does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from ingest_project.core.errors import SettingsError, StoreUnavailableError
from ingest_project.core.settings import (
    StorageSettings,
)

if TYPE_CHECKING:
    from botocore.config import Config
    from mypy_boto3_s3 import S3Client


S3_TIMEOUT_SECONDS = 20.0
S3_MAX_ATTEMPTS = 4


@dataclass(frozen=True)
class S3Options:
    """How to reach S3. What is None comes from boto3's own configuration.

    Args:
        endpoint_url: address of a server other than Amazon's.
    """

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)


def s3_options(storage: StorageSettings) -> S3Options:
    """How buckets are reached."""
    secret = storage.s3_secret_access_key
    return S3Options(
        endpoint_url=storage.s3_endpoint_url,
        region=storage.s3_region,
        access_key_id=storage.s3_access_key_id,
        secret_access_key=secret.get_secret_value() if secret else None,
    )


@dataclass(frozen=True)
class Bucket:
    """A prefix of an S3 bucket; the prefix is empty or ends with a slash."""

    name: str
    prefix: str

    @property
    def url(self) -> str:
        """As it is written in a setting."""
        return f"s3://{self.name}/{self.prefix}"


def location_of(url: str) -> Path | Bucket:
    """A folder's path, `file:///folder`, or `s3://bucket/prefix`.

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


def s3_client(options: S3Options) -> S3Client:
    """A client with short time-outs and the SDK's own few retries."""
    import boto3  # noqa: PLC0415 - takes 0.3 s, and local stores do without

    return boto3.client(
        "s3",
        endpoint_url=options.endpoint_url,
        region_name=options.region,
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
        config=s3_config(options.endpoint_url),
    )


def s3_config(
    endpoint_url: str | None,
    timeout_seconds: float = S3_TIMEOUT_SECONDS,
    max_attempts: int = S3_MAX_ATTEMPTS,
    *,
    unsigned: bool = False,
    proxied: bool = True,
) -> Config:
    """What every client of S3 has in common: boto3's own would wait a minute for each of its attempts.

    Args:
        endpoint_url: address of a server other than Amazon's.
        timeout_seconds: how long a server may be silent.
        max_attempts: the first one counts.
        unsigned: ask as nobody.
        proxied: whether the environment's proxies are used.
    """
    from botocore import UNSIGNED  # noqa: PLC0415 - only where S3 is used
    from botocore.config import Config  # noqa: PLC0415

    # Path style: servers other than Amazon's rarely have a name for every bucket.
    style: Literal["path", "auto"] = "path" if endpoint_url else "auto"
    return Config(
        connect_timeout=timeout_seconds,
        read_timeout=timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": max_attempts},
        s3={"addressing_style": style},
        signature_version=UNSIGNED if unsigned else None,
        proxies=None if proxied else {},
    )


@contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Tell a failure of the file system as one of ours.

    Raises:
        StoreUnavailableError: full, read-only, forbidden, broken.
    """
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(str(folder), error.strerror or error) from error


@contextmanager
def bucket_errors(bucket: Bucket) -> Iterator[None]:
    """Tell a failure of S3 as one of ours.

    Raises:
        StoreUnavailableError: not reached, no such bucket, refused.
    """
    from boto3.exceptions import Boto3Error  # noqa: PLC0415 - loaded already where S3 is used
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise StoreUnavailableError(bucket.url, error) from error


def is_missing(error: Exception) -> bool:
    """Whether S3 said that there is no such object."""
    response = getattr(error, "response", {})
    return response.get("Error", {}).get("Code") in {"404", "NoSuchKey", "NotFound"}
