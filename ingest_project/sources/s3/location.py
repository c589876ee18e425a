"""Which bucket and prefix a job means, who we are there, and whether it may be asked at all.

A job is a stranger's message: an endpoint and a bucket that it names must be known, and a credential is shown only to
the endpoints that it lists, never to any other. Without one of its own, another endpoint is asked as nobody.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from ingest_project.core.errors import ForbiddenPathError, PermanentError
from ingest_project.core.settings import Credential
from ingest_project.platform.http.host_policy import HostPattern
from ingest_project.platform.http.urls import DEFAULT_PORTS, MalformedAddressError, WebAddress, parse_url, split_address
from ingest_project.sources.context import (
    NamedBucket,
    S3Account,
    S3Contact,
    SourceContext,
    named_credential,
    require_for_host,
)

SCHEME = "s3://"
AMAZON = parse_url("https://s3.amazonaws.com")
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
            ForbiddenPathError: another bucket, or no object can have such a key.
        """
        key = path
        if path.startswith(SCHEME):
            bucket, _, key = path.removeprefix(SCHEME).partition("/")
            if bucket != self.bucket:
                raise ForbiddenPathError(path, f"it is not in the bucket {self.bucket} that its source names.")
        if "\x00" in key or len(key.encode("utf-8", "replace")) > LONGEST_KEY_BYTES:
            raise ForbiddenPathError(path[:200], f"a key has at most {LONGEST_KEY_BYTES} bytes, none of them NUL.")
        return key

    def path(self, key: str) -> str:
        """The path of a key, as messages carry it."""
        return f"{SCHEME}{self.bucket}/{key}"


def bucket_location(source_config: Mapping[str, Any], access: SourceContext) -> S3Place:
    """The place that a job's `source_config` names.

    Raises:
        UnknownCredentialsError: it names none that are stored.
        PermanentError: it names no bucket, or two.
        ForbiddenPathError, AddressRejectedError: the bucket or the endpoint is not one that jobs may name.
    """
    bucket = _bucket_of(source_config)
    credential = named_credential(source_config, access.credentials)
    account = _account_of(source_config, credential, access)
    _require_allowed_bucket(source_config, credential, access)
    return S3Place(account, bucket)


def named_bucket(source_config: Mapping[str, Any], account: S3Account) -> NamedBucket:
    """The bucket that a `source_config` names, and where it is.

    Args:
        source_config: of an s3 source.
        account: of jobs that name no endpoint.

    Raises:
        PermanentError: it names none, or two, or an endpoint that is none.
    """
    endpoint = _named_endpoint(source_config) or _own_endpoint(account) or AMAZON
    return NamedBucket(endpoint.origin, _bucket_of(source_config))


def _require_allowed_bucket(
    source_config: Mapping[str, Any], credential: Credential | None, access: SourceContext
) -> None:
    """Refuse a bucket that nobody but the message names."""
    bucket = _bucket_of(source_config)
    own = credential.buckets if credential is not None else []
    if own and not _matches(bucket, own):
        raise ForbiddenPathError(
            f"{SCHEME}{bucket}",
            "the credentials that the job names are not for this bucket; list it in their 'buckets'.",
        )
    allowed = [*own, *access.settings.allowed_buckets]
    if _matches(bucket, allowed):
        return
    if named_bucket(source_config, access.clients.s3_account) not in access.clients.buckets():
        raise ForbiddenPathError(
            f"{SCHEME}{bucket}",
            "no setting names this bucket. List it in INGEST_ALLOWED_BUCKETS, or in the 'buckets' of credentials that "
            "the job names.",
        )


def _matches(bucket: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(bucket, pattern) for pattern in patterns)


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


def _account_of(source_config: Mapping[str, Any], credential: Credential | None, access: SourceContext) -> S3Account:
    default = access.clients.s3_account
    region = source_config.get("region")
    if region is not None and not _REGION.fullmatch(str(region)):
        raise PermanentError(f"region {str(region)[:40]!r} is no name of a region.")
    account = replace(default, region=str(region)) if region else default
    ours = _own_endpoint(default)
    endpoint = _named_endpoint(source_config) or ours
    if endpoint is not None and endpoint != ours:
        contact = _require_known(endpoint, credential, access)
        account = replace(
            account,
            endpoint_url=endpoint.origin,
            access_key_id=None,
            secret_access_key=None,
            unsigned=True,
            contact=contact,
        )
    if credential is None:
        return account
    if not credential.access_key_id or credential.secret_access_key is None:
        raise PermanentError("The credentials that the job names have no access_key_id and secret_access_key.")
    if credential.hosts:
        server = endpoint or AMAZON
        require_for_host(credential, server.host, server.port, server.origin)
    secret = credential.secret_access_key
    return replace(account, access_key_id=credential.access_key_id, secret_access_key=secret, unsigned=False)


def _named_endpoint(source_config: Mapping[str, Any]) -> WebAddress | None:
    text = str(source_config.get("endpoint_url") or "")
    if not text:
        return None
    try:
        parts = split_address(text, tuple(DEFAULT_PORTS))
        reason = "" if parts.is_server else "it names more than a server"
    except MalformedAddressError as error:
        reason = error.reason
    if reason:
        shown = text.rpartition("@")[2][:100]
        raise PermanentError(f"endpoint_url must be http(s)://host:port, not {shown!r}: {reason}.")
    return parse_url(parts.origin)


def _own_endpoint(account: S3Account) -> WebAddress | None:
    """The endpoint of the settings; None for Amazon's."""
    return parse_url(account.endpoint_url) if account.endpoint_url else None


def _require_known(endpoint: WebAddress, credential: Credential | None, access: SourceContext) -> S3Contact:
    """Refuse an endpoint that nobody but the message names."""
    listed = list(access.settings.allowed_source_hosts)
    if credential is not None:
        require_for_host(credential, endpoint.host, endpoint.port, endpoint.origin)
        listed += credential.hosts
    patterns = [one for one in map(HostPattern.parse, listed) if one.matches_name(endpoint.host, endpoint.port)]
    if not patterns:
        raise ForbiddenPathError(
            endpoint.origin,
            "its host is not allowed. List it in INGEST_ALLOWED_SOURCE_HOSTS, or in the 'hosts' of credentials that "
            "the job names.",
        )
    contact = S3Contact(endpoint.host, endpoint.port, any(pattern.is_one_place for pattern in patterns))
    # Of an address that is no name all is known: it is refused when the message arrives.
    contact.rules(access.clients.lists).check(endpoint.url)
    return contact
