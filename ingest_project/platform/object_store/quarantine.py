"""The quarantine store: the bytes of each rejected file, and next to them a JSON that gives the reason.

The JSON is written last and removed first: a file is in quarantine when its JSON is there. Putting the same file again
replaces both.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast
from urllib.parse import quote

import msgspec

from ingest_project.core.keys import digest_of
from ingest_project.platform.object_store.locations import (
    Bucket,
    S3Options,
    bucket_errors,
    folder_errors,
    is_missing,
    location_of,
    s3_client,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# File systems take 255 bytes; the rest is for `.json` and the temporary name.
MAX_NAME_LENGTH = 180


class QuarantinedFile(msgspec.Struct, frozen=True):
    """A refused file.

    Args:
        reason: why, by whom and from where: rule, detail, source path, sha256, when, run id, Kafka position.
        location: of its bytes, for people.
    """

    file_key: str
    reason: dict[str, Any]
    location: str


class QuarantineStore(Protocol):
    """Keeps refused files by file key.

    Raises:
        StoreUnavailableError: from every method, when the store cannot be used.
    """

    def put(self, file_key: str, content: Path | BinaryIO, reason: Mapping[str, Any]) -> QuarantinedFile:
        """Keep the bytes and the reason; both are replaced when the file is there already.

        Args:
            file_key: of the file; any text.
            content: a local file, which must never be changed in place afterwards, or a stream.
            reason: anything that JSON can hold.
        """

    def get(self, file_key: str) -> QuarantinedFile | None:
        """Why this file is in quarantine; None when it is not."""

    def open(self, file_key: str) -> BinaryIO:
        """Its bytes; the caller closes it."""

    def list(self) -> Iterator[QuarantinedFile]:
        """All of them, by name."""

    def remove(self, file_key: str) -> None:
        """It is accepted now; nothing happens when it is not there."""


def open_quarantine(url: str, s3: S3Options | None = None) -> QuarantineStore:
    """The quarantine store at a folder or `s3://bucket/prefix`.

    Raises:
        SettingsError: the URL is neither of the two.
    """
    place = location_of(url)
    if isinstance(place, Bucket):
        return S3Quarantine(s3_client(s3 or S3Options()), place)
    return FolderQuarantine(place)


def safe_name(file_key: str) -> str:
    """A file name that every file system and S3 takes, readable for ordinary keys, different for different keys."""
    name = quote(file_key, safe="~")
    name = re.sub(r"^\.", "%2E", name)
    if len(name) > MAX_NAME_LENGTH:
        # Cut between escapes, not inside one.
        name = re.sub(r"%.?$", "", name[:MAX_NAME_LENGTH]) + f"~{digest_of(file_key)}"
    # No name of bytes may look like another file's JSON.
    return re.sub(r"\.json$", "%2Ejson", name)


class FolderQuarantine:
    """See `QuarantineStore`. The bytes are a further name of the landed file where the file system allows that."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    def put(self, file_key: str, content: Path | BinaryIO, reason: Mapping[str, Any]) -> QuarantinedFile:
        """Keep the bytes and the reason; both are replaced when the file is there already."""
        path = self._folder / safe_name(file_key)
        # Invisible to `list`, and replaced when a killed process left it.
        temporary = self._folder / f".{path.name}.{os.getpid()}"
        with folder_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            _link_or_copy(content, temporary)
            temporary.replace(path)
            # A rename onto another name of the same file does nothing and leaves both.
            temporary.unlink(missing_ok=True)
            temporary.write_bytes(_encode(file_key, reason))
            temporary.replace(_json_beside(path))
        return QuarantinedFile(file_key, dict(reason), str(path))

    def get(self, file_key: str) -> QuarantinedFile | None:
        """Why this file is in quarantine; None when it is not."""
        return self._read(_json_beside(self._folder / safe_name(file_key)))

    def open(self, file_key: str) -> BinaryIO:
        """Its bytes; the caller closes it."""
        with folder_errors(self._folder):
            return (self._folder / safe_name(file_key)).open("rb")

    def list(self) -> Iterator[QuarantinedFile]:
        """All of them, by name."""
        for path in sorted(self._folder.glob("*.json")):
            found = None if path.name.startswith(".") else self._read(path)
            if found is not None:
                yield found

    def remove(self, file_key: str) -> None:
        """It is accepted now; nothing happens when it is not there."""
        path = self._folder / safe_name(file_key)
        with folder_errors(self._folder):
            _json_beside(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> QuarantinedFile | None:
        with folder_errors(self._folder):
            try:
                file_key, reason = _decode(path.read_bytes())
            except FileNotFoundError:
                return None
        return QuarantinedFile(file_key, reason, str(path).removesuffix(".json"))


class S3Quarantine:
    """See `QuarantineStore`."""

    def __init__(self, client: S3Client, bucket: Bucket) -> None:
        self._client = client
        self._bucket = bucket

    def put(self, file_key: str, content: Path | BinaryIO, reason: Mapping[str, Any]) -> QuarantinedFile:
        """Keep the bytes and the reason; both are replaced when the file is there already."""
        key = self._key(file_key)
        with bucket_errors(self._bucket), contextlib.ExitStack() as stack:
            stream = stack.enter_context(content.open("rb")) if isinstance(content, Path) else content
            self._client.upload_fileobj(stream, self._bucket.name, key)
            body = _encode(file_key, reason)
            self._client.put_object(
                Bucket=self._bucket.name, Key=f"{key}.json", Body=body, ContentType="application/json"
            )
        return QuarantinedFile(file_key, dict(reason), f"s3://{self._bucket.name}/{key}")

    def get(self, file_key: str) -> QuarantinedFile | None:
        """Why this file is in quarantine; None when it is not."""
        return self._read(f"{self._key(file_key)}.json")

    def open(self, file_key: str) -> BinaryIO:
        """Its bytes; the caller closes it."""
        with bucket_errors(self._bucket):
            answer = self._client.get_object(Bucket=self._bucket.name, Key=self._key(file_key))
        return cast("BinaryIO", answer["Body"])

    def list(self) -> Iterator[QuarantinedFile]:
        """All of them, by name."""
        with bucket_errors(self._bucket):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket.name, Prefix=self._bucket.prefix
            )
            names = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        for name in names:
            found = self._read(name) if name.endswith(".json") else None
            if found is not None:
                yield found

    def remove(self, file_key: str) -> None:
        """It is accepted now; nothing happens when it is not there."""
        key = self._key(file_key)
        with bucket_errors(self._bucket):
            self._client.delete_object(Bucket=self._bucket.name, Key=f"{key}.json")
            self._client.delete_object(Bucket=self._bucket.name, Key=key)

    def _read(self, key: str) -> QuarantinedFile | None:
        with bucket_errors(self._bucket):
            try:
                body = self._client.get_object(Bucket=self._bucket.name, Key=key)["Body"].read()
            except self._client.exceptions.ClientError as error:
                if is_missing(error):
                    return None
                raise
        file_key, reason = _decode(body)
        return QuarantinedFile(file_key, reason, f"s3://{self._bucket.name}/{key.removesuffix('.json')}")

    def _key(self, file_key: str) -> str:
        return self._bucket.prefix + safe_name(file_key)


def _link_or_copy(content: Path | BinaryIO, target: Path) -> None:
    if isinstance(content, Path):
        try:
            os.link(content, target)
        except OSError:
            # Another file system, or one without links.
            shutil.copyfile(content, target)
        return
    with target.open("wb") as file:
        shutil.copyfileobj(content, file)


def _json_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _encode(file_key: str, reason: Mapping[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode({"file_key": file_key, **reason}), indent=2)


def _decode(body: bytes) -> tuple[str, dict[str, Any]]:
    reason: dict[str, Any] = msgspec.json.decode(body)
    return str(reason.pop("file_key")), reason
