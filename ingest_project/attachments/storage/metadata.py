"""What is kept beside an attachment's bytes, in a form that an HTTP header can carry and without secrets."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

from ingest_project.core.errors import ForbiddenPathError, PermanentError
from ingest_project.platform.azure.address import safe_path

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
