"""What FTP servers answer when they are asked for a folder, as pure functions over one line.

MLSD is a standard and exact. LIST is text for people: as `ls -l` prints it, or as MS-DOS did; in minutes, without the
year where it is recent, in a time zone that the server keeps to itself.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ingest_project.sources.server_connection import Entry

if TYPE_CHECKING:
    from datetime import tzinfo

    from ingest_project.sources.server_connection import Kind

_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"), 1
    )
}
_UNIX = re.compile(
    rb"(?P<kind>[a-zA-Z-])[-rwxsStTlL]{9}[.+@]?\s+(?:\d+\s+)?.*?(?P<size>\d+)\s+"
    rb"(?:(?P<month>[A-Za-z]{3})\s+(?P<day>\d{1,2})\s+(?:(?P<hour>\d{1,2}):(?P<minute>\d{2})|(?P<year>\d{4}))"
    rb"|(?P<iso>\d{4}-\d{2}-\d{2} \d{2}:\d{2}))\s(?P<name>.+)"
)
_DOS = re.compile(
    rb"(?P<month>\d{2})-(?P<day>\d{2})-(?P<year>\d{4}|\d{2})\s+(?P<hour>\d{2}):(?P<minute>\d{2})(?P<half>[AP]M)?\s+"
    rb"(?:(?P<folder><[A-Z]+>)\s+|(?P<size>\d+) )(?P<name>.+)"
)
_TOTAL = re.compile(rb"total\s+\d+")
_TIME = re.compile(r"(\d{4})(\d{2})(\d{2})(\d{2})(\d{2})(\d{2})(?:\.(\d{1,6})\d*)?")
_KINDS_OF_UNIX: dict[bytes, Kind] = {b"-": "file", b"d": "folder", b"l": "link"}
_LINK_ARROW = b" -> "
# What a server in a zone ahead of ours, or with a fast clock, calls now.
_AHEAD = timedelta(days=1)
# Two-digit years of DOS listings from here on are of the last century.
_FIRST_TWO_DIGIT_YEAR = 70
_HALF_DAY = 12


def time_of(text: str) -> datetime | None:
    """A time as MDTM, MLSD and MLST write it, `20260115103045` or with a fraction, in UTC; None where it is none."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    *parts, fraction = match.groups()
    try:
        return datetime(*map(int, parts), int((fraction or "0").ljust(6, "0")), tzinfo=UTC)  # type: ignore[arg-type, misc]
    except ValueError:
        return None


def machine_entry(line: bytes) -> Entry:
    """One line of MLSD or MLST: `type=file;size=5;modify=20260115103045; name`."""
    facts_text, space, name = line.partition(b" ")
    if not space or b"=" not in facts_text:
        return Entry(line, "unknown")
    pairs = (fact.partition("=") for fact in facts_text.decode("latin-1").split(";"))
    facts = {fact.lower(): value for fact, _, value in pairs}
    size = facts.get("size", "")
    return Entry(
        name=name,
        kind=_machine_kind(facts.get("type", "").lower()),
        size_bytes=int(size) if size.isascii() and size.isdigit() else None,
        modified_at=time_of(facts.get("modify", "")),
        identity=facts.get("unique") or None,
    )


def listed_entry(line: bytes, now: datetime, zone: tzinfo) -> Entry | None:
    """One line of LIST; None for what is no entry (blank lines, `total 12`).

    Args:
        line: without its end.
        now: decides the year of a time without one.
        zone: of the server's clock.
    """
    if not line.strip() or _TOTAL.fullmatch(line.strip()):
        return None
    if match := _UNIX.fullmatch(line):
        return _unix_entry(match, now, zone)
    if match := _DOS.fullmatch(line):
        return _dos_entry(match, zone)
    return Entry(line, "unknown")


def _machine_kind(fact: str) -> Kind:
    if fact == "file":
        return "file"
    if fact == "dir":
        return "folder"
    if fact in ("cdir", "pdir"):
        return "other"  # the folder itself and the one above it; they are named `.` and `..`, or by their paths
    return "link" if fact.startswith(("os.unix=symlink", "os.unix=slink")) else "other"


def _unix_entry(match: re.Match[bytes], now: datetime, zone: tzinfo) -> Entry:
    kind = _KINDS_OF_UNIX.get(match["kind"], "other")
    name = match["name"].partition(_LINK_ARROW)[0] if kind == "link" else match["name"]
    modified_at = _unix_time(match, now, zone)
    return Entry(name, kind, int(match["size"]), modified_at, exact=False)


def _unix_time(match: re.Match[bytes], now: datetime, zone: tzinfo) -> datetime | None:
    if match["iso"]:
        return _utc(datetime.strptime(match["iso"].decode(), "%Y-%m-%d %H:%M"), zone)  # noqa: DTZ007 - the zone is next
    month, day = _MONTHS.get(match["month"].lower()), int(match["day"])
    if month is None:
        return None
    if match["year"]:
        return _at(int(match["year"]), month, day, 0, 0, zone)
    hour, minute = int(match["hour"]), int(match["minute"])
    this_year = now.astimezone(zone).year
    for year in (this_year + 1, this_year, this_year - 1):
        moment = _at(year, month, day, hour, minute, zone)
        if moment is not None and moment <= now + _AHEAD:
            return moment
    return None


def _dos_entry(match: re.Match[bytes], zone: tzinfo) -> Entry:
    year, hour = int(match["year"]), int(match["hour"])
    if len(match["year"]) == len("26"):
        year += 1900 if year >= _FIRST_TWO_DIGIT_YEAR else 2000
    if match["half"]:
        hour = hour % _HALF_DAY + (_HALF_DAY if match["half"] == b"PM" else 0)
    modified_at = _at(year, int(match["month"]), int(match["day"]), hour, int(match["minute"]), zone)
    if match["folder"]:
        return Entry(match["name"], "folder" if match["folder"] == b"<DIR>" else "link", None, modified_at, exact=False)
    return Entry(match["name"], "file", int(match["size"]), modified_at, exact=False)


def _at(year: int, month: int, day: int, hour: int, minute: int, zone: tzinfo) -> datetime | None:  # noqa: PLR0913, PLR0917 - the parts of a time
    try:
        return _utc(datetime(year, month, day, hour, minute), zone)  # noqa: DTZ001 - the zone is next
    except ValueError:
        return None


def _utc(local: datetime, zone: tzinfo) -> datetime:
    return local.replace(tzinfo=zone).astimezone(UTC)
