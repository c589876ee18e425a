"""Downloads from servers of every kind: whole and verified, or a clear reason and nothing left behind."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

from ingest_project.core.errors import (
    DownloadFailedError,
    DownloadRejectedError,
    FileRejectedError,
    HostThrottledError,
    IngestError,
    LimitExceededError,
    StoreUnavailableError,
)
from ingest_project.core.local_files import FileFingerprint
from ingest_project.platform.http import download
from ingest_project.platform.http.client import WebClient
from ingest_project.platform.http.download import Downloaded, Downloader, DownloadRequest
from ingest_project_tests.platform.http.conftest import LOCAL, local
from ingest_project_tests.services.http_server import DEFAULT_SIZE, HttpServer, content_of
from ingest_project_tests.services.raw_server import RawServer, request

MEBIBYTE = 1024**2


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """Where to; its folder is not there yet."""
    return tmp_path / "cache" / "a file"


def _left(to: Path) -> list[str]:
    return sorted(entry.name for entry in to.parent.iterdir()) if to.parent.exists() else []


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _failure(downloader: Downloader, request: DownloadRequest, to: Path) -> IngestError:
    with pytest.raises(IngestError) as failed:
        downloader.download(request, to)
    assert not to.exists()
    return failed.value


def test_a_file_is_brought_whole_and_described(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    url = http_server.url("/files/report.pdf?sig=secret")
    content = content_of("report.pdf")
    downloaded = downloader.download(DownloadRequest(url), to)
    assert downloaded == Downloaded(
        path=to,
        size_bytes=DEFAULT_SIZE,
        sha256=_sha256(content),
        content_type="application/pdf",
        file_name="report.pdf",
        http_status=200,
        url=http_server.url("/files/report.pdf?…"),
        resumed=False,
        fingerprint=FileFingerprint.of(to.stat()),
    )
    assert to.read_bytes() == content
    assert _left(to) == [to.name]


def test_downloading_again_replaces_the_file(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    downloader.download(DownloadRequest(http_server.url("/files/a.pdf?size=200000")), to)
    downloader.download(DownloadRequest(http_server.url("/files/a.pdf?size=1000")), to)
    assert to.read_bytes() == content_of("a.pdf", 1_000)


@pytest.mark.parametrize("path", ["/files/", "/chunked/", "/no-length/", "/gzipped/", "/deflated/", "/too-short/"])
def test_every_way_to_send_a_body_is_read(http_server: HttpServer, downloader: Downloader, to: Path, path: str) -> None:
    url = http_server.url(f"{path}a.pdf?size=3000000")
    for _ in range(2):
        downloaded = downloader.download(DownloadRequest(url, expected_size=3_000_000), to)
        assert downloaded.sha256 == _sha256(content_of("a.pdf", 3_000_000))
    # What comes after a body that is longer than announced is not taken for the next answer.
    assert to.read_bytes() == content_of("a.pdf", 3_000_000)


def test_raw_deflate_is_read_too(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    downloader.download(DownloadRequest(http_server.url("/deflated/a.txt?raw=yes")), to)
    assert to.read_bytes() == content_of("a.txt")


def test_connections_are_used_again(http_server: HttpServer, downloader: Downloader, tmp_path: Path) -> None:
    def download(number: int) -> Downloaded:
        request = DownloadRequest(http_server.url(f"/files/{number}.pdf?size=5000"))
        return downloader.download(request, tmp_path / str(number))

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(download, range(60)))
    assert [downloaded.size_bytes for downloaded in done] == [5_000] * 60
    assert http_server.connections <= 4


def test_small_errors_keep_the_connection(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    for _ in range(3):
        _failure(downloader, DownloadRequest(http_server.url("/status/404")), to)
    assert http_server.connections == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_status_that_stays_is_refused(http_server: HttpServer, downloader: Downloader, to: Path, status: int) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url(f"/status/{status}")), to)
    assert isinstance(failure, DownloadRejectedError)
    assert failure.http_status == status
    assert _left(to) == []


@pytest.mark.parametrize("status", [408, 423, 425, 429, 500, 503])
def test_a_status_that_passes_fails_for_now(
    http_server: HttpServer, downloader: Downloader, to: Path, status: int
) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url(f"/status/{status}")), to)
    assert isinstance(failure, DownloadFailedError)
    assert failure.http_status == status
    assert http_server.count(f"/status/{status}") == 1
    assert _left(to) == []


def test_a_host_that_says_when_to_come_again_is_not_contacted_before(
    http_server: HttpServer, downloader: Downloader, to: Path
) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url("/status/429?retry_after=30")), to)
    assert isinstance(failure, DownloadFailedError)
    assert failure.retry_after == timedelta(seconds=30)
    busy = _failure(downloader, DownloadRequest(http_server.url("/files/a.pdf")), to)
    assert isinstance(busy, HostThrottledError)
    assert timedelta(seconds=20) < busy.retry_after <= timedelta(seconds=30)
    assert len(http_server.requests) == 1


def test_the_circuit_of_a_failing_host_opens_and_closes_again(http_server: HttpServer, to: Path) -> None:
    flaky = DownloadRequest(http_server.url("/flaky/a.pdf?failures=2"))
    with WebClient(local(failures_to_pause=2, pause_seconds=3.0)) as client:
        downloader = Downloader(client, LOCAL)
        assert isinstance(_failure(downloader, flaky, to), DownloadFailedError)
        assert isinstance(_failure(downloader, flaky, to), DownloadFailedError)
        assert isinstance(_failure(downloader, flaky, to), HostThrottledError)
        assert http_server.count("/flaky/a.pdf") == 2
        time.sleep(3)
        assert downloader.download(flaky, to).http_status == 200


@pytest.fixture
def _short_pace_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PACE_WINDOW_SECONDS", 0.5)


@pytest.mark.usefixtures("_short_pace_window")
@pytest.mark.parametrize(
    ("path", "seconds", "reason"),
    [
        ("/slow/headers", {"total": 1.0}, "not finished within 1 s"),
        ("/slow/body/a.pdf", {}, "under 1000 bytes a second"),
        ("/silent", {"read": 0.5}, "stopped sending"),
        ("/stalled/a.pdf", {"read": 0.5}, "stopped sending"),
    ],
)
def test_a_slow_server_is_given_up_in_time(
    http_server: HttpServer, to: Path, path: str, seconds: dict[str, float], reason: str
) -> None:
    limits = local(
        read_timeout_seconds=seconds.get("read", 20.0),
        max_seconds=seconds.get("total", 20.0),
        min_bytes_per_second=1_000,
    )
    with WebClient(limits) as client:
        started = time.monotonic()
        failure = _failure(Downloader(client, limits), DownloadRequest(http_server.url(path)), to)
    assert isinstance(failure, DownloadFailedError)
    assert reason in str(failure)
    assert time.monotonic() - started < 15
    assert _left(to) == []


def test_a_body_that_drips_fast_enough_still_keeps_to_the_deadline(
    http_server: HttpServer, client: WebClient, to: Path
) -> None:
    downloader = Downloader(client, local(max_seconds=0.7, min_bytes_per_second=1))
    failure = _failure(downloader, DownloadRequest(http_server.url("/slow/body/a.pdf")), to)
    assert "not finished within 0.7 s" in str(failure)


def test_an_endless_body_ends_at_the_limit(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url("/endless")), to)
    assert isinstance(failure, LimitExceededError)
    assert failure.limit == "INGEST_MAX_ATTACHMENT_BYTES"
    assert _left(to) == []


def test_a_body_that_announces_too_much_is_not_read(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url("/files/a.pdf?size=20000001")), to)
    assert isinstance(failure, LimitExceededError)
    assert "20000001" in str(failure)


def test_a_gzip_bomb_is_refused_in_little_memory(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    # Made before memory is measured: it is the server's.
    downloader.download(DownloadRequest(http_server.url("/files/a.pdf")), to)
    to.unlink()
    _failure(downloader, DownloadRequest(http_server.url("/bomb")), to)
    tracemalloc.start()
    try:
        failure = _failure(downloader, DownloadRequest(http_server.url("/bomb")), to)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEBIBYTE
    finally:
        tracemalloc.stop()
    assert isinstance(failure, LimitExceededError)
    assert failure.limit == "INGEST_MAX_ATTACHMENT_EXPANSION"
    assert _left(to) == []


def test_an_encoding_that_cannot_be_read_is_refused(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url("/brotli/a.pdf")), to)
    assert isinstance(failure, FileRejectedError)
    assert failure.rule == "unsupported_encoding"


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "UTF-8", "none", "aws-chunked", "binary", "8bit", "x-unknown", "", "identity", "aws-chunked,utf-8", "br",
     "zstd", "gzip", "gzip, br", "identity, none"],
)  # fmt: skip
def test_intact_bytes_are_kept_whatever_encoding_they_are_said_to_be_in(
    http_server: HttpServer, downloader: Downloader, to: Path, encoding: str
) -> None:
    url = http_server.url(f"/encoded/a.pdf?as={quote(encoding)}")
    assert downloader.download(DownloadRequest(url), to).sha256 == _sha256(content_of("a.pdf"))
    request = DownloadRequest(
        http_server.url(f"/encoded/a.bin?as={quote(encoding)}"), checksum=_sha256(content_of("a.bin"))
    )
    assert downloader.download(request, to).sha256 == _sha256(content_of("a.bin"))


@pytest.mark.parametrize(
    "value",
    ["9" * 5_000, "-1", "Fri, 31 Dec 9999 23:59:59 -1400", "Fri, 31 Dec 99999999999999999999 23:59:59 GMT",
     "Mon, 01 Jan 0001 00:00:00 +1400", "1e400", "soon", "120.5", "NaN"],
)  # fmt: skip
def test_no_retry_after_turns_a_503_into_a_permanent_failure_or_a_pause_without_end(
    http_server: HttpServer, client: WebClient, to: Path, value: str
) -> None:
    url = http_server.url(f"/status/503?retry_after={quote(value)}")
    failure = _failure(Downloader(client, LOCAL), DownloadRequest(url), to)
    assert isinstance(failure, DownloadFailedError)
    assert failure.http_status == 503
    assert (failure.retry_after or timedelta(0)) <= timedelta(hours=1)


def test_headers_that_trickle_are_ended_long_before_the_whole_time_is_over(http_server: HttpServer, to: Path) -> None:
    with WebClient(local(connect_timeout_seconds=0.5, read_timeout_seconds=0.5)) as client:
        failure = _failure(Downloader(client, LOCAL), DownloadRequest(http_server.url("/slow/headers")), to)
    assert isinstance(failure, DownloadFailedError)
    assert "not finished within 1 s" in str(failure)


def test_identity_encoding_is_requested(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    downloader.download(DownloadRequest(http_server.url("/files/a.pdf")), to)
    headers = http_server.requests[0].headers
    assert headers["accept-encoding"] == "identity"
    assert "range" not in headers


def test_a_cut_download_is_continued_where_it_was_cut(
    http_server: HttpServer, downloader: Downloader, to: Path
) -> None:
    downloaded = downloader.download(DownloadRequest(http_server.url("/cut/once/a.pdf?size=300000")), to)
    assert downloaded.resumed
    assert downloaded.http_status == 206
    assert downloaded.sha256 == _sha256(content_of("a.pdf", 300_000))
    assert to.read_bytes() == content_of("a.pdf", 300_000)
    first, second = http_server.requests
    assert "range" not in first.headers
    assert second.headers["range"] == "bytes=150000-"
    assert second.headers["if-range"] == '"1-300000"'


def test_a_cut_download_without_a_validator_starts_over(
    http_server: HttpServer, downloader: Downloader, to: Path
) -> None:
    downloaded = downloader.download(DownloadRequest(http_server.url("/cut/once/a.pdf?etag=no&modified=no")), to)
    assert not downloaded.resumed
    assert to.read_bytes() == content_of("a.pdf")
    assert all("range" not in request.headers for request in http_server.requests)


def test_a_server_without_ranges_sends_it_all_again(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    downloaded = downloader.download(DownloadRequest(http_server.url("/cut/once/a.pdf?ranges=no")), to)
    assert not downloaded.resumed
    assert to.read_bytes() == content_of("a.pdf")


def test_two_halves_of_different_versions_are_never_one_file(
    http_server: HttpServer, downloader: Downloader, to: Path
) -> None:
    second = content_of("a.pdf", DEFAULT_SIZE, "2")
    request = DownloadRequest(http_server.url("/changed/a.pdf"), checksum=f"sha256:{_sha256(second)}")
    assert downloader.download(request, to).sha256 == _sha256(second)
    assert to.read_bytes() == second


@pytest.mark.parametrize("path", ["/cut/always/a.pdf", "/too-long/a.pdf", "/chunked/a.pdf?cut=yes", "/not-http"])
def test_a_download_that_is_cut_again_and_again_fails_for_now(
    http_server: HttpServer, downloader: Downloader, to: Path, path: str
) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url(path)), to)
    assert isinstance(failure, DownloadFailedError)
    assert len(http_server.requests) == 1 + download.MAX_RESUMES
    assert _left(to) == []


def test_a_second_half_that_is_longer_than_what_is_missing_is_not_taken(downloader: Downloader, to: Path) -> None:
    content, seen = content_of("a.pdf"), list[bool]()

    def serve(connection: socket.socket) -> None:
        is_part = b"range:" in request(connection).lower()
        seen.append(is_part)
        length, first = len(content), len(content) // 2
        head = (
            f"HTTP/1.1 206 OK\r\nContent-Range: bytes {first}-{length - 1}/{length}" if is_part else "HTTP/1.1 200 OK"
        )
        connection.sendall(f'{head}\r\nETag: "1"\r\nContent-Length: {length}\r\n\r\n'.encode())
        # The second half is all of it once more, the third answer is whole.
        connection.sendall(content[:first] if len(seen) == 1 else content)

    with RawServer(serve) as server:
        downloaded = downloader.download(DownloadRequest(f"{server.url}a.pdf"), to)
    assert seen == [False, True, False]
    assert downloaded.size_bytes == len(content)
    assert to.read_bytes() == content


def _answering(*answers: bytes) -> RawServer:
    """A server that gives each of its connections the next answer."""
    left = list(answers)

    def serve(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(left.pop(0))

    return RawServer(serve)


_INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        _INTERIM + b"HTTP/1.1 200 OK",
        b"HTTP/1.1 100 Continue\r\n\r\n" + _INTERIM + b"HTTP/1.1 200 OK",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-4/5",
    ],
)
def test_a_complete_file_is_taken_after_interim_responses_and_as_an_unrequested_range(
    downloader: Downloader, to: Path, head: bytes
) -> None:
    with _answering(head + b"\r\nContent-Length: 5\r\n\r\nbytes") as server:
        downloaded = downloader.download(DownloadRequest(f"{server.url}a.txt"), to)
    assert (to.read_bytes(), downloaded.resumed) == (b"bytes", False)


@pytest.mark.parametrize("content_range", ["bytes 0-4/9", "bytes 4-8/9", "bytes 0-4/*", "5", ""])
def test_an_unrequested_part_of_a_file_is_refused(downloader: Downloader, to: Path, content_range: str) -> None:
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Range: {content_range}\r\nContent-Length: 5\r\n\r\n"
    with _answering(head.encode() + b"bytes") as server:
        failure = _failure(downloader, DownloadRequest(f"{server.url}a.txt"), to)
    assert isinstance(failure, DownloadRejectedError)
    assert "the server answered 206 Partial Content" in str(failure)
    assert _left(to) == []


def test_a_body_without_a_length_is_known_to_be_cut_by_the_announced_size(
    http_server: HttpServer, downloader: Downloader, to: Path
) -> None:
    url = http_server.url("/no-length/a.pdf?cut=yes")
    downloaded = downloader.download(DownloadRequest(url, expected_size=DEFAULT_SIZE), to)
    assert downloaded.size_bytes == DEFAULT_SIZE


def test_a_later_attempt_continues_what_an_earlier_one_left(
    http_server: HttpServer, client: WebClient, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = DownloadRequest(http_server.url("/cut/once/a.pdf?size=3000000&sig=secret"))
    with monkeypatch.context() as patched:
        patched.setattr(download, "MAX_RESUMES", 0)
        _failure(Downloader(client, LOCAL), request, to)
    assert _left(to) == ["a file.part", "a file.part.json"]
    assert "secret" not in Path(f"{to}.part.json").read_text()
    downloaded = Downloader(client, LOCAL).download(request, to)
    assert downloaded.resumed
    assert http_server.requests[1].headers["range"] == "bytes=1500000-"
    assert downloaded.sha256 == _sha256(content_of("a.pdf", 3_000_000)) == _sha256(to.read_bytes())
    assert _left(to) == [to.name]


@pytest.mark.parametrize(
    "note",
    [
        "",
        "not json",
        "[]",
        '{"url_sha256": "of another address", "validator": "\\"1-3000000\\"", "size_bytes": 3000000}',
    ],
)
def test_a_partial_download_of_another_address_is_not_used(
    http_server: HttpServer, downloader: Downloader, to: Path, note: str
) -> None:
    to.parent.mkdir()
    Path(f"{to}.part").write_bytes(b"other bytes")
    Path(f"{to}.part.json").write_text(note)
    downloaded = downloader.download(DownloadRequest(http_server.url("/files/a.pdf?size=3000000")), to)
    assert not downloaded.resumed
    assert to.read_bytes() == content_of("a.pdf", 3_000_000)
    assert _left(to) == [to.name]


def test_a_file_that_changed_since_the_earlier_attempt_is_downloaded_from_its_start(
    http_server: HttpServer, downloader: Downloader, to: Path
) -> None:
    url = http_server.url("/files/a.pdf?size=3000000")
    to.parent.mkdir()
    for size in (1_000_000, 5_000_000):
        Path(f"{to}.part").write_bytes(b"x" * size)
        note = {"url_sha256": _sha256(url.encode()), "validator": '"older"', "size_bytes": 5_000_000}
        Path(f"{to}.part.json").write_text(json.dumps(note))
        assert not downloader.download(DownloadRequest(url), to).resumed
        assert to.read_bytes() == content_of("a.pdf", 3_000_000)


def test_a_killed_process_leaves_what_the_next_one_continues(
    http_server: HttpServer, downloader: Downloader, to: Path
) -> None:
    url = http_server.url("/stalled/a.pdf?size=16000000")
    content = content_of("a.pdf", 16_000_000)
    program = f"""
        from pathlib import Path
        from ingest_project.core.settings import DownloadSettings
        from ingest_project.platform.http.client import WebClient
        from ingest_project.platform.http.download import Downloader, DownloadRequest
        limits = DownloadSettings(allowed_internal_hosts=["127.0.0.1"])
        Downloader(WebClient(limits), limits).download(DownloadRequest({url!r}), Path({str(to)!r}))
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    part = Path(f"{to}.part")
    until = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size == 8_000_000):
        assert time.monotonic() < until
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert not to.exists()
    # From now on the same address is served well.
    http_server.publish("/stalled/a.pdf", content, etag='"1-16000000"')
    downloaded = downloader.download(DownloadRequest(url), to)
    assert downloaded.resumed
    assert http_server.requests[-1].headers["range"] == "bytes=8000000-"
    assert downloaded.sha256 == _sha256(content)


