"""What is kept beside an attachment's bytes, in a form that an HTTP header can carry and without secrets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from ingest_project.errors import PermanentError

if TYPE_CHECKING:
    from collections.abc import Mapping

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
