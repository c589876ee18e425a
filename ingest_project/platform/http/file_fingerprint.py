"""What a file looked like when its digest was known: as long as it looks so, nobody has to read it again to know it."""

from __future__ import annotations

import os
from typing import NamedTuple, Self


class FileFingerprint(NamedTuple):
    """Which file it is, and when it was last written to. A link to the file has the same seal, a copy has not."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """The seal of a file as it is now."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
