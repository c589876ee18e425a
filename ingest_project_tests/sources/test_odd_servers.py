"""Broken, hostile and silent FTP and SFTP servers: each request ends in time, with a reason, at bounded cost."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest_project.core.errors import PermanentError, SourceUnreachableError, UnreadableListingError
from ingest_project.core.settings import Credential, PollingSettings
from ingest_project.sources import Skipped
from ingest_project.sources.file_server import FileServerSource
from ingest_project.sources.ftp import open_ftp
from ingest_project.sources.sftp import open_sftp
from ingest_project_tests.services import odd_sftp
from ingest_project_tests.services.ftp_server import PASSWORD, USER, FtpServer
from ingest_project_tests.services.odd_ftp import WITH_MLSD, speaking
from ingest_project_tests.services.odd_sftp import OddSftpServer, number, packet, string
from ingest_project_tests.services.raw_server import RawServer, silent
from ingest_project_tests.services.sftp_server import SftpServer
from ingest_project_tests.services.stalling_proxy import StallingProxy
from ingest_project_tests.sources.served import OPENED, context_of, skipped, taken

# The total time of an answer is twice this, of a listing ten times.
QUICK = PollingSettings(source_timeout_seconds=0.5)
LINE = b"-rw-r--r-- 1 o g 5 Jan 15 10:30 a.csv\r\n"


def source(port: int, servers: PollingSettings = QUICK, fingerprint: str = "", **config: object) -> FileServerSource:
    fields: dict[str, Any] = {"username": USER, "password": PASSWORD, "hosts": ["127.0.0.1"], "plain_http": True}
    job = {"host": "127.0.0.1", "port": port, "path": "/", "credentials": "store", **config}
    if fingerprint:
        stored = Credential.model_validate({**fields, "host_key_fingerprints": [fingerprint]})
        opened = open_sftp(job, context_of(servers, {"store": stored}))
    else:
        opened = open_ftp({"tls": "none", **job}, context_of(servers, {"store": Credential.model_validate(fields)}))
    OPENED.append(opened)
    return opened


def drip(connection: socket.socket) -> None:
    """A byte now and then, without an end."""
    for _ in range(1_000):
        connection.sendall(b"x")
        time.sleep(0.05)


def flood(connection: socket.socket) -> None:
    """As many lines as are taken."""
    while True:
        connection.sendall(b"220-and more of it\r\n" * 1_000)


def flood_of_one_line(connection: socket.socket) -> None:
    """One line without an end."""
    while True:
        connection.sendall(b"220-" + b"x" * 60_000)


def test_an_unparsable_listing_is_not_an_empty_folder() -> None:
    vms = b"Directory of DISK$USER:[IN]\r\n\r\nA.CSV;1   5/9   15-JAN-2026 10:30:45.67\r\n"
    with RawServer(speaking(vms)) as odd, pytest.raises(UnreadableListingError, match="none of the 2 lines"):
        list(source(odd.port).list_files("*"))
    with RawServer(speaking(b"")) as empty:
        assert list(source(empty.port).list_files("*")) == []


def test_lines_that_are_not_understood_are_counted_and_the_others_are_taken() -> None:
    odd_lines = (
        b"a line of prose\r\n-rw-r--r-- 1 o g 5 Jan 99 10:30 b.csv\r\n-rw-r--r-- 1 o g "
        + b"9" * 5_000
        + b" Jan 1 2026 c.csv\r\n"
    )
    with RawServer(speaking(odd_lines + LINE)) as odd:
        opened = source(odd.port)
        assert list(taken(opened)) == ["/a.csv"]
        reasons = [found.reason for found in opened.list_files("*") if isinstance(found, Skipped)]
        assert reasons == ["A line of the listing that is not understood, or has an impossible value."] * 3


def test_a_file_that_somebody_writes_to_is_a_failure_once_all_others_are_listed() -> None:
    sizes = itertools.chain(
        [b"550 The process cannot access the file because it is being used by another process.\r\n"],
        itertools.repeat(b"213 5\r\n"),
    )
    replies = {"SIZE": lambda connection: connection.sendall(next(sizes))}
    with RawServer(speaking(LINE.replace(b"a.csv", b"locked.csv") + LINE, replies)) as odd:
        entries, found = source(odd.port).list_files("*"), list[str]()
        with pytest.raises(SourceUnreachableError, match="being used"):
            found.extend(entry.path for entry in entries)
    assert found == ["/locked.csv", "/a.csv"]


def test_a_folder_that_cannot_be_listed_now_is_a_failure_once_all_others_are_listed() -> None:
    folders = b"".join(b"drwxr-xr-x 2 o g 0 Jan 15 10:30 %s\r\n" % name for name in (b"good", b"bad"))
    entered, lists = iter([b"250 ok\r\n", b"450 busy\r\n", b"250 ok\r\n"]), iter([folders, LINE])
    found = list[str]()
    with RawServer(
        speaking(
            lambda connection: connection.sendall(next(lists)),
            {"CWD": lambda connection: connection.sendall(next(entered))},
        )
    ) as odd:
        entries = source(odd.port).list_files("**/*.csv")
        with pytest.raises(SourceUnreachableError, match="/bad: 450 busy"):
            found.extend(entry.path for entry in entries)
    assert found == ["/bad", "/good/a.csv"]


def test_a_server_that_goes_away_is_not_asked_for_every_folder() -> None:
    folders = b"".join(b"drwxr-xr-x 2 o g 0 Jan 15 10:30 %d\r\n" % number for number in range(1_000))
    gone = threading.Event()

    def list_and_go(connection: socket.socket) -> None:
        connection.sendall(folders)
        gone.set()

    def unless_gone(reply: bytes) -> Callable[[socket.socket], None]:
        return lambda connection: connection.sendall(b"421 going down\r\n" if gone.is_set() else reply)

    replies = {"USER": unless_gone(b"331 and?\r\n"), "CWD": unless_gone(b"250 ok\r\n")}
    with RawServer(speaking(list_and_go, replies)) as odd:
        entries, found = source(odd.port).list_files("**/*.csv"), list[str]()
        with pytest.raises(SourceUnreachableError, match="going down"):
            found.extend(entry.path for entry in entries)
    assert len(found) < 3


def test_an_impossible_size_or_time_of_mlsd_refuses_that_entry_alone() -> None:
    lines = (
        b"type=file;size=" + b"9" * 5_000 + b";modify=20260115103045; b.csv\r\n"
        b"type=file;size=5;modify=20261315103045; c.csv\r\ntype=file;size=-5; d.csv\r\n"
        b"type=file;size=5;modify=20260115103045; a.csv\r\n"
    )
    with RawServer(speaking(lines, WITH_MLSD)) as odd:
        opened = source(odd.port)
        assert list(taken(opened)) == ["/a.csv"]
        assert len(skipped(opened)) == 3


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_name_with_a_line_feed_names_no_other_file(end: bytes) -> None:
    lines = [b"type=file;size=%d;modify=20260115103045; %b" % one for one in ((5, b"a.csv"), (9, b"b.csv\nc.csv"))]
    with RawServer(speaking(end.join(lines) + end, WITH_MLSD)) as odd:
        found = list(source(odd.port).list_files("*"))
    # A server that ends its lines against the protocol leaves a line that is not understood.
    expected = ["/a.csv", "b.csv\ufffdc.csv"] if end == b"\r\n" else ["/a.csv", "/b.csv", "c.csv"]
    assert [entry.path for entry in found] == expected
    assert isinstance(found[-1], Skipped)


def test_folders_that_lead_back_to_themselves_come_to_an_end() -> None:
    with RawServer(speaking(b"drwxr-xr-x 2 o g 0 Jan 15 10:30 again\r\n" + LINE)) as odd:
        found = list(source(odd.port, PollingSettings(source_timeout_seconds=10)).list_files("**/*.csv"))
        assert sum(isinstance(entry, Skipped) and "levels down" in entry.reason for entry in found) == 1
        with pytest.raises(PermanentError, match="INGEST_MAX_LISTING_ENTRIES"):
            list(source(odd.port, PollingSettings(max_listing_entries=20)).list_files("**/*.csv"))


@pytest.mark.parametrize("greeting", [flood, flood_of_one_line, drip, silent], ids=lambda behave: behave.__name__)
def test_a_greeting_without_an_end_is_given_up_before_it_takes_memory(
    greeting: Callable[[socket.socket], None],
) -> None:
    with RawServer(speaking(b"", greeting=greeting)) as odd:
        started = time.monotonic()
        with pytest.raises(SourceUnreachableError):
            list(source(odd.port).list_files("*"))
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("command", ["USER", "FEAT", "CWD", "TYPE"])
@pytest.mark.parametrize("reply", [flood, drip], ids=lambda behave: behave.__name__)
def test_any_reply_without_an_end_is_given_up(command: str, reply: Callable[[socket.socket], None]) -> None:
    with RawServer(speaking(b"", {command: reply})) as odd:
        started = time.monotonic()
        with pytest.raises(SourceUnreachableError):
            list(source(odd.port).list_files("*"))
        assert time.monotonic() - started < 10


def test_a_listing_and_a_file_that_come_byte_by_byte_are_given_up() -> None:
    with RawServer(speaking(drip)) as odd:
        started = time.monotonic()
        with pytest.raises(SourceUnreachableError, match="too slow"):
            list(source(odd.port).list_files("*"))
        assert time.monotonic() - started < 10
        with pytest.raises(SourceUnreachableError), source(odd.port).open("/a.csv") as stream:
            stream.read()
        assert time.monotonic() - started < 20


def names(*entries: bytes) -> bytes:
    return number(len(entries)) + b"".join(entries)


def entry(name: bytes, attributes: bytes = number(0)) -> bytes:
    return string(name) + string(name) + attributes


def answering(readdir: Callable[[bytes], bytes | None]) -> Callable[[int, bytes], bytes | None]:
    """A server on which everything works but READDIR."""

    def answer(kind: int, request: bytes) -> bytes | None:
        if kind == odd_sftp.READDIR:
            return readdir(request)
        if kind in (odd_sftp.OPENDIR, odd_sftp.OPEN):
            return packet(odd_sftp.HANDLE, request + string(b"h"))
        if kind in (odd_sftp.STAT, odd_sftp.FSTAT):
            # A regular file of five bytes.
            attributes = number(0x5) + number(5, 8) + number(0o100644)
            return packet(odd_sftp.ATTRS, request + attributes)
        return packet(odd_sftp.STATUS, request + number(0) + string(b"") + string(b""))

    return answer


@pytest.mark.parametrize(
    "readdir",
    [
        lambda request: packet(odd_sftp.NAME, request + number(1_000_000)),
        lambda request: packet(odd_sftp.NAME, request + number(2**32 - 1) + entry(b"a.csv")),
        lambda request: packet(odd_sftp.NAME, request + names(entry(b"a.csv", number(0x80000000) + number(2**32 - 1)))),
        lambda request: packet(odd_sftp.NAME, request + number(1) + number(2**31) + b"a.csv"),
        lambda request: packet(odd_sftp.NAME, request + names(entry(b"a.csv", number(0x40)))),
        lambda request: packet(odd_sftp.NAME, request + number(0)),
        lambda request: packet(odd_sftp.DATA, request + string(b"a.csv")),
        lambda _request: number(2**31) + b"x",
        lambda _request: number(0),
        lambda _request: packet(odd_sftp.NAME, number(77)) * 3,
        lambda _request: None,
    ],
    ids=[
        *("million names", "four billion names", "extensions", "long name", "flags", "no names", "data", "huge"),
        *("empty", "another's", "silence"),
    ],
)  # fmt: skip
def test_an_sftp_packet_that_claims_more_than_it_has_is_a_failure_that_may_pass(
    readdir: Callable[[bytes], bytes | None],
) -> None:
    with OddSftpServer(answer=answering(readdir)) as odd:
        opened = source(odd.port, PollingSettings(source_timeout_seconds=1.5), odd.fingerprint)
        started = time.monotonic()
        with pytest.raises(SourceUnreachableError):
            list(opened.list_files("*"))
        assert time.monotonic() - started < 15


def test_an_sftp_listing_without_an_end_reaches_the_limit_of_entries() -> None:
    count = itertools.count()

    def readdir(request: bytes) -> bytes:
        return packet(odd_sftp.NAME, request + names(*(entry(b"%d.txt" % next(count)) for _ in range(100))))

    with OddSftpServer(answer=answering(readdir)) as odd:
        servers = PollingSettings(source_timeout_seconds=5, max_listing_entries=2_000)
        with pytest.raises(PermanentError, match="more than 2000 entries"):
            list(source(odd.port, servers, odd.fingerprint).list_files("*"))


def test_a_file_that_sftp_cannot_describe_is_a_failure_once_all_others_are_listed() -> None:
    ended = number(1) + string(b"") + string(b"")
    pages = [names(entry(b"loop.csv"), entry(b"a.csv"))]
    failures = [number(4) + string(b"Failure") + string(b"")]

    def readdir(request: bytes) -> bytes:
        return packet(odd_sftp.NAME, request + pages.pop()) if pages else packet(odd_sftp.STATUS, request + ended)

    def answer(kind: int, request: bytes) -> bytes | None:
        if kind == odd_sftp.STAT and failures:
            return packet(odd_sftp.STATUS, request + failures.pop())
        return answering(readdir)(kind, request)

    with OddSftpServer(answer=answer) as odd:
        found = list[str]()
        entries = source(odd.port, PollingSettings(source_timeout_seconds=5), odd.fingerprint).list_files("*")
        with pytest.raises(SourceUnreachableError, match="Failure"):
            found.extend(entry.path for entry in entries)
    assert found == ["/loop.csv", "/a.csv"]


def test_a_size_that_no_file_can_have_refuses_that_entry_alone() -> None:
    pages = [names(entry(b"a.csv", number(0x5) + number(2**64 - 1, 8) + number(0o100644)), entry(b"b.csv"))]

    def readdir(request: bytes) -> bytes:
        if pages:
            return packet(odd_sftp.NAME, request + pages.pop())
        return packet(odd_sftp.STATUS, request + number(1) + string(b"") + string(b""))

    with OddSftpServer(answer=answering(readdir)) as odd:
        opened = source(odd.port, PollingSettings(source_timeout_seconds=5), odd.fingerprint)
        assert [found.path for found in opened.list_files("*")] == ["a.csv", "/b.csv"]


@pytest.mark.parametrize("behave", [silent, drip, flood_of_one_line], ids=lambda behave: behave.__name__)
def test_connecting_to_a_server_that_does_not_speak_ssh_fails(behave: Callable[[socket.socket], None]) -> None:
    with RawServer(behave) as odd:
        started = time.monotonic()
        with pytest.raises(SourceUnreachableError):
            list(source(odd.port, fingerprint="SHA256:x").list_files("*"))
        assert time.monotonic() - started < 15


def test_an_ssh_packet_of_four_gigabytes_is_not_waited_for() -> None:
    def behave(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-odd\r\n" + b"\xff\xff\xff\xf4" + b"\0" * 10_000)
        silent(connection)

    with RawServer(behave) as odd, pytest.raises(SourceUnreachableError, match="a packet of"):
        list(source(odd.port, fingerprint="SHA256:x").list_files("*"))


@pytest.mark.parametrize("kind", ["ftp", "sftp"])
def test_a_connection_that_was_dropped_without_a_word_ends_in_time_and_does_not_poison_the_others(
    folder: Path, kind: str
) -> None:
    (folder / "a.csv").write_text("x")
    servers = PollingSettings(source_timeout_seconds=0.6, source_connections_per_host=2)
    with FtpServer(folder) if kind == "ftp" else SftpServer(folder) as server, StallingProxy(server.port) as proxy:
        opened = source(proxy.port, servers, server.fingerprint if isinstance(server, SftpServer) else "")
        assert list(taken(opened)) == ["/a.csv"]
        proxy.stall()
        started = time.monotonic()
        # The kept connection is dead; a new one is made.
        assert list(taken(opened)) == ["/a.csv"]
        proxy.stall()
        proxy.stall_new = True
        for _ in range(3):
            with pytest.raises(SourceUnreachableError):
                opened.stat("/a.csv")
        proxy.stall_new = False
        assert opened.stat("/a.csv").size_bytes == 1
        assert time.monotonic() - started < 30
