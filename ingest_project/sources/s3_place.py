"""Which bucket and prefix a job means, who we are there, and whether it may be asked at all.

A job is a stranger's message: an endpoint that it names must be known, and a credential is shown only to those
endpoints that list it, never to any other. Without one of its own, another endpoint is asked as nobody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ingest_project.errors import ForbiddenPath, PermanentError
from ingest_project.sources.access import S3Account, named_credential, require_for_host
from ingest_project.web.hosts import HostPattern

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ingest_project.settings import Credential
    from ingest_project.sources.access import SourceAccess

SCHEME = "s3://"
PORTS = {"http": 80, "https": 443}
LONGEST_KEY_BYTES = 1_024
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}")
_REGION = re.compile(r"[a-z0-9-]{1,40}")


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket at an account's endpoint.

    Args:
        account: who we are there.
        bucket: its name, or an access point's.
    """

    account: S3Account
    bucket: str

    @property
    def location(self) -> str:
        """`s3://bucket` at Amazon, `s3+http://host:port/bucket` at any other server."""
        if self.account.endpoint_url is None:
            return f"s3://{self.bucket}"
        return f"s3+{self.account.endpoint_url.rstrip('/')}/{self.bucket}"

    def key(self, path: str) -> str:
        """The key that a path names: `s3://bucket/key`, or the key alone.

        Raises:
            ForbiddenPath: another bucket, or no object can have such a key.
        """
        key = path
        if path.startswith(SCHEME):
            bucket, _, key = path.removeprefix(SCHEME).partition("/")
            if bucket != self.bucket:
                raise ForbiddenPath(path, f"it is not in the bucket {self.bucket} that its source names.")
        if "\x00" in key or len(key.encode("utf-8", "replace")) > LONGEST_KEY_BYTES:
            raise ForbiddenPath(path[:200], f"a key has at most {LONGEST_KEY_BYTES} bytes, none of them NUL.")
        return key

    def path(self, key: str) -> str:
        """The path of a key, as messages carry it."""
        return f"{SCHEME}{self.bucket}/{key}"


def place_of(source_config: Mapping[str, Any], access: SourceAccess) -> S3Place:
    """The place that a job's `source_config` names.

    Raises:
        UnknownCredentials: it names none that are stored.
        PermanentError: it names no bucket, or two.
        ForbiddenPath: the bucket or the endpoint is not one that jobs may name.
    """
    bucket = _bucket_of(source_config)
    allowed = access.settings.allowed_buckets
    if allowed and not any(fnmatchcase(bucket, pattern) for pattern in allowed):
        raise ForbiddenPath(f"{SCHEME}{bucket}", "INGEST_ALLOWED_BUCKETS does not name this bucket.")
    return S3Place(_account_of(source_config, access), bucket)


def _bucket_of(source_config: Mapping[str, Any]) -> str:
    path = str(source_config.get("path") or "")
    named = {str(source_config["bucket"])} if source_config.get("bucket") else set()
    if path.startswith(SCHEME):
        named.add(path.removeprefix(SCHEME).partition("/")[0])
    if len(named) != 1:
        raise PermanentError("source_config of an s3 source needs one 'bucket', or a path s3://bucket/prefix.")
    bucket = named.pop()
    if not _BUCKET.fullmatch(bucket):
        raise PermanentError(f"{bucket[:100]!r} is no name of a bucket.")
    return bucket


def _account_of(source_config: Mapping[str, Any], access: SourceAccess) -> S3Account:
    default = access.clients.s3_account
    credential = named_credential(source_config, access.credentials)
    endpoint = str(source_config.get("endpoint_url") or "").rstrip("/") or None
    region = source_config.get("region")
    if region is not None and not _REGION.fullmatch(str(region)):
        raise PermanentError(f"region {str(region)[:40]!r} is no name of a region.")
    account = replace(default, region=str(region)) if region else default
    elsewhere = endpoint is not None and endpoint != (default.endpoint_url or "").rstrip("/")
    if elsewhere:
        _require_known(str(endpoint), credential, access)
        account = replace(account, endpoint_url=endpoint, access_key_id=None, secret_access_key=None, unsigned=True)
    if credential is None:
        return account
    if not credential.access_key_id or credential.secret_access_key is None:
        raise PermanentError("The credentials that the job names have no access_key_id and secret_access_key.")
    secret = credential.secret_access_key
    return replace(account, access_key_id=credential.access_key_id, secret_access_key=secret, unsigned=False)


def _require_known(endpoint: str, credential: Credential | None, access: SourceAccess) -> None:
    """Refuse an endpoint that nobody but the message names."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port or PORTS[parts.scheme]
        host = (parts.hostname or "").lower()
    except (ValueError, KeyError):
        host, port = "", 0
    if not host or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        raise PermanentError(f"endpoint_url must be http(s)://host:port, not {endpoint.rpartition('@')[2][:100]!r}.")
    if credential is not None:
        require_for_host(credential, host, port, endpoint)
        return
    patterns = [HostPattern.parse(allowed) for allowed in access.settings.allowed_source_hosts]
    if not any(pattern.matches_name(host, port) for pattern in patterns):
        raise ForbiddenPath(
            endpoint,
            "its host is not allowed. List it in INGEST_ALLOWED_SOURCE_HOSTS, or in the 'hosts' of credentials that "
            "the job names.",
        )
