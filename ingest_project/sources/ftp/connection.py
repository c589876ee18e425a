"""One logged-in FTP connection: folders, files, positions, in the server's own commands.

A listing is read to its end before its first entry is looked at, into memory or, where it is large, into a temporary
file: a server waits for nobody, and what MDTM says of an entry can only be asked for when the listing is over.
"""

from __future__ import annotations

import contextlib
import ftplib
import socket
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from functools import partial
from typing import IO

from ingest_project.core.errors import ForbiddenPathError, PermanentError, SourceNotFoundError, SourceUnreachableError
from ingest_project.platform.http.deadlines import Deadline
from ingest_project.sources.ftp.listing import listed_entry, machine_entry, size_of, time_of
from ingest_project.sources.ftp.wire import CLOSING, NOT_UNDERSTOOD, FtpWire, code_of, failure_of
from ingest_project.sources.limits import Pace, SourceLimits
from ingest_project.sources.resumed_reading import pass_over
from ingest_project.sources.server_connection import Entry

Parse = Callable[[bytes], Entry | None]

READ_BYTES = 256 * 1024
LISTING_BYTES_IN_MEMORY = 4 * 1024**2
MAX_LISTING_BYTES = 256 * 1024**2
MAX_LINE_BYTES = 8_192


class FtpConnection:
    """A connection after its login.

    Args:
        wire: the control connection.
        features: what the server says it can do.
        location: of the server, for messages.
        zone: of the times in its LIST.
        limits: what it may take.
    """

    def __init__(
        self, wire: FtpWire, features: frozenset[str], location: str, zone: tzinfo, limits: SourceLimits
    ) -> None:
        self.usable = True
        self._limits = limits
        self._wire = wire
        self._location = location
        self._zone = zone
        self._machine_listing = bool(features & {"MLST", "MLSD"})
        self._tells_size = True
        self._tells_time = True

    def answers(self) -> bool:
        """Whether the server answers a NOOP."""
        try:
            self._wire.voidcmd("NOOP")
        except ftplib.error_perm:
            return True  # it does not know the command, and said so
        except (ftplib.Error, OSError, EOFError):
            return False
        return True

    def entries(self, folder: bytes) -> Generator[Entry]:
        """What MLSD, or else LIST, says of a folder. It is entered first: some list nothing for one that is missing."""
        with self._failures(folder):
            self._wire.voidcmd(f"CWD {_text(folder)}")
            if self._machine_listing:
                try:
                    return self._read(self._listing("MLSD"), machine_entry)
                except ftplib.error_perm as error:
                    if code_of(error) not in NOT_UNDERSTOOD:
                        raise
                    self._machine_listing = False
            return self._read(self._listing("LIST"), self._parse_listed)

    def described(self, path: bytes) -> Entry:
        """What MLST, or else SIZE and MDTM, or else the folder's LIST, says of a file."""
        with self._failures(path):
            if self._machine_listing:
                return self._machine_described(path)
            size = self._told("SIZE", path) if self._tells_size else None
            if size is None:
                self._tells_size = False
                return self._listed(path)
            time = self._told("MDTM", path) if self._tells_time else None
            if time is None:
                self._tells_time = False
                return self._listed(path)
            return Entry(path, "file", size_of(size), time_of(time))

    def opened(self, path: bytes, offset: int) -> FtpFile:
        """RETR, from a position where the server can; where it cannot, what comes before is read and dropped."""
        found = self.described(path)
        if found.kind != "file":
            raise ForbiddenPathError(self._at(path), "it is not a regular file.")
        with self._failures(path):
            connection, skip = self._retrieve(path, offset)
        file = FtpFile(self, connection, found, self._at(path))
        try:
            pass_over(file, skip, Pace(self._limits, self._at(path)))
        except BaseException:
            file.close()
            raise
        return file

    def close(self) -> None:
        """Hang up. QUIT would wait for an answer."""
        self.usable = False
        self._wire.close()

    def finish_transfer(self, location: str) -> None:
        """Hear how a transfer ended, after its last byte.

        Raises:
            SourceUnreachableError: it was cut short.
        """
        with self._failures_at(location):
            self._wire.voidresp()

    def _retrieve(self, path: bytes, offset: int) -> tuple[socket.socket, int]:
        command = f"RETR {_text(path)}"
        if offset:
            try:
                return self._wire.transfercmd(command, rest=offset), 0
            except ftplib.error_perm as error:
                if code_of(error) not in NOT_UNDERSTOOD:
                    raise
        return self._wire.transfercmd(command), offset

    def _machine_described(self, path: bytes) -> Entry:
        reply = self._wire.sendcmd(f"MLST {_text(path)}")
        line = next((line for line in reply.split("\n") if line.startswith(" ")), "").strip("\r\n").removeprefix(" ")
        entry = machine_entry(line.encode("latin-1"))
        if entry.kind == "unknown":
            raise SourceUnreachableError(self._at(path), "the answer to MLST is not understood")
        return entry

    def _told(self, command: str, path: bytes) -> str | None:
        """The answer to SIZE or MDTM; None from a server that does not have it."""
        try:
            return self._wire.sendcmd(f"{command} {_text(path)}")[4:].strip()
        except ftplib.error_perm as error:
            if code_of(error) in NOT_UNDERSTOOD:
                return None
            raise

    def _listed(self, path: bytes) -> Entry:
        """What the listing of its folder says of one file: all there is to know on the simplest of servers."""
        folder, _, name = path.rpartition(b"/")
        for entry in self.entries(folder or b"/"):
            if entry.name == name and entry.kind != "unknown":
                return replace(entry, exact=True)
        raise SourceNotFoundError(self._at(path))

    def _parse_listed(self, line: bytes) -> Entry | None:
        entry = listed_entry(line, datetime.now(UTC), self._zone)
        # Where nothing more exact can be had, the minutes of the listing have to do.
        told_more = self._tells_size and self._tells_time
        return entry if entry is None or told_more else replace(entry, exact=True)

    def _listing(self, command: str) -> IO[bytes]:
        spool = tempfile.SpooledTemporaryFile(LISTING_BYTES_IN_MEMORY)  # noqa: SIM115 - closed by who reads it
        try:
            pace, until = Pace(self._limits, self._location), Deadline(self._limits.page_time)
            with self._wire.transfercmd(command) as connection:
                while block := pace.timed(partial(connection.recv, READ_BYTES)):
                    until.seconds_left()
                    spool.write(block)
                    self._require_bounded(spool.tell())
            self._wire.voidresp()
        except BaseException:
            spool.close()
            raise
        spool.seek(0)
        return spool

    def _require_bounded(self, size: int) -> None:
        if size > MAX_LISTING_BYTES:
            self.usable = False
            raise PermanentError(f"A folder of {self._location} has a listing of more than {MAX_LISTING_BYTES} bytes.")

    @staticmethod
    def _read(spool: IO[bytes], parse: Parse) -> Generator[Entry]:
        with spool:
            while line := spool.readline(MAX_LINE_BYTES):
                if (entry := parse(line.rstrip(b"\r\n"))) is not None:
                    yield entry

    def _at(self, path: bytes) -> str:
        return self._location + path.decode("utf-8", "replace")

    def _failures(self, path: bytes) -> contextlib.AbstractContextManager[None]:
        return self._failures_at(self._at(path))

    @contextlib.contextmanager
    def _failures_at(self, location: str) -> Iterator[None]:
        """A refusal leaves the connection as it was; after anything else it is not known what comes next on it."""
        try:
            yield
        except (ftplib.error_perm, ftplib.error_temp) as error:
            self.usable = self.usable and code_of(error) != CLOSING
            raise failure_of(error, location) from error
        except (ftplib.Error, OSError, EOFError) as error:
            self.usable = False
            raise failure_of(error, location) from error
        except ValueError as error:
            # ftplib could not make sense of a reply.
            self.usable = False
            raise SourceUnreachableError(location, error) from error


class FtpFile:
    """The data connection of one RETR.

    Args:
        control: where the end of the transfer is told.
        connection: closed with `close`.
        found: the file as it was when it was opened.
        location: of the file, for messages.
    """

    def __init__(self, control: FtpConnection, connection: socket.socket, found: Entry, location: str) -> None:
        self.size_bytes = found.size_bytes
        self.modified_at = found.modified_at
        self._control = control
        self._connection = connection
        self._location = location
        self._ended = False

    def read(self, size: int) -> bytes:
        """The next bytes; at the end the server must confirm that there are no more."""
        if self._ended:
            return b""
        try:
            block = self._connection.recv(min(size, READ_BYTES))
        except OSError as error:
            raise failure_of(error, self._location) from error
        if not block:
            self._connection.close()
            self._control.finish_transfer(self._location)
            self._ended = True
        return block

    def close(self) -> None:
        """Stop; a transfer that has not ended takes its connection with it."""
        self._connection.close()
        if not self._ended:
            self._control.usable = False


def _text(path: bytes) -> str:
    return path.decode("latin-1")
