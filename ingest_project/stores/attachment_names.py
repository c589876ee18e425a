"""Which names an attachment may have in a store of any kind."""

from __future__ import annotations

from ingest_project.errors import ForbiddenPath
from ingest_project.onelake.address import safe_path

# A sidecar's name is the file's with six more characters, and file systems take 255 bytes.
LONGEST_PART_BYTES = 240


def require_plain(destination: str) -> str:
    """The destination without slashes at its ends.

    Raises:
        ForbiddenPath: absolute, with `..` or empty or overlong parts, or hidden: names that start with a dot are the
            store's own.
    """
    if destination.startswith("/"):
        raise ForbiddenPath(destination[:200], "a destination is relative to the store.")
    parts = safe_path(destination).split("/")
    if any(part.startswith(".") for part in parts):
        raise ForbiddenPath(destination[:200], "names that start with a dot are the store's own.")
    if any(len(part.encode()) > LONGEST_PART_BYTES for part in parts):
        raise ForbiddenPath(destination[:200], f"a part of it has more than {LONGEST_PART_BYTES} bytes.")
    return "/".join(parts)
