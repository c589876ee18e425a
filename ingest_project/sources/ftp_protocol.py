"""The FTP control connection, and parsers for the lines of listings.

Every line is decoded and encoded as latin-1, so that each byte is one character and names pass unchanged. Data
connections always go to the host of the control connection: behind NAT, a server names an unreachable address, and a
hostile server names a third party. TLS data connections resume the session of the control connection, which many
servers require. A reply has a deadline and a maximum size: ftplib would wait for its last line without limit.

MLSD is standardised and exact. LIST is text for people, in the format of `ls -l` or MS-DOS: times have minute
resolution, lack the year if they are recent, and are in a time zone that the server does not state.
"""

from __future__ import annotations

import contextlib
import ftplib
import re
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Literal

from ingest_project.platform.http import MAX_PORT
from ingest_project.platform.http.pinned_transport import Deadline, deadline_in_force, tls_context, with_deadline
from ingest_project.sources import MAX_SIZE_BYTES
from ingest_project.sources.file_server import Entry, Kind

_MONTHS = (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec")
_MODE = re.compile(rb"[A-Za-z-][-rwxsStTlL]{9}[.+@]?")
_CLOCK = re.compile(rb"([0-9]{1,2}):([0-9]{2})")
_DAY = re.compile(rb"[0-9]{1,2}")
_ISO_DATE = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DOS_TIME = re.compile(rb"([0-9]{2})-([0-9]{2})-((?:[0-9]{2}){1,2}) ([0-9]{2}):([0-9]{2})(AM|PM)?")
_MACHINE_TIME = re.compile(r"([0-9]{14})(?:\.([0-9]+))?")
_TOTAL = re.compile(rb"total +[0-9]+")
_MAX_SIZE_DIGITS = len(str(MAX_SIZE_BYTES))
# After the mode: links, owner, group, size, time. Owners and groups of Windows domains contain spaces.
_MAX_WORDS = 16
_UNIX_KINDS: dict[bytes, Kind] = {b"-": "file", b"d": "folder", b"l": "link"}
_MACHINE_KINDS: dict[str, Kind] = {"file": "file", "dir": "folder"}
# Tolerance for a server in a time zone ahead of ours, or with a fast clock.
_AHEAD = timedelta(days=1)
# In DOS listings, two-digit years from this one onwards belong to the 20th century.
_FIRST_TWO_DIGIT_YEAR = 70


def parse_time(text: str) -> datetime | None:
    """Parse a UTC time of MDTM, MLSD or MLST, `20260115103045` or with a fraction; None for any other text."""
    found = _MACHINE_TIME.fullmatch(text.strip())
    if found is None:
        return None
    try:
        moment = datetime.strptime(found[1], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    return moment.replace(microsecond=int((found[2] or "0")[:6].ljust(6, "0")))


def parse_size(text: str) -> int | None:
    """Parse a number of bytes of SIZE or MLSD; None for an impossible one."""
    return _size(text.strip().encode("latin-1", "replace"))


def parse_machine_line(line: bytes) -> Entry:
    """Parse one line of MLSD or MLST: `type=file;size=5;modify=20260115103045; name`.

    A malformed line, or one with an impossible size or time, is `unknown`.
    """
    facts_text, space, name = line.partition(b" ")
    if not space or b"=" not in facts_text:
        return Entry(line, "unknown")
    pairs = (fact.partition("=") for fact in facts_text.decode("latin-1").split(";"))
    facts = {fact.lower(): value for fact, _, value in pairs}
    kind, size, modified_at = _machine_kind(facts.get("type", "").lower()), facts.get("size"), facts.get("modify")
    found = Entry(
        name=name,
        kind=kind,
        size_bytes=parse_size(size) if size else None,
        modified_at=parse_time(modified_at) if modified_at else None,
        identity=facts.get("unique") or None,
    )
    impossible = (size and found.size_bytes is None) or (modified_at and found.modified_at is None)
    return Entry(line, "unknown") if impossible and kind == "file" else found


def parse_list_line(line: bytes, now: datetime, zone: tzinfo) -> Entry | None:
    """Parse one line of LIST; None for lines that are not entries (blank lines, `total 12`).

    Reads from left to right, word by word, so that the time is linear in the length of any line.

    Args:
        line: line without its end.
        now: current time, which determines the year of a time without one.
        zone: time zone of the server's clock.
    """
    stripped = line.strip()
    if not stripped or _TOTAL.fullmatch(stripped):
        return None
    return _unix_entry(line, now, zone) or _dos_entry(line, zone) or Entry(line, "unknown")


def _machine_kind(fact: str) -> Kind:
    # `cdir` and `pdir`, the folder itself and its parent, are named `.` and `..`, or by their paths.
    return "link" if fact.startswith(("os.unix=symlink", "os.unix=slink")) else _MACHINE_KINDS.get(fact, "other")


def _unix_entry(line: bytes, now: datetime, zone: tzinfo) -> Entry | None:
    words = list(_words(line))
    mode = words[0][0]
    if not _MODE.fullmatch(mode):
        return None
    # A number after the mode is the number of links, or on servers without links possibly the size.
    after_links = 2 if len(words) > 1 and words[1][0].isdigit() else 1
    for begin in (*range(after_links, len(words)), *range(1, after_links)):
        size_bytes = _size(words[begin][0])
        time = words[begin + 1 : begin + 4]
        when = None if size_bytes is None else _unix_time([word for word, _ in time], now, zone)
        if when is not None:
            moment, length = when
            name, kind = line[time[length - 1][1] + 1 :], _UNIX_KINDS.get(mode[:1], "other")
            if kind == "link":
                name = name.partition(b" -> ")[0]
            return Entry(name, kind, size_bytes, moment, exact=False) if name else None
    return None


def _unix_time(words: list[bytes], now: datetime, zone: tzinfo) -> tuple[datetime | None, int] | None:
    """Parse the time at the beginning of these words, and count its words; None if they begin with no time.

    The time is None if the month is not English: it must then be requested from the server.
    """
    first, second, third = [*words, b"", b"", b""][:3]
    try:
        if _ISO_DATE.fullmatch(first) and _CLOCK.fullmatch(second):
            return _utc(datetime.fromisoformat(f"{first.decode()}T{second.decode():0>5}"), zone), 2
        dated, clock = third.isdigit() and len(third) == len("2026"), _CLOCK.fullmatch(third)
        is_time = len(first) == len("Jan") and first.isalpha() and _DAY.fullmatch(second) and (dated or clock)
        if not is_time:
            return None
        if first.lower() not in _MONTHS:
            return None, 3
        month, day = _MONTHS.index(first.lower()) + 1, int(second)
        if clock is None:
            return _utc(datetime(int(third), month, day), zone), 3  # noqa: DTZ001 - the zone is next
        return _recent(month, day, int(clock[1]), int(clock[2]), now, zone), 3
    except (ValueError, OverflowError):
        return None


def _recent(month: int, day: int, hour: int, minute: int, now: datetime, zone: tzinfo) -> datetime:  # noqa: PLR0913, PLR0917 - a time
    """Return the latest past moment with this month, day and time."""
    this_year = now.astimezone(zone).year
    for year in (this_year + 1, this_year, this_year - 1):
        try:
            moment = _utc(datetime(year, month, day, hour, minute), zone)  # noqa: DTZ001 - the zone is next
        except ValueError:
            continue  # the 29th of February
        if moment <= now + _AHEAD:
            return moment
    raise ValueError("no such time in these years")


def _dos_entry(line: bytes, zone: tzinfo) -> Entry | None:
    words = list(_words(line))[:3]
    if len(words) < 3 or words[0][1] != len(words[0][0]):  # noqa: PLR2004 - date, time, size; at the line's beginning
        return None
    (date, _), (clock, _), (size, end) = words
    name = line[end:].lstrip() if size.startswith(b"<") else line[end + 1 :]
    moment = _dos_time(date + b" " + clock, zone)
    if moment is None or not name:
        return None
    if size.startswith(b"<") and size.endswith(b">"):
        return Entry(name, "folder" if size == b"<DIR>" else "link", None, moment, exact=False)
    size_bytes = _size(size)
    return None if size_bytes is None else Entry(name, "file", size_bytes, moment, exact=False)


def _dos_time(text: bytes, zone: tzinfo) -> datetime | None:
    found = _DOS_TIME.fullmatch(text)
    if found is None:
        return None
    month, day, year, hour, minute = map(int, found.groups()[:5])
    if len(found[3]) == 2:  # noqa: PLR2004 - digits
        year += 1900 if year >= _FIRST_TWO_DIGIT_YEAR else 2000
    if found[6]:
        hour = hour % 12 + (12 if found[6] == b"PM" else 0)
    try:
        return _utc(datetime(year, month, day, hour, minute), zone)  # noqa: DTZ001 - the zone is next
    except (ValueError, OverflowError):
        return None


def _words(line: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the first words of a line, each with its end position."""
    position = 0
    for word in line.split(None, _MAX_WORDS)[:_MAX_WORDS]:
        position = line.index(word, position) + len(word)
        yield word, position


def _size(word: bytes) -> int | None:
    """Parse a possible file size in bytes; None for any other text."""
    if not word.isdigit() or len(word) > _MAX_SIZE_DIGITS:
        return None
    size = int(word)
    return size if size <= MAX_SIZE_BYTES else None


def _utc(local: datetime, zone: tzinfo) -> datetime:
    return local.replace(tzinfo=zone).astimezone(UTC)


Tls = Literal["explicit", "implicit", "none"]
# Greetings and answers to FEAT have a few lines, and no other reply used here has more.
MAX_REPLY_BYTES = 64 * 1024
MAX_REPLY_LINES = 1_000
# Lower ports belong to other services of the host.
FIRST_DATA_PORT = 1_024
NOT_UNDERSTOOD = frozenset({"500", "501", "502", "504"})


class FtpControl(ftplib.FTP_TLS):
    """A control connection over a connected socket.

    Args:
        host: name that the certificate must have.
        connection: socket, owned by this object and closed with `close`.
        tls: `explicit` starts without TLS and requests it before the login, `implicit` starts with TLS.
        ca_file: certificate authorities to trust in addition to the system's.

    Raises:
        OSError, ftplib.Error, EOFError: no FTP server answers, or its certificate is not trusted.
    """

    def __init__(self, host: str, connection: socket.socket, tls: Tls, ca_file: Path | None) -> None:
        # TLS sessions can be resumed only within the same context.
        super().__init__(context=tls_context(ca_file), timeout=connection.gettimeout(), encoding="latin-1")
        self.host = host
        self.af = connection.family
        self._timeout_seconds = connection.gettimeout() or 0.0
        self.sock = connection = with_deadline(connection)
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

    @property
    def _connected(self) -> socket.socket:
        assert self.sock is not None  # noqa: S101 - set as long as the connection is open
        return self.sock

    def getmultiline(self) -> str:
        """Read all lines of one reply.

        Raises:
            TimeoutError: the reply is not complete within the timeout.
            OSError: the reply exceeds the maximum size.
        """
        self._connected.settimeout(self._timeout_seconds)
        with deadline_in_force(Deadline(timedelta(seconds=self._timeout_seconds))):
            lines = [self.getline()]
            size, code = len(lines[0]), reply_code(lines[0])
            ended = lines[0][len(code) : len(code) + 1] != "-"
            while not ended:
                lines.append(self.getline())
                size += len(lines[-1]) + 1
                if len(lines) > MAX_REPLY_LINES or size > MAX_REPLY_BYTES:
                    raise OSError(f"a reply of more than {MAX_REPLY_LINES} lines or {MAX_REPLY_BYTES} bytes")
                ended = lines[-1].startswith(f"{code} ") or lines[-1] == code
        return "\n".join(lines)

    def makepasv(self) -> tuple[str, int]:
        """Return the address of the data connection: the control connection's host, and the port from the answer.

        Raises:
            ftplib.error_proto: the answer contains no port, or a port of another service.
        """
        peer = self._connected.getpeername()
        if self._extended_passive:
            try:
                answer = self.sendcmd("EPSV")
                return peer[0], _data_port(ftplib.parse229(answer, peer)[1])  # noqa: S321 - FTP is what this module is for
            except ftplib.error_perm:
                self._extended_passive = False
        return peer[0], _data_port(ftplib.parse227(self.sendcmd("PASV"))[1])  # noqa: S321 - as above

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """Begin a transfer; the data connection uses TLS if the control connection does."""
        connection, size = super(ftplib.FTP_TLS, self).ntransfercmd(cmd, rest)
        connection = with_deadline(connection)
        if not isinstance(self.sock, ssl.SSLSocket):
            return connection, size
        try:
            return self.context.wrap_socket(connection, server_hostname=self.host, session=self.sock.session), size
        except BaseException:
            connection.close()
            raise

    def begin_session(self, username: str, password: str) -> frozenset[str]:
        """Log in, request the features, and set the options of the connection.

        Returns:
            the first word of each feature, in capitals.
        """
        super(ftplib.FTP_TLS, self).login(username.encode().decode("latin-1"), password.encode().decode("latin-1"))
        if isinstance(self.sock, ssl.SSLSocket):
            self.prot_p()
        features = self._features()
        if "UTF8" in features:
            # Most servers that support UTF-8 use it without a request, and some refuse the request.
            with contextlib.suppress(ftplib.error_perm):
                self.sendcmd("OPTS UTF8 ON")
        self.voidcmd("TYPE I")
        return features

    def _features(self) -> frozenset[str]:
        try:
            lines = self.sendcmd("FEAT").splitlines()[1:-1]
        except ftplib.error_perm as error:
            if reply_code(error) not in NOT_UNDERSTOOD:
                raise
            return frozenset()
        return frozenset(line.split()[0].upper() for line in lines if line.strip())


def reply_code(reply: object) -> str:
    """Return the three digits of a reply."""
    return str(reply)[:3]


def _data_port(port: int) -> int:
    if not FIRST_DATA_PORT <= port <= MAX_PORT:
        raise ftplib.error_proto(f"the server names port {port} for data")  # noqa: S321 - FTP is what this module is for
    return port
