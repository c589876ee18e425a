"""What FTP servers answer when they are asked for a folder, as pure functions over one line.

MLSD is a standard and exact. LIST is text for people: as `ls -l` prints it, or as MS-DOS did; in minutes, without the
year where it is recent, in a time zone that the server keeps to itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo

from ingest_project.sources.http.page import MAX_SIZE_BYTES, MAX_SIZE_DIGITS
from ingest_project.sources.server_connection import Entry, Kind

_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"), 1
    )
}
_MODES = frozenset(b"-rwxsStTlL")
_MODE_LENGTH = 10
# After the mode: links, owner, group, size, time. Owners and groups of Windows domains have spaces in them.
_MOST_WORDS = 16
_DAY_DIGITS = 2
_MONTH_LETTERS = 3
_YEAR_DIGITS = 4
_CLOCK_LENGTH = len("10:30")
_DATE_LENGTH = len("2026-01-15")
_SECONDS_LENGTH = len("20260115103045")
_FRACTION_DIGITS = 6
_KINDS_OF_UNIX: dict[bytes, Kind] = {b"-": "file", b"d": "folder", b"l": "link"}
_LINK_ARROW = b" -> "
# What a server in a zone ahead of ours, or with a fast clock, calls now.
_AHEAD = timedelta(days=1)
# Two-digit years of DOS listings from here on are of the last century.
_FIRST_TWO_DIGIT_YEAR = 70
_HALF_DAY = 12


def time_of(text: str) -> datetime | None:
    """A time as MDTM, MLSD and MLST write it, `20260115103045` or with a fraction, in UTC; None where it is none."""
    whole, point, fraction = text.strip().partition(".")
    if len(whole) != _SECONDS_LENGTH or not _is_number(whole) or (point and not _is_number(fraction)):
        return None
    parts = [int(whole[:4]), *(int(whole[start : start + 2]) for start in range(4, _SECONDS_LENGTH, 2))]
    try:
        return datetime(*parts, int(fraction[:_FRACTION_DIGITS].ljust(6, "0")), tzinfo=UTC)  # type: ignore[arg-type, misc]
    except ValueError:
        return None


def size_of(text: str) -> int | None:
    """A number of bytes as SIZE and MLSD write it; None where it is none that a file can have."""
    return _size(text.strip().encode("latin-1", "replace"))


def machine_entry(line: bytes) -> Entry:
    """One line of MLSD or MLST: `type=file;size=5;modify=20260115103045; name`.

    One whose size or time is none is `unknown`, as a line that is not understood at all.
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
        size_bytes=size_of(size) if size else None,
        modified_at=time_of(modified_at) if modified_at else None,
        identity=facts.get("unique") or None,
    )
    impossible = (size and found.size_bytes is None) or (modified_at and found.modified_at is None)
    return Entry(line, "unknown") if impossible and kind == "file" else found


def listed_entry(line: bytes, now: datetime, zone: tzinfo) -> Entry | None:
    """One line of LIST; None for what is no entry (blank lines, `total 12`).

    Read from left to right, word by word: the time is linear in the length of the line, whatever it holds.

    Args:
        line: without its end.
        now: decides the year of a time without one.
        zone: of the server's clock.
    """
    stripped = line.strip()
    if not stripped or (stripped.startswith(b"total ") and stripped[len(b"total ") :].strip().isdigit()):
        return None
    return _unix_entry(line, now, zone) or _dos_entry(line, zone) or Entry(line, "unknown")


def _machine_kind(fact: str) -> Kind:
    if fact == "file":
        return "file"
    if fact == "dir":
        return "folder"
    if fact in ("cdir", "pdir"):
        return "other"  # the folder itself and the one above it; they are named `.` and `..`, or by their paths
    return "link" if fact.startswith(("os.unix=symlink", "os.unix=slink")) else "other"


def _unix_entry(line: bytes, now: datetime, zone: tzinfo) -> Entry | None:
    words = list(_words(line, _MOST_WORDS))
    mode = words[0][0]
    if not (mode[:1].isalpha() or mode[:1] == b"-") or not _MODES.issuperset(mode[1:_MODE_LENGTH]):
        return None
    if len(mode) < _MODE_LENGTH or mode[_MODE_LENGTH:] not in (b"", b".", b"+", b"@"):
        return None
    # A number after the mode counts links; where a server has no links to count, it may be the size.
    after_links = 2 if len(words) > 1 and words[1][0].isdigit() else 1
    for begin in (*range(after_links, len(words)), *range(1, after_links)):
        size_bytes = _size(words[begin][0])
        time = words[begin + 1 : begin + 4]
        when = None if size_bytes is None else _unix_time([word for word, _ in time], now, zone)
        if when is not None:
            moment, length = when
            name = line[time[length - 1][1] + 1 :]
            kind = _KINDS_OF_UNIX.get(mode[:1], "other")
            return Entry(_without_target(name, kind), kind, size_bytes, moment, exact=False) if name else None
    return None