def test_two_downloads_to_the_same_file_do_not_meet(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    to.parent.mkdir()
    descriptor = os.open(f"{to}.part", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        failure = _failure(downloader, DownloadRequest(http_server.url("/files/a.pdf")), to)
    finally:
        os.close(descriptor)
    assert isinstance(failure, DownloadFailedError)
    assert "under way" in str(failure)
    assert len(http_server.requests) == 0


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "sha512"])
def test_a_checksum_is_verified(http_server: HttpServer, downloader: Downloader, to: Path, algorithm: str) -> None:
    url = http_server.url("/files/a.pdf")
    right = hashlib.new(algorithm, content_of("a.pdf")).hexdigest()
    for checksum in (right, f"{algorithm}:{right.upper()}"):
        downloader.download(DownloadRequest(url, checksum=checksum), to)
    to.unlink()
    failure = _failure(
        downloader, DownloadRequest(url, checksum="0" + right[1:] if right[0] != "0" else "1" + right[1:]), to
    )
    assert isinstance(failure, FileRejectedError)
    assert failure.rule == "wrong_checksum"
    assert _left(to) == []


@pytest.mark.parametrize("checksum", ["abc", "crc32:12345678", "sha256:" + "z" * 64, "md5:" + "a" * 64])
def test_an_unknown_kind_of_checksum_is_refused_before_any_request(
    http_server: HttpServer, downloader: Downloader, to: Path, checksum: str
) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url("/files/a.pdf"), checksum=checksum), to)
    assert isinstance(failure, FileRejectedError)
    assert failure.rule == "unknown_checksum"
    assert not http_server.requests


