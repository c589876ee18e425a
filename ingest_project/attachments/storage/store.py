"""The attachment store: files under the names their domains give them, with metadata, in a folder or in OneLake.

A reader never sees a half or empty file under a final name, and putting the same file again leaves the same state.
Metadata has a form that an HTTP header can carry, and no secrets.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit

from ingest_project.core.errors import ForbiddenPathError, PermanentError
from ingest_project.platform.azure.address import safe_path
from ingest_project.platform.object_store.files import FileFingerprint

SHA256 = "sha256"
# All of a file's metadata together may have 8 KiB in Azure.
LONGEST_VALUE = 2_048
MOST_VALUES = 3 * LONGEST_VALUE
_PLAIN = "!#$&'()*+,/:;=?@[]-._~"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def kept_metadata(metadata: Mapping[str, str], sha256: str) -> dict[str, str]:
    """What is kept: names in lower case, addresses without what may be secret, empty values left out, the digest added.

    Raises:
        PermanentError: a name that no header can carry.
    """
    kept = {}
    for name, value in metadata.items():
        if not _NAME.fullmatch(name):
            raise PermanentError(f"{name[:80]!r} cannot name metadata: ASCII letters, digits and `_` only.")
        text = without_secrets(value) if name.lower().endswith("url") else value
        if text.strip():
            kept[name.lower()] = text.strip()
    return kept | {SHA256: sha256}


def header_values(kept: Mapping[str, str]) -> dict[str, str]:
    """Values that a header can carry: percent-encoded, and cut where they are longer than the service takes.

    Raises:
        PermanentError: too much altogether.
    """
    values = {name: _header_value(value) for name, value in kept.items()}
    if sum(map(len, values.values())) > MOST_VALUES:
        raise PermanentError(f"The metadata has more than {MOST_VALUES} characters; leave some out.")
    return values


def from_header_values(values: Mapping[str, str] | None) -> dict[str, str]:
    """What `header_values` was given, as far as it was not cut."""
    return {name.lower(): unquote(value) for name, value in (values or {}).items()}


def without_secrets(url: str) -> str:
    """An address without user, password, query and fragment: signed addresses are secrets for as long as they work."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _header_value(value: str) -> str:
    encoded = quote(value.encode("utf-8", "replace"), safe=_PLAIN)[:LONGEST_VALUE]
    return re.sub(r"%[0-9A-F]?$", "", encoded)


# A sidecar's name is the file's with six more characters, and file systems take 255 bytes.
LONGEST_PART_BYTES = 240
# The metadata that says whose file it is.
OWNER = "attachment_key"
# What tells the owner of a file that was stored before files had one.
_EARLIER_OWNER = ("trace_id", "source_url")
_EARLIER_KEY = re.compile(r"~[0-9a-f]{12}$")


class PathTakenError(PermanentError):
    """A file that is not this attachment's has the name that it should be stored under.

    Args:
        destination: the name.
        reason: whose file is there.
    """

    def __init__(self, destination: str, reason: str) -> None:
        self.destination = destination
        super().__init__(f"Refused to replace {destination[:200]!r}: {reason}")


def require_plain(destination: str) -> str:
    """The destination without slashes at its ends.

    Raises:
        ForbiddenPathError: absolute, with `..` or empty or overlong parts, or hidden: names that start with a dot are
            the store's own.
    """
    if destination.startswith("/"):
        raise ForbiddenPathError(destination[:200], "a destination is relative to the store.")
    parts = safe_path(destination).split("/")
    if any(part.startswith(".") for part in parts):
        raise ForbiddenPathError(destination[:200], "names that start with a dot are the store's own.")
    if any(len(part.encode()) > LONGEST_PART_BYTES for part in parts):
        raise ForbiddenPathError(destination[:200], f"a part of it has more than {LONGEST_PART_BYTES} bytes.")
    return "/".join(parts)


