"""File names on servers are bytes; paths in messages are text. Both ways without loss.

Servers send names in UTF-8, in latin-1, or both in one folder. A name that its server's encoding cannot read is shown
as latin-1, while its path is spelled by its bytes (`bytes:/in/M%FCller.csv`): that very file is asked for later.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ingest_project.core.errors import ForbiddenPathError, PermanentError

BY_BYTES = "bytes:"
ENCODINGS = (
    *("utf-8", "latin-1", "iso8859-15", "cp1250", "cp1251", "cp1252", "cp437", "cp850", "koi8-r"),
    *("shift_jis", "euc_jp", "euc_kr", "gb18030", "big5"),
)
_LAST_CONTROL = 0x1F
_DELETE = 0x7F


@dataclass(frozen=True)
class NameCoding:
    """How one server writes names.

    Args:
        encoding: one of `ENCODINGS`.
    """

    encoding: str = "utf-8"

    @classmethod
    def of(cls, encoding: object) -> NameCoding:
        """Read the `encoding` of a job's source_config.

        Raises:
            PermanentError: not one of those that are known.
        """
        if encoding not in ENCODINGS:
            raise PermanentError(f"encoding {str(encoding)[:40]!r} is unknown. Known are: {', '.join(ENCODINGS)}.")
        return cls(str(encoding))

    def name(self, raw: bytes) -> str:
        """A name as a person reads it."""
        return self._exact(raw) or raw.decode("latin-1")

    def path(self, raw: bytes) -> str:
        """An absolute path as messages carry it; `raw_path` gives the same bytes back."""
        return self._exact(raw) or BY_BYTES + quote_from_bytes(raw)

    def raw_path(self, path: str) -> bytes:
        """The bytes of a path as its server knows it: absolute, without `.`, `..` and double slashes.

        Paths start at the server's root whether they are written with a slash or not: what a server takes as the
        start of others differs by user and changes, and one file must have one name.

        Raises:
            ForbiddenPathError: no server can have such a path, or it cannot be asked for.
        """
        raw = self._encoded(path)
        if any(byte <= _LAST_CONTROL or byte == _DELETE for byte in raw):
            raise ForbiddenPathError(path, "it has control characters.")
        parts: list[bytes] = []
        for part in raw.split(b"/"):
            if part == b"..":
                del parts[-1:]
            elif part not in (b"", b"."):
                parts.append(part)
        return b"/" + b"/".join(parts)

    def _encoded(self, path: str) -> bytes:
        try:
            if path.startswith(BY_BYTES):
                return unquote_to_bytes(path.removeprefix(BY_BYTES))
            return path.encode(self.encoding)
        except UnicodeEncodeError:
            raise ForbiddenPathError(
                path, f"it cannot be written in {self.encoding}, this server's encoding."
            ) from None

    def _exact(self, raw: bytes) -> str | None:
        try:
            text = raw.decode(self.encoding)
            return text if text.encode(self.encoding) == raw else None
        except UnicodeError:
            return None


def is_askable(raw_name: bytes) -> bool:
    """Whether a name from a listing can be part of a path that is asked for."""
    return raw_name not in (b"", b".", b"..") and not any(
        byte <= _LAST_CONTROL or byte in (_DELETE, ord("/")) for byte in raw_name
    )


def joined(folder: bytes, name: bytes) -> bytes:
    """The path of what lies in a folder."""
    return folder.rstrip(b"/") + b"/" + name
