"""Lines of FTP listings, as servers in the field write them."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_project.sources.file_server import Entry, NameCoding, is_requestable
from ingest_project.sources.ftp_protocol import parse_list_line, parse_machine_line, parse_time

NOW = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
UTC_ZONE = ZoneInfo("UTC")


@pytest.mark.parametrize(
    ("line", "kind", "name", "size", "modified_at"),
    [
        (b"-rw-r--r--   1 owner group  1234 Jan 15 10:30 a.csv", "file", b"a.csv", 1234, "2026-01-15T10:30"),
        (b"-rw-r--r--   1 owner group  1234 Dec 31 23:59 a.csv", "file", b"a.csv", 1234, "2025-12-31T23:59"),
        (b"-rw-r--r--   1 owner group  1234 Jan 16 09:00 a.csv", "file", b"a.csv", 1234, "2026-01-16T09:00"),
        (b"-rw-r--r--   1 owner group  1234 Jan 17 09:00 a.csv", "file", b"a.csv", 1234, "2025-01-17T09:00"),
        (b"-rw-r--r--   1 owner group     7 Feb 29  2024 a.csv", "file", b"a.csv", 7, "2024-02-29T00:00"),
        (
            b"-rw-r--r--+  1 1000 1000 0 Mar  5  2019  two  spaces.csv",
            "file",
            b" two  spaces.csv",
            0,
            "2019-03-05T00:00",
        ),
        (b"-rw-rw-rw- 1 owner 99 Jan  1 00:00 12 Jan 10:00.csv", "file", b"12 Jan 10:00.csv", 99, "2026-01-01T00:00"),
        (b"-rw-r--r-- 1 o g 5 2026-01-15 10:30 iso.csv", "file", b"iso.csv", 5, "2026-01-15T10:30"),
        (b"drwxr-xr-x   2 owner domain users 4096 Jan 15 10:30 in", "folder", b"in", 4096, "2026-01-15T10:30"),
        (b"lrwxrwxrwx   1 o g 11 Jan 15 10:30 l.csv -> ../x/a.csv", "link", b"l.csv", 11, "2026-01-15T10:30"),
        (b"prw-r--r--   1 o g 0 Jan 15 10:30 pipe.csv", "other", b"pipe.csv", 0, "2026-01-15T10:30"),
        (b"-rw-r--r--   1 o g 5 Jan 15 10:30 M\xfcller.csv", "file", b"M\xfcller.csv", 5, "2026-01-15T10:30"),
        (b"-rw-r--r--   1 o g 5 Foo 15 10:30 a.csv", "file", b"a.csv", 5, None),
        (b"01-15-26  10:30PM                 1234 b b.csv", "file", b"b b.csv", 1234, "2026-01-15T22:30"),
        (b"01-15-2026  12:05AM                 1 a.csv", "file", b"a.csv", 1, "2026-01-15T00:05"),
        (b"01-15-99  10:30                 1 a.csv", "file", b"a.csv", 1, "1999-01-15T10:30"),
        (b"01-15-26  10:30AM       <DIR>          in 2", "folder", b"in 2", None, "2026-01-15T10:30"),
    ],
)
def test_a_line_of_list_is_understood(line: bytes, kind: str, name: bytes, size: int, modified_at: str | None) -> None:
    found = parse_list_line(line, NOW, UTC_ZONE)
    when = None if modified_at is None else datetime.fromisoformat(modified_at).replace(tzinfo=UTC)
    assert found is not None
    assert (found.kind, found.name, found.size_bytes, found.modified_at) == (kind, name, size, when)
    assert not found.exact


def test_the_time_of_a_listing_is_in_the_zone_of_its_server() -> None:
    found = parse_list_line(b"-rw-r--r-- 1 o g 5 Jan 15 13:30 a.csv", NOW, ZoneInfo("Europe/Berlin"))
    assert found is not None
    assert found.modified_at == datetime(2026, 1, 15, 12, 30, tzinfo=UTC)


def test_summary_lines_are_skipped_and_unparsed_lines_kept_as_unknown_entries() -> None:
    assert parse_list_line(b"total 12", NOW, UTC_ZONE) is None
    assert parse_list_line(b"", NOW, UTC_ZONE) is None
    assert parse_list_line(b"something else", NOW, UTC_ZONE) == Entry(b"something else", "unknown")


def test_a_line_of_mlsd_is_understood() -> None:
    found = parse_machine_line(b"Type=file;Size=5;Modify=20260115103045.5;UNIX.mode=0644;unique=1g2; a  b;c.csv")
    changed = datetime(2026, 1, 15, 10, 30, 45, 500_000, tzinfo=UTC)
    assert found == Entry(b"a  b;c.csv", "file", 5, changed, "1g2")
    assert parse_machine_line(b"type=OS.unix=slink:/x;size=1; l.csv").kind == "link"
    assert parse_machine_line(b"type=cdir;size=1; .").kind == "other"
    assert parse_machine_line(b"nonsense").kind == "unknown"


def test_an_invalid_time_is_parsed_as_none() -> None:
    assert parse_time("19126011510304") is None
    assert parse_time("20261315103045") is None
    assert parse_time("yesterday") is None


@given(st.binary(max_size=200))
def test_any_line_of_a_listing_is_parsed_without_an_error(line: bytes) -> None:
    parse_list_line(line, NOW, UTC_ZONE)
    parse_machine_line(line)


@given(st.binary(min_size=1, max_size=40).filter(is_requestable), st.sampled_from(["utf-8", "latin-1", "shift_jis"]))
def test_every_name_that_a_server_can_have_is_requested_by_its_own_bytes(name: bytes, encoding: str) -> None:
    names = NameCoding(encoding)
    path = names.path(b"/in/" + name)
    assert names.raw_path(path) == b"/in/" + name
    path.encode()
