"""What FTP and SFTP have in common: folders that are listed, files that are described, and read from a position."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ingest_project.core.errors import ForbiddenPathError, PermanentError

Kind = Literal["file", "folder", "link", "other", "unknown"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder, as its server lists it.

    Args:
        name: the bytes the server sent; for `unknown` the whole line, which is not understood.
        kind: `link` is a symbolic link to something not yet known.
        modified_at: UTC; None where the server does not say.
        identity: what tells this folder from every other of the server, however it is reached; None if not told.
        exact: False where size or time have to be asked for again, see `ServerConnection.described`.
    """

    name: bytes
    kind: Kind
    size_bytes: int | None = None
    modified_at: datetime | None = None
    identity: str | None = None
    exact: bool = True


class OpenedFile(Protocol):
    """A file that is read from some position to its end."""

    size_bytes: int | None
    modified_at: datetime | None

    def read(self, size: int) -> bytes:
        """Some of the next bytes, at most `size`; empty at the end.

        Raises:
            SourceUnreachableError: the connection broke.
        """
        ...

    def close(self) -> None:
        """Stop reading; never raises."""
        ...


class ServerConnection(Protocol):
    """One logged-in connection, for one user at a time.

    Every method raises SourceNotFoundError, SourceAccessDeniedError, ForbiddenPathError or SourceUnreachableError;
    after the last one `usable` tells whether the connection can be used again.
    """

    usable: bool

    def answers(self) -> bool:
        """Whether the other side is still there."""
        ...

    def entries(self, folder: bytes) -> Generator[Entry]:
        """Everything in a folder. The folder is asked for before this returns, its entries come as they are read."""
        ...

    def described(self, path: bytes) -> Entry:
        """What the server says now about what is there; symbolic links are followed."""
        ...

    def opened(self, path: bytes, offset: int) -> OpenedFile:
        """A file, to be read from this position."""
        ...

    def close(self) -> None:
        """End it; never raises."""
        ...


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
