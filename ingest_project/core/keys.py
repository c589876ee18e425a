"""Partition keys: a readable name with 128 bits of what identifies an item, and hours as Dagster writes them.

With 128 bits nobody finds two inputs of the same key by trying; with 40 bits that took seconds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from datetime import UTC, datetime, timedelta

DIGEST_BYTES = 16
# Run tags, URLs and file names hold a key; PostgreSQL refuses tags over 2.7 KB, file systems names over 255 bytes.
NAME_BYTES = 80
# Dagster's own format of hourly partitions, e.g. `2026-01-15-10:00`, in UTC.
HOUR_FORMAT = "%Y-%m-%d-%H:00"


def digest_of(*parts: object) -> str:
    """Hash the parts into 26 characters: 128 bits in base32, lower case.

    The parts are hashed as one JSON array, so that no two lists of parts run together to the same text.

    Args:
        parts: anything that JSON can hold; lone surrogates are distinguished as well.
    """
    encoded = json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(encoded).digest()[:DIGEST_BYTES]
    return base64.b32encode(digest).decode().rstrip("=").lower()


def key_of(name: str, *parts: object, keep_end: bool = True) -> str:
    """Make a key of a readable name and the hash of what it identifies, e.g. `a.csv~mfrggzdfmztwq2lknnwg23tpoa`.

    It has letters, digits and `_.-~` only, at most 107 bytes.

    Args:
        name: any text; it is not hashed.
        parts: everything that distinguishes this key from others.
        keep_end: keep the end of a long name, where a file name has its extension; else the beginning.
    """
    return f"{_readable(name, keep_end=keep_end)}~{digest_of(*parts)}"


def hour_key(moment: datetime) -> str:
    """Return the partition key of the hour that a moment is in."""
    return moment.astimezone(UTC).strftime(HOUR_FORMAT)


def parse_hour_key(partition: str) -> datetime:
    """Return the start of the hour of a partition key.

    Raises:
        ValueError: it is not the key of an hour.
    """
    return datetime.strptime(partition, HOUR_FORMAT).replace(tzinfo=UTC)


def end_of(hour: datetime) -> datetime:
    """Return the start of the next hour."""
    return hour + timedelta(hours=1)


def _readable(name: str, *, keep_end: bool) -> str:
    # A run of dots means a range to Dagster, a leading dash an option to a shell, a leading dot a hidden file.
    plain = re.sub(r"[^\w.\-]+", "_", unicodedata.normalize("NFC", name))
    encoded = re.sub(r"\.{2,}", ".", plain).encode()
    kept = encoded[-NAME_BYTES:] if keep_end else encoded[:NAME_BYTES]
    return kept.decode("utf-8", "ignore").lstrip(".-") or "unnamed"
