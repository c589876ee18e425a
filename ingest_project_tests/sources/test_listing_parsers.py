"""Every parser of listings, on any input: only our exceptions, linear time, no invented entries."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import paramiko
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_project.sources import MAX_REASONS, count_reason
from ingest_project.sources.ftp_protocol import parse_list_line, parse_machine_line, parse_size, parse_time
from ingest_project.sources.http_listing import missing_pages, next_links, parse_page
from ingest_project.sources.http_parsers import Link, NotAListingError, Unusable
from ingest_project.sources.sftp_protocol import PacketReader, parse_attributes, parse_names

NOW = datetime(2026, 1, 15, 12, 0, tzinfo=UTC)
ZONES = [ZoneInfo("UTC"), ZoneInfo("Pacific/Kiritimati"), ZoneInfo("Europe/Berlin")]
CONTENT_TYPES = ["text/html", "application/json", "text/plain", "application/xml", "", "text/html; charset=shift_jis"]
MARKUP = [
    "<a href=",
    "<a href='",
    '">',
    "'>",
    "</a>",
    "<?",
    "<!--",
    "-->",
    "<base href=x>",
    "<title>",
    "&#x110000;",
    "x.csv",
]
MARKUP += [
    "<input type=password>",
    "\x00",
    "\ufeff",
    "?page=2",
    "&#" + "9" * 5_000 + ";",
    "<script>",
    " rel=next ",
    "=",
    "/",
]
MODERATE = settings(deadline=None, max_examples=max(30, settings().max_examples // 4))

numbers = st.integers() | st.floats() | st.text(max_size=30) | st.sampled_from(["9" * 30, "-1", "1e5", None, True])
times = (
    st.text(max_size=40) | st.datetimes().map(str) | st.sampled_from(["0001-01-01T00:00:00+14:00", "99999999-01-01"])
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=20),
        "path": st.text(max_size=20),
        "url": st.text(max_size=20),
        "size": numbers,
        "mtime": times,
        "type": st.sampled_from(["file", "directory", "", "x"]),
        "etag": numbers,
    },
)
anything = st.recursive(
    st.none() | st.booleans() | numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


def read(body: bytes, content_type: str) -> list[Link | Unusable]:
    try:
        _, entries = parse_page(body, content_type)
        return list(entries)
    except NotAListingError as error:
        refusal = error
    assert refusal.seen.isprintable()
    assert len(refusal.seen) < 600
    return []


@MODERATE
@given(st.binary(max_size=400), st.sampled_from(CONTENT_TYPES))
def test_a_page_of_any_bytes_is_read_or_refused(body: bytes, content_type: str) -> None:
    read(body, content_type)


@MODERATE
@given(st.text(max_size=60))
def test_any_content_type_is_read_or_refused(content_type: str) -> None:
    read(b"<title>Index of /</title><a href=a.csv>", f"text/html; charset={content_type}")
    read(b"a.csv", content_type)


@MODERATE
@given(st.lists(st.sampled_from(MARKUP) | st.text(max_size=8), max_size=40).map("".join))
def test_links_of_any_markup_are_spelled_in_it(markup: str) -> None:
    for entry in read(markup.encode(), "text/html"):
        if isinstance(entry, Link) and "&" not in markup:
            assert entry.target in markup


@MODERATE
@given(
    st.lists(entries | anything, max_size=8), st.dictionaries(st.sampled_from(["next", "total", "cursor"]), anything)
)
def test_any_json_gives_values_that_stand_in_it(listed: list[object], around: dict[str, object]) -> None:
    body = json.dumps({"files": listed, **around}).encode("utf-8", "surrogatepass")
    sizes = [entry.get("size") for entry in listed if isinstance(entry, dict)]
    for entry in read(body, "application/json"):
        if isinstance(entry, Link) and entry.size_bytes is not None:
            assert entry.size_bytes in [int(size) for size in sizes if size is not None and _is_whole(size)]
            assert 0 <= entry.size_bytes < 2**63


def _is_whole(size: object) -> bool:
    with contextlib.suppress(ValueError, OverflowError, TypeError):
        return int(size) == float(size)  # type: ignore[call-overload, arg-type, no-any-return]
    return False


words = st.sampled_from([b"-rw-r--r--", b"1", b"5", b"Jan", b"15", b"10:30", b"2026", b"99", b"a.csv", b"<DIR>"])
sized = st.builds(b"-rw-r--r-- 1 o g %d Jan %d 10:30 a.csv".__mod__, st.tuples(st.integers(0), st.integers(0, 99)))


@MODERATE
@given(st.binary(max_size=200) | st.lists(words).map(b" ".join) | sized, st.sampled_from(ZONES))
def test_a_line_of_list_is_understood_as_it_stands_or_not_at_all(line: bytes, zone: ZoneInfo) -> None:
    for found in (parse_list_line(line, NOW, zone), parse_machine_line(line)):
        if found is not None and found.kind != "unknown":
            assert found.name in line
            assert found.size_bytes is None or str(found.size_bytes).encode() in line.replace(b"=0", b"=")
            assert found.size_bytes is None or found.size_bytes < 2**63


@MODERATE
@given(st.text(max_size=40) | st.from_regex(r"\d{14}(\.\d+)?", fullmatch=True))
def test_any_text_is_parsed_as_a_time_or_size_or_as_none(text: str) -> None:
    moment, size = parse_time(text), parse_size(text)
    assert moment is None or moment.strftime("%m%d%H%M%S") in text
    assert size is None or 0 <= size < 2**63


@MODERATE
@given(
    st.binary(max_size=300)
    | st.builds(lambda count, rest: count + rest, st.binary(min_size=4, max_size=4), st.binary())
)
def test_an_sftp_packet_gives_only_names_that_it_contains(packet: bytes) -> None:
    with contextlib.suppress(paramiko.SSHException):
        for name, _ in parse_names(PacketReader(packet)):
            assert name in packet
    with contextlib.suppress(paramiko.SSHException):
        parse_attributes(PacketReader(packet))


@MODERATE
@given(st.text(max_size=200), st.text(max_size=20), st.text(max_size=20))
def test_any_headers_of_a_page_are_read(link: str, page: str, pages: str) -> None:
    list(next_links({"Link": link}))
    missing_pages({"Link": link, "X-Page": page, "X-Total-Pages": pages, "X-Next-Page": page})


LONG = 150_000


PIECES = ["<?", "<!", "<!--", "<a ", "<a b='", '<a b="', "<a b=c ", "</a", "<a/", "<a =", "&#1", "<title>", "<script>"]
PIECES += ["</", "a", " ", "<a href='&#", "<base href=", "<![CDATA[", "<a\n", "<h1>", "<a>"]


@pytest.mark.parametrize("piece", PIECES)
def test_a_page_that_repeats_one_thing_is_parsed_in_linear_time(piece: str) -> None:
    body = ("<title>Index of /</title>" + piece * (LONG // len(piece))).encode()
    started = time.process_time()
    read(body, "text/html")
    read(body, "text/plain")
    read(body, "application/json")
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    "piece", [b"1 ", b" ", b"9", b"Jan 15 10:30 ", b"- ", b"type=", b";", b"=", b"-rw-r--r-- ", b"a"]
)
def test_a_line_of_eight_kilobytes_is_parsed_at_once(piece: bytes) -> None:
    started = time.process_time()
    for beginning in (b"", b"-rw-r--r-- 1 o g ", b"01-15-26  10:30PM  "):
        line = (beginning + piece * 8_192)[:8_192]
        for _ in range(20):
            parse_list_line(line, NOW, ZONES[0])
            parse_machine_line(line)
    assert time.process_time() - started < 10


def test_reasons_are_counted_by_a_few_classes() -> None:
    counts: dict[str, int] = {}
    for number in range(20_000):
        count_reason(counts, f"Reason {number}.")
    assert sum(counts.values()) == 20_000
    assert len(counts) == MAX_REASONS + 1