def _without_target(name: bytes, kind: Kind) -> bytes:
    return name.partition(_LINK_ARROW)[0] if kind == "link" else name


def _unix_time(words: list[bytes], now: datetime, zone: tzinfo) -> tuple[datetime | None, int] | None:
    """The time that these words begin with, and of how many words it is; None where they begin with none.

    The moment is None where the month is not English: it is one, and the server has to be asked which.
    """
    first, second, third = [*words, b"", b"", b""][:3]
    try:
        if _is_date(first) and _is_clock(second):
            moment = datetime.fromisoformat(f"{first.decode()}T{second.decode():0>5}")
            return _utc(moment, zone), 2
        if not (len(first) == _MONTH_LETTERS and first.isalpha() and second.isdigit() and len(second) <= _DAY_DIGITS):
            return None
        month, dated = _MONTHS.get(first.lower()), third.isdigit() and len(third) == _YEAR_DIGITS
        if month is None:
            return (None, 3) if dated or _is_clock(third) else None
        if dated:
            return _utc(datetime(int(third), month, int(second)), zone), 3  # noqa: DTZ001 - the zone is next
        return (_recent(month, int(second), third, now, zone), 3) if _is_clock(third) else None
    except (ValueError, OverflowError):
        return None


def _recent(month: int, day: int, clock: bytes, now: datetime, zone: tzinfo) -> datetime:
    """A time without a year: the last one that was."""
    hour, minute = map(int, clock.split(b":"))
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
    words = list(_words(line, 3))
    if len(words) < 3 or words[0][1] != len(words[0][0]):  # noqa: PLR2004 - date, time, size; at the line's beginning
        return None
    (date, _), (clock, _), (size, end) = words
    name = line[end:].lstrip() if size.startswith(b"<") else line[end + 1 :]
    try:
        moment = _dos_time(date, clock, zone)
    except (ValueError, OverflowError):
        moment = None  # one that there is not
    if moment is None or not name:
        return None
    if size.startswith(b"<") and size.endswith(b">"):
        return Entry(name, "folder" if size == b"<DIR>" else "link", None, moment, exact=False)
    size_bytes = _size(size)
    return None if size_bytes is None else Entry(name, "file", size_bytes, moment, exact=False)


def _dos_time(date: bytes, clock: bytes, zone: tzinfo) -> datetime | None:
    parts, half = date.split(b"-"), clock[_CLOCK_LENGTH:]
    if [len(part) for part in parts] not in ([2, 2, 2], [2, 2, 4]) or not all(map(bytes.isdigit, parts)):
        return None
    if not _is_clock(clock[:_CLOCK_LENGTH]) or half not in (b"", b"AM", b"PM"):
        return None
    (month, day, year), (hour, minute) = map(int, parts), map(int, clock[:_CLOCK_LENGTH].split(b":"))
    if len(parts[2]) < _YEAR_DIGITS:
        year += 1900 if year >= _FIRST_TWO_DIGIT_YEAR else 2000
    if half:
        hour = hour % _HALF_DAY + (_HALF_DAY if half == b"PM" else 0)
    return _utc(datetime(year, month, day, hour, minute), zone)  # noqa: DTZ001 - the zone is next


def _words(line: bytes, most: int) -> Iterator[tuple[bytes, int]]:
    """The first words of a line, each with where it ends."""
    position = 0
    for word in line.split(None, most)[:most]:
        position = line.index(word, position) + len(word)
        yield word, position


def _is_date(word: bytes) -> bool:
    return len(word) == _DATE_LENGTH and word[4:5] == word[7:8] == b"-" and word.replace(b"-", b"").isdigit()


def _is_clock(word: bytes) -> bool:
    hour, colon, minute = word.partition(b":")
    return bool(colon) and hour.isdigit() and minute.isdigit() and len(hour) <= 2 == len(minute)  # noqa: PLR2004 - digits


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _size(word: bytes) -> int | None:
    """A number of bytes that a file can have; None for anything else."""
    if not word.isdigit() or len(word) > MAX_SIZE_DIGITS:
        return None
    size = int(word)
    return size if size <= MAX_SIZE_BYTES else None


def _utc(local: datetime, zone: tzinfo) -> datetime:
    return local.replace(tzinfo=zone).astimezone(UTC)