def require_portable(destination: str) -> str:
    """The destination without slashes at its ends, if it names the same file in every kind of store.

    Raises:
        ForbiddenPathError: as `require_plain`; or some stores would take it for another name.
    """
    plain = require_plain(destination)
    if any(part != part.rstrip(". ") or part != part.lstrip() for part in plain.split("/")):
        raise ForbiddenPathError(destination[:200], "a part of it starts or ends with a space, or ends with a dot.")
    if plain != unicodedata.normalize("NFC", plain):
        raise ForbiddenPathError(destination[:200], "it is not in Unicode's composed form (NFC).")
    return plain


def require_owner(destination: str, present: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse to replace a file of somebody else.

    Args:
        destination: where it is.
        present: metadata of the file that is there; empty where it has none.
        wanted: metadata of the file that is to be stored there, as it is kept.

    Raises:
        PathTakenError: the file is another attachment's, or none's while this one has an owner.
    """
    owner = wanted.get(OWNER)
    if present.get(OWNER) == owner:
        return
    if OWNER in present or owner is None:
        raise PathTakenError(destination, f"the attachment {present.get(OWNER)} has its file there.")
    same = any(present.get(name) for name in _EARLIER_OWNER) and all(
        present.get(name) == wanted.get(name) for name in _EARLIER_OWNER
    )
    if not (same and _EARLIER_KEY.search(owner)):
        raise PathTakenError(destination, "a file is there that is no attachment's. Move it, or name another place.")


class StoredAttachment(NamedTuple):
    """A file in the store.

    Args:
        path: where it is, for people and results: a file's path or its https:// address.
        sha256: of its content, in hex.
    """

    path: str
    size_bytes: int
    sha256: str


class AttachmentStore(Protocol):
    """Keeps files by name. Safe to use from many threads; memory use does not grow with the file."""

    def put(  # noqa: PLR0913 - each is passed by name
        self,
        local_path: Path,
        destination: str,
        *,
        size_bytes: int,
        sha256: str,
        metadata: Mapping[str, str],
        seal: FileFingerprint | None = None,
    ) -> StoredAttachment:
        """Store a local file, in place of the same attachment's earlier one. The second time changes nothing.

        Args:
            local_path: a finished file that nobody changes meanwhile.
            destination: relative path in the store, parts separated by `/`.
            size_bytes: length the file must have.
            sha256: digest the content must have, in hex.
            metadata: what is kept with it, e.g. trace_id and source_url (its query is left out: signed addresses are
                secrets). Names are ASCII letters, digits and `_`; values may be any text. `attachment_key` is whose
                file this is, see `attachment_names.require_owner`.
            seal: of the local file when the digest was computed. A store that can take the file over as it is need not
                read it again while it has this seal.

        Raises:
            ForbiddenPathError: the destination is no plain relative path, leads out of the store, or is not portable.
            PathTakenError: a file of that name is there that is not this attachment's.
            SourceNotFoundError: there is no such local file.
            SourceChangedError: the local file is not of this length and digest; nothing is stored.
            PermanentError: the store refuses.
            StoreUnavailableError: the store cannot be written at this moment.
        """

    def stat(self, destination: str) -> StoredAttachment | None:
        """What is stored under a name; None when there is nothing.

        Raises:
            ForbiddenPathError, PermanentError, StoreUnavailableError: as `put`.
        """

    def metadata(self, destination: str) -> Mapping[str, str]:
        """What was put with the file, as it was given (a source_url without its query).

        Raises:
            SourceNotFoundError: there is no such file.
        """

    def open(self, destination: str) -> BinaryIO:
        """The bytes, to be read in order; the caller closes it.

        Raises:
            SourceNotFoundError: there is no such file.
            ForbiddenPathError, PermanentError, StoreUnavailableError: as `put`; while reading as well.
        """

    def remove_orphaned(self, older_than: timedelta, below: str = "") -> int:
        """Remove temporary files that uploaders left which were killed, and return how many.

        Args:
            older_than: no upload takes so long.
            below: folder of the store to look in; a large store in OneLake takes a request per 5,000 files.
        """

    def close(self) -> None:
        """Let go of connections and threads."""
