"""What FTP and SFTP have in common: folders that are listed, files that are described, and read from a position."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

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
