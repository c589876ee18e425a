"""Files on FTP servers, `source_type` ftp; with TLS unless a job and its credentials say otherwise.

A job's `source_config`: `host`, `port`, `path`, `credentials` (none: anonymous), `tls` (`explicit`, `implicit`,
`none`), `encoding` of file names (utf-8), `time_zone` of listings (UTC; only servers without MLSD and MDTM need it).

ftplib implements the protocol; `ftp_protocol` adds the parts that it leaves to its caller.

A listing is read completely before its first entry is used, into memory or, if it is large, into a temporary file: the
server need not wait, and MDTM of an entry can be requested only after the listing has ended.
"""

from __future__ import annotations

import contextlib
import ftplib
import re
import socket
import ssl
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import IO, Any, cast, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import SecretStr

from ingest_project.core.errors import (
    ForbiddenPathError,
    IngestError,
    PermanentError,
    SourceAccessDeniedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from ingest_project.platform.http.pinned_transport import Deadline
from ingest_project.sources.file_server import Entry, FileServerSource, file_server_source
from ingest_project.sources.ftp_protocol import (
    NOT_UNDERSTOOD,
    FtpControl,
    Tls,
    parse_list_line,
    parse_machine_line,
    parse_size,
    parse_time,
    reply_code,
)
from ingest_project.sources.reading import SourceLimits, pace_of, skip_bytes
from ingest_project.sources.registry import SourceContext
from ingest_project.sources.servers import Server, logged_in, server_of

PORTS: dict[Tls, int] = {"explicit": 21, "implicit": 990, "none": 21}
READ_BYTES = 256 * 1024
LISTING_BYTES_IN_MEMORY = 4 * 1024**2
MAX_LISTING_BYTES = 256 * 1024**2
MAX_LINE_BYTES = 8_192
# Anonymous servers expect an e-mail address as the password.
_ANONYMOUS = ("anonymous", "anonymous@")
_FILE_UNAVAILABLE = "550"
_CLOSING = "421"
_NOT_LOGGED_IN = frozenset({"530", "532"})
_LATER = re.compile(
    r"too many|maximum|connection limit|try (again )?later|try again|temporar|busy|in use|being used|lock",
    re.IGNORECASE,
)
_NOT_ALLOWED = re.compile(r"permission|denied|not allowed|not permitted|privilege|access|forbidden", re.IGNORECASE)
_NO_FILE = re.compile(r"not a (plain|regular|normal) file|is a director|not retrievable|not a file", re.IGNORECASE)
_PRINTED_LENGTH = 200
# OpenSSL's codes of a certificate that is not yet or no longer valid: its owner renews it, or our clock is wrong.
_OUT_OF_DATE = (9, 10)


def open_ftp(source_config: Mapping[str, Any], context: SourceContext) -> FileServerSource:
    """Create the source for one folder of an FTP server.

    Raises:
        UnknownCredentialsError, PermanentError: the credentials do not exist, or the config is invalid.
    """
    tls = _tls(source_config)
    server, credential = server_of("ftp", source_config, PORTS[tls], context)
    password = None if credential is None else credential.password
    if tls == "none" and password is not None and credential is not None and not credential.plain_http:
        raise PermanentError(
            f'{server.location}: a password is not sent without TLS ("tls": "none") unless its credentials have '
            "plain_http."
        )
    zone = _zone(source_config)
    login = FtpLogin(server, password, tls, context.polling.source_ca_file, zone, context.limits)
    return file_server_source(source_config, server, login, context)


@dataclass(frozen=True)
class FtpLogin:
    """Account of an FTP server; equal logins share their connections.

    Args:
        password: password; None for anonymous access.
        ca_file: certificate authorities to trust in addition to the system's.
        zone: time zone of the server's LIST.
        limits: limits of time and entries.
    """

    server: Server
    password: SecretStr | None
    tls: Tls
    ca_file: Path | None
    zone: tzinfo
    limits: SourceLimits

    @property
    def location(self) -> str:
        """Server and user, for messages."""
        return self.server.location

    def connect(self) -> FtpConnection:
        """Open a new connection and log in.

        Raises:
            SourceUnreachableError: the server does not answer, or refuses temporarily.
            SourceAccessDeniedError: the login or the certificate is not accepted, or TLS is not offered.
        """
        return logged_in(self._log_in, self.password)

    def _log_in(self) -> FtpConnection:
        control = self._control()
        try:
            features = control.begin_session(*self._user_and_password())
        except BaseException as error:
            control.close()
            if isinstance(error, ftplib.Error | OSError | EOFError | ValueError):
                raise _map_login_error(error, self.location) from error
            raise
        return FtpConnection(control, features, self)

    def _control(self) -> FtpControl:
        connection = self.server.connect(self.limits.timeout_seconds)
        try:
            return FtpControl(self.server.host, connection, self.tls, self.ca_file)
        except (ftplib.Error, OSError, EOFError, ValueError) as error:
            # Servers without a certificate answer AUTH with 530 or 534.
            refused = isinstance(error, ftplib.error_perm) and reply_code(error) in {*NOT_UNDERSTOOD, "530", "534"}
            if self.tls == "explicit" and refused:
                raise SourceAccessDeniedError(
                    self.location,
                    'it does not offer TLS. Say "tls": "none" in source_config to do without; a password is sent '
                    "that way only where its credentials have plain_http",
                ) from error
            raise _map_login_error(error, self.location) from error

    def _user_and_password(self) -> tuple[str, str]:
        if self.password is None:
            return (self.server.username, "") if self.server.username else _ANONYMOUS
        return self.server.username, self.password.get_secret_value()


class FtpConnection:
    """A connection after its login.

    Args:
        control: the control connection.
        features: features of the server.
        login: login with location, zone and limits.
    """

    def __init__(self, control: FtpControl, features: frozenset[str], login: FtpLogin) -> None:
        self.usable = True
        self._limits = login.limits
        self._control = control
        self._location = login.location
        self._zone = login.zone
        self._has_machine_listing = bool(features & {"MLST", "MLSD"})
        self._has_size_and_time = True

    def answers(self) -> bool:
        """Return True if the server answers a NOOP."""
        try:
            self._control.voidcmd("NOOP")
        except ftplib.error_perm:
            return True  # an error response is a response
        except (ftplib.Error, OSError, EOFError):
            return False
        return True

    def entries(self, folder: bytes) -> Generator[Entry]:
        """List a folder with MLSD, or else LIST, after a CWD: some servers list a missing folder as empty."""
        with self._errors(folder):
            self._control.voidcmd(f"CWD {_text(folder)}")
            if self._has_machine_listing:
                try:
                    return self._parsed(self._listing("MLSD"), parse_machine_line)
                except ftplib.error_perm as error:
                    if reply_code(error) not in NOT_UNDERSTOOD:
                        raise
                    self._has_machine_listing = False
            return self._parsed(self._listing("LIST"), self._parse_list_line)

    def described(self, path: bytes) -> Entry:
        """Describe a file with MLST, or else SIZE and MDTM, or else the folder's LIST."""
        with self._errors(path):
            if self._has_machine_listing:
                return self._machine_described(path)
            if self._has_size_and_time:
                size, time = self._stated("SIZE", path), self._stated("MDTM", path)
                if size is not None and time is not None:
                    return Entry(path, "file", parse_size(size), parse_time(time))
                self._has_size_and_time = False
            return self._listed(path)

    def opened(self, path: bytes, offset: int) -> FtpFile:
        """Open a file with RETR at a position; if the server cannot do that, read and discard the bytes before it."""
        found = self.described(path)
        if found.kind != "file":
            raise ForbiddenPathError(self._at(path), "it is not a regular file.")
        with self._errors(path):
            connection, count = self._retrieve(path, offset)
        file = FtpFile(self, connection, found, path)
        try:
            skip_bytes(file, count, pace_of(self._limits, self._at(path)))
        except BaseException:
            file.close()
            raise
        return file

    def close(self) -> None:
        """Close the connection. QUIT would wait for a response."""
        self.usable = False
        self._control.close()

    def receive(self, connection: socket.socket, size: int, path: bytes) -> bytes:
        """Read from a data connection; at its end, require the server's confirmation that the file is complete.

        Raises:
            SourceUnreachableError: the transfer was cut short.
        """
        with self._errors(path):
            block = connection.recv(min(size, READ_BYTES))
            if not block:
                connection.close()
                self._control.voidresp()
        return block

    def _retrieve(self, path: bytes, offset: int) -> tuple[socket.socket, int]:
        """Begin a transfer; return its connection and the number of bytes to skip."""
        command = f"RETR {_text(path)}"
        if offset:
            try:
                return self._control.transfercmd(command, rest=offset), 0
            except ftplib.error_perm as error:
                if reply_code(error) not in NOT_UNDERSTOOD:
                    raise
        return self._control.transfercmd(command), offset

    def _machine_described(self, path: bytes) -> Entry:
        reply = self._control.sendcmd(f"MLST {_text(path)}")
        line = next((line for line in reply.split("\n") if line.startswith(" ")), "").strip("\r\n").removeprefix(" ")
        entry = parse_machine_line(line.encode("latin-1"))
        if entry.kind == "unknown":
            raise SourceUnreachableError(self._at(path), "the answer to MLST is not understood")
        return entry

    def _stated(self, command: str, path: bytes) -> str | None:
        """Return the answer to SIZE or MDTM; None if the server lacks the command."""
        try:
            return self._control.sendcmd(f"{command} {_text(path)}")[4:].strip()
        except ftplib.error_perm as error:
            if reply_code(error) in NOT_UNDERSTOOD:
                return None
            raise

    def _listed(self, path: bytes) -> Entry:
        """Find a file in the listing of its folder, for servers without any other command."""
        folder, _, name = path.rpartition(b"/")
        for entry in self.entries(folder or b"/"):
            if entry.name == name and entry.kind != "unknown":
                return replace(entry, exact=True)
        raise SourceNotFoundError(self._at(path))

    def _parse_list_line(self, line: bytes) -> Entry | None:
        entry = parse_list_line(line, datetime.now(UTC), self._zone)
        # Without SIZE and MDTM, only the listing has a time, with minute resolution.
        return entry if entry is None or self._has_size_and_time else replace(entry, exact=True)

    def _listing(self, command: str) -> IO[bytes]:
        spool = tempfile.SpooledTemporaryFile(LISTING_BYTES_IN_MEMORY)  # noqa: SIM115 - `_parsed` closes it
        try:
            pace, until = pace_of(self._limits, self._location), Deadline(self._limits.page_time)
            with self._control.transfercmd(command) as connection:
                while block := pace.timed(partial(connection.recv, READ_BYTES)):
                    until.seconds_left()
                    spool.write(block)
                    self._require_bounded(spool.tell())
            self._control.voidresp()
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
    def _parsed(spool: IO[bytes], parse: Callable[[bytes], Entry | None]) -> Generator[Entry]:
        with spool:
            head = spool.read(MAX_LINE_BYTES)
            # Where lines end as the protocol requires, a line feed alone is a character of a name.
            ending = b"\r\n" if head.count(b"\r\n") > head.count(b"\n") // 2 else b"\n"
            spool.seek(0)
            while line := spool.readline(MAX_LINE_BYTES):
                while not line.endswith(ending) and (more := spool.readline(MAX_LINE_BYTES - len(line))):
                    line += more
                if (entry := parse(line.rstrip(b"\r\n"))) is not None:
                    yield entry

    def _at(self, path: bytes) -> str:
        return self._location + path.decode("utf-8", "replace")

    @contextlib.contextmanager
    def _errors(self, path: bytes) -> Iterator[None]:
        """Map errors. A refusal leaves the connection usable; after other errors its state is unknown."""
        try:
            yield
        except (ftplib.error_perm, ftplib.error_temp) as error:
            self.usable = self.usable and reply_code(error) != _CLOSING
            raise map_error(error, self._at(path)) from error
        except (ftplib.Error, OSError, EOFError, ValueError) as error:
            # ValueError: ftplib could not parse a reply.
            self.usable = False
            raise map_error(error, self._at(path)) from error


class FtpFile:
    """The data connection of one RETR.

    Args:
        control: control connection of the transfer.
        connection: data connection; `close` closes it.
        found: description of the file when it was opened.
        path: path of the file.
    """

    def __init__(self, control: FtpConnection, connection: socket.socket, found: Entry, path: bytes) -> None:
        self.size_bytes = found.size_bytes
        self.modified_at = found.modified_at
        self._control = control
        self._connection = connection
        self._path = path
        self._ended = False

    def read(self, size: int) -> bytes:
        """Read the next bytes; empty at the end."""
        if self._ended:
            return b""
        block = self._control.receive(self._connection, size, self._path)
        self._ended = not block
        return block

    def close(self) -> None:
        """Stop reading; an unfinished transfer also closes the control connection."""
        self._connection.close()
        if not self._ended:
            self._control.usable = False


def map_error(error: Exception, location: str) -> IngestError:
    """Map the error of a command to an error of a source.

    Args:
        error: exception of ftplib, the socket or TLS.
        location: location of the command's server, folder or file.
    """
    text = _printable(error)
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code not in _OUT_OF_DATE:
        return SourceAccessDeniedError(
            location,
            f"its certificate is not trusted ({error.verify_message}). Name the authority that signed it in "
            "INGEST_SOURCE_CA_FILE",
        )
    if not isinstance(error, ftplib.error_perm) or _LATER.search(text):
        return SourceUnreachableError(location, text)
    if _NO_FILE.search(text):
        return ForbiddenPathError(location, f"it is not a regular file ({text}).")
    if reply_code(text) in _NOT_LOGGED_IN or _NOT_ALLOWED.search(text):
        return SourceAccessDeniedError(location, f"the server does not allow it ({text})")
    if reply_code(text) == _FILE_UNAVAILABLE:
        return SourceNotFoundError(location)
    return PermanentError(f"{location} cannot be read: the server answers {text}.")


def _map_login_error(error: Exception, location: str) -> IngestError:
    text = _printable(error)
    if not isinstance(error, ftplib.error_perm) or _LATER.search(text):
        return map_error(error, location)
    subject = "user or the password" if reply_code(text) in _NOT_LOGGED_IN else "login"
    return SourceAccessDeniedError(location, f"the server refuses the {subject} ({text})")


def _tls(source_config: Mapping[str, Any]) -> Tls:
    tls = source_config.get("tls", "explicit")
    if tls not in get_args(Tls):
        raise PermanentError(f"tls must be one of {', '.join(get_args(Tls))}, not {str(tls)[:20]!r}.")
    return cast("Tls", tls)


def _zone(source_config: Mapping[str, Any]) -> tzinfo:
    name = source_config.get("time_zone", "UTC")
    try:
        return ZoneInfo(str(name))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise PermanentError(f"time_zone {str(name)[:60]!r} is not a known time zone.") from error


def _printable(error: Exception) -> str:
    # Control replies are decoded as latin-1, in which every byte is a character.
    text = str(error).encode("latin-1", "replace").decode("utf-8", "replace") or type(error).__name__
    return "".join(char if char.isprintable() else " " for char in text[:_PRINTED_LENGTH]).rstrip(" .")


def _text(path: bytes) -> str:
    return path.decode("latin-1")
