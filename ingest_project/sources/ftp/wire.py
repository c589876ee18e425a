"""One FTP control connection: ftplib, with what servers in the field need.

The standard library speaks the protocol; here is what it leaves to its caller. Every line is read and sent as latin-1,
so that each byte has one character and names pass unchanged. Data connections go to the host of the control connection,
whatever address the server names: behind NAT it names one that nobody outside can reach, and a hostile one names a
third party. TLS data connections resume the session of the control connection, which many servers demand. A reply is
complete within the time-out and has so many lines and bytes at most: ftplib would wait for its last line for ever.
"""

from __future__ import annotations

import contextlib
import ftplib
import re
import socket
import ssl
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Literal

from ingest_project.core.errors import (
    ForbiddenPathError,
    IngestError,
    PermanentError,
    SourceAccessDeniedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from ingest_project.platform.http.deadlines import Deadline, DeadlineSSLSocket, deadline_in_force
from ingest_project.platform.http.urls import MAX_PORT
from ingest_project.sources.limits import keeping_deadline

PRINTED_LENGTH = 200
NOT_UNDERSTOOD = frozenset({"500", "501", "502", "504"})
FILE_UNAVAILABLE = "550"
CLOSING = "421"
NOT_LOGGED_IN = frozenset({"530", "532"})

_LATER = re.compile(
    r"too many|maximum|connection limit|try (again )?later|try again|temporar|busy|in use|lock", re.IGNORECASE
)
_NOT_ALLOWED = re.compile(r"permission|denied|not allowed|not permitted|privilege|access|forbidden", re.IGNORECASE)
_NO_FILE = re.compile(r"not a (plain|regular|normal) file|is a director|not retrievable|not a file", re.IGNORECASE)


def code_of(reply: object) -> str:
    """The three digits of a reply."""
    return str(reply)[:3]


def failure_of(error: Exception, location: str) -> IngestError:
    """What a failed command means.

    Args:
        error: of ftplib, of the socket or of TLS.
        location: of the server, folder or file that it was about.
    """
    if isinstance(error, IngestError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceAccessDeniedError(
            location,
            f"its certificate is not trusted ({error.verify_message}). Name the authority that signed it in "
            "INGEST_SOURCE_CA_FILE",
        )
    if isinstance(error, ftplib.error_perm):
        return _refusal(_printable(error), location)
    return SourceUnreachableError(location, _printable(error))


def login_failure(error: Exception, location: str) -> IngestError:
    """What a failure between the greeting and the end of the login means."""
    if isinstance(error, ftplib.error_perm):
        text = _printable(error)
        if _LATER.search(text):
            return SourceUnreachableError(location, text)
        if code_of(text) in NOT_LOGGED_IN:
            return SourceAccessDeniedError(location, f"the server refuses the user or the password ({text})")
        return SourceAccessDeniedError(location, f"the server refuses the login ({text})")
    return failure_of(error, location)


def _refusal(text: str, location: str) -> IngestError:
    if _LATER.search(text):
        return SourceUnreachableError(location, text)
    if _NO_FILE.search(text):
        return ForbiddenPathError(location, f"it is not a regular file ({text}).")
    if code_of(text) in NOT_LOGGED_IN or _NOT_ALLOWED.search(text):
        return SourceAccessDeniedError(location, f"the server does not allow it ({text})")
    if code_of(text) == FILE_UNAVAILABLE:
        return SourceNotFoundError(location)
    return PermanentError(f"{location} cannot be read: the server answers {text}.")


def _printable(error: Exception) -> str:
    # Control replies are read as latin-1, so that every byte has a character.
    text = str(error).encode("latin-1", "replace").decode("utf-8", "replace") or type(error).__name__
    return "".join(char if char.isprintable() else " " for char in text[:PRINTED_LENGTH]).rstrip(" .")


FIRST_DATA_PORT = 1_024

Tls = Literal["explicit", "implicit", "none"]

# Greetings and the answer to FEAT are a few lines; nothing that is asked for here has more.
MAX_REPLY_BYTES = 64 * 1024
MAX_REPLY_LINES = 1_000
CODE_LENGTH = 3


class FtpWire(ftplib.FTP_TLS):
    """A control connection over a socket that is connected already.

    Args:
        host: the name that the certificate must be for.
        connection: taken over; closed with `close`.
        tls: `explicit` begins in the clear and asks for TLS before the login, `implicit` begins with TLS.
        ca_file: authorities that are trusted beside the system's.

    Raises:
        OSError, ftplib.Error, EOFError: there is no FTP server at the other end, or its certificate is not trusted.
    """

    def __init__(self, host: str, connection: socket.socket, tls: Tls, ca_file: Path | None) -> None:
        super().__init__(context=_tls_context(ca_file), timeout=connection.gettimeout(), encoding="latin-1")
        self.host = host
        self.af = connection.family
        self.sock = connection = keeping_deadline(connection)
        try:
            if tls == "implicit":
                self.sock = self.context.wrap_socket(connection, server_hostname=host)
            self.file = self.sock.makefile("r", encoding=self.encoding)
            self.welcome = self.getresp()
            if tls == "explicit":
                self.auth()
        except BaseException:
            self.close()
            raise
        self._extended_passive = True

    def getmultiline(self) -> str:
        """One reply, all of its lines.

        Raises:
            TimeoutError: it is not complete within the time-out.
            OSError: it is longer than replies are.
        """
        assert self.sock is not None  # noqa: S101 - set as long as the connection is open
        assert self.timeout is not None  # noqa: S101 - set when the connection is made
        self.sock.settimeout(self.timeout)
        with deadline_in_force(Deadline(timedelta(seconds=self.timeout))):
            lines = [self.getline()]
            size, code = len(lines[0]), lines[0][:CODE_LENGTH]
            ended = lines[0][CODE_LENGTH : CODE_LENGTH + 1] != "-"
            while not ended:
                lines.append(self.getline())
                size += len(lines[-1]) + 1
                if len(lines) > MAX_REPLY_LINES or size > MAX_REPLY_BYTES:
                    raise OSError(f"a reply of more than {MAX_REPLY_LINES} lines or {MAX_REPLY_BYTES} bytes")
                ended = lines[-1].startswith(f"{code} ") or lines[-1] == code
        return "\n".join(lines)

    def makepasv(self) -> tuple[str, int]:
        """Where the server waits for the data connection; the port is its word, the host is not.

        Raises:
            ftplib.error_proto: the answer names no port, or one that belongs to another service.
        """
        assert self.sock is not None  # noqa: S101 - set as long as the connection is open
        peer = self.sock.getpeername()
        if self._extended_passive:
            try:
                answer = self.sendcmd("EPSV")
                return peer[0], _data_port(ftplib.parse229(answer, peer)[1])  # noqa: S321 - FTP is what this module is for
            except ftplib.error_perm:
                self._extended_passive = False
        return peer[0], _data_port(ftplib.parse227(self.sendcmd("PASV"))[1])  # noqa: S321 - as above

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """Begin a transfer; the data connection is protected where the control connection is."""
        connection, size = super(ftplib.FTP_TLS, self).ntransfercmd(cmd, rest)
        connection = keeping_deadline(connection)
        if not isinstance(self.sock, ssl.SSLSocket):
            return connection, size
        try:
            return self.context.wrap_socket(connection, server_hostname=self.host, session=self.sock.session), size
        except BaseException:
            connection.close()
            raise

    def begin_session(self, username: str, password: str) -> frozenset[str]:
        """Log in, ask for the features, and set what holds for the whole connection.

        Returns:
            the first word of each feature, in capitals.
        """
        super(ftplib.FTP_TLS, self).login(_wire_text(username), _wire_text(password))
        if isinstance(self.sock, ssl.SSLSocket):
            self.prot_p()
        features = self._features()
        if "UTF8" in features:
            # Most servers that have it need not be asked, and some of those refuse to be.
            with contextlib.suppress(ftplib.error_perm):
                self.sendcmd("OPTS UTF8 ON")
        self.voidcmd("TYPE I")
        return features

    def _features(self) -> frozenset[str]:
        try:
            lines = self.sendcmd("FEAT").splitlines()[1:-1]
        except ftplib.error_perm as error:
            if code_of(error) not in NOT_UNDERSTOOD:
                raise
            return frozenset()
        return frozenset(line.split()[0].upper() for line in lines if line.strip())


def _data_port(port: int) -> int:
    """A port that a server may wait at for data: below these are other services of the same host."""
    if not FIRST_DATA_PORT <= port <= MAX_PORT:
        raise ftplib.error_proto(f"the server names port {port} for data")  # noqa: S321 - FTP is what this module is for
    return port


def _wire_text(text: str) -> str:
    return text.encode().decode("latin-1")


@lru_cache(maxsize=4)
def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """One for all connections: sessions are resumed only within the context they were made in."""
    context = ssl.create_default_context()
    context.sslsocket_class = DeadlineSSLSocket
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context