@pytest.mark.parametrize("path", ["/files/a.pdf", "/chunked/a.pdf", "/gzipped/a.pdf"])
def test_a_file_of_another_size_than_announced_is_refused(
    http_server: HttpServer, downloader: Downloader, to: Path, path: str
) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url(path), expected_size=99_999), to)
    assert isinstance(failure, FileRejectedError)
    assert failure.rule == "wrong_size"


@pytest.mark.parametrize(
    ("path", "declared"),
    [("/error-page/a.pdf", None), ("/error-page/a", "application/pdf"), ("/error-json/a.png", None)],
)
def test_an_html_page_instead_of_a_document_is_refused(
    http_server: HttpServer, downloader: Downloader, to: Path, path: str, declared: str | None
) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url(path), content_type=declared), to)
    assert isinstance(failure, FileRejectedError)
    assert failure.rule == "wrong_content_type"
    assert _left(to) == []


def test_an_empty_file_is_refused(http_server: HttpServer, downloader: Downloader, to: Path) -> None:
    failure = _failure(downloader, DownloadRequest(http_server.url("/empty")), to)
    assert isinstance(failure, DownloadRejectedError)
    assert failure.http_status == 200


@pytest.mark.parametrize(("path", "name"), [("/named/traversal", "x"), ("/named/emoji", "🚀" * 49 + ".pdf")])
def test_a_hostile_name_is_made_safe(
    http_server: HttpServer, downloader: Downloader, to: Path, path: str, name: str
) -> None:
    assert downloader.download(DownloadRequest(http_server.url(path)), to).file_name == name
    assert _left(to) == [to.name]


def test_a_failing_target_folder_does_not_count_as_a_host_failure(
    http_server: HttpServer, downloader: Downloader, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreUnavailableError):
        downloader.download(DownloadRequest(http_server.url("/files/a.pdf")), tmp_path / "file" / "a")


def test_a_symbolic_link_in_the_way_is_not_followed(
    http_server: HttpServer, downloader: Downloader, to: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    to.parent.mkdir()
    Path(f"{to}.part").symlink_to(elsewhere)
    with pytest.raises(StoreUnavailableError):
        downloader.download(DownloadRequest(http_server.url("/files/a.pdf")), to)
    assert elsewhere.read_text() == "precious"
