"""Accepted responses of S3 servers: a bucket listing of bounded size within bounded time."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from ingest_project.core.errors import (
    PermanentError,
    SourceChangedError,
    SourceUnreachableError,
    UnreadableListingError,
)
from ingest_project.core.settings import Settings
from ingest_project.sources import Skipped, Source, SourceFile
from ingest_project.sources.registry import SourceContext, open_source
from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request
from ingest_project_tests.services.raw_server import RawServer, request

XML = {"Content-Type": "application/xml"}
KEY = '<Contents><Key>{name}</Key><LastModified>{time}</LastModified><ETag>"1"</ETag><Size>{size}</Size></Contents>'
TIME = "2026-01-15T10:30:45.000Z"


def source(url: str, **polling: object) -> Source:
    fields = {"access_key_id": "key", "secret_access_key": "secret", "hosts": [url.removeprefix("http://").strip("/")]}
    made = Settings.model_validate(
        {
            "credentials": {"key": fields},
            "polling": {"source_timeout_seconds": 0.3, "allowed_buckets": ["bucket"], **polling},
        }
    )
    config = {"source_type": "s3", "path": "s3://bucket/in", "endpoint_url": url.strip("/"), "region": "us-east-1"}
    return open_source({**config, "credentials": "key"}, SourceContext(made))


def bucket(*contents: str, more: str = "<IsTruncated>false</IsTruncated>") -> Answer:
    return Answer(headers=XML, body=f"<ListBucketResult>{more}{''.join(contents)}</ListBucketResult>".encode())


def key(name: str, time: str = TIME, size: object = 3) -> str:
    return KEY.format(name=name, time=time, size=size)


def answering(answer: Any) -> HttpServer:  # noqa: ANN401 - an answer, or what makes it
    return HttpServer(answer if callable(answer) else lambda _asked: answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(headers={"Content-Type": "text/html"}, body=b"<html><title>Sign in</title></html>"), "no listing"),
        (Answer(body=b""), "no listing"),
        (bucket(key("in/a.csv"), more="<IsTruncated>true</IsTruncated>"), "without a continuation token"),
        (bucket(key("in/a.csv", size="9" * 5_000)), "impossible value"),
        (bucket(key("in/a.csv", time="the day before")), "impossible value"),
        (bucket("<Contents><Key>in/a.csv</Key></Contents>"), "impossible value"),
        (bucket(key("in/" + "a" * 9_000_000)), "more than 8388608 bytes"),
    ],
)
def test_a_response_without_a_listing_is_a_failure_and_not_an_empty_bucket(answer: Answer, said: str) -> None:
    with answering(answer) as server, pytest.raises(PermanentError, match=said):
        list(source(server.url, source_timeout_seconds=10).list_files("*"))


def test_an_empty_bucket_is_empty_and_a_listing_is_listed() -> None:
    with answering(bucket()) as server:
        assert list(source(server.url).list_files("*")) == []
    with answering(bucket(key("in/a.csv"))) as server:
        (file,) = source(server.url).list_files("*")
        assert isinstance(file, SourceFile)
        assert (file.name, file.size_bytes) == ("a.csv", 3)


def test_a_server_without_etags_is_listed_by_size_and_time() -> None:
    listed = key("in/a.csv").replace('<ETag>"1"</ETag>', "")
    described = Answer(headers={"Last-Modified": "Thu, 15 Jan 2026 10:30:45 GMT"}, body_size=3)
    with answering(lambda asked: bucket(listed) if "list-type" in asked.query else described) as server:
        opened = source(server.url, source_timeout_seconds=10)
        (file,) = opened.list_files("*")
        assert file == opened.stat("s3://bucket/in/a.csv")
    assert isinstance(file, SourceFile)
    assert (file.size_bytes, file.etag) == (3, None)


def test_an_endless_listing_reaches_the_entry_limit() -> None:
    pages = 0

    def next_page(_asked: Request) -> Answer:
        nonlocal pages
        pages += 1
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{pages}</NextContinuationToken>"
        return bucket(*(key(f"in/{number}.csv") for number in range(20)), more=more)

    with answering(next_page) as server, pytest.raises(PermanentError, match="INGEST_MAX_LISTING_ENTRIES"):
        list(source(server.url, max_listing_entries=200, source_timeout_seconds=10).list_files("*"))
    assert pages < 15


@pytest.mark.long
@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\nX-Endless: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"]
)
def test_an_answer_that_comes_byte_by_byte_is_given_up(head: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(head)
        for _ in range(1_000):
            connection.sendall(b"x")
            time.sleep(0.05)

    with RawServer(drip) as slow:
        started = time.monotonic()
        with pytest.raises((SourceUnreachableError, UnreadableListingError)):
            source(slow.url, source_timeout_seconds=0.15).stat("s3://bucket/in/a.csv")
        with pytest.raises(SourceUnreachableError):
            list(source(slow.url, source_timeout_seconds=0.15).list_files("*"))
        opened = source(slow.url, source_timeout_seconds=0.15).open("s3://bucket/in/a.csv")
        with pytest.raises((SourceUnreachableError, UnreadableListingError)), opened as stream:
            stream.read()
        assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("resumed", "etag", "whole"),
    [
        ("bytes 5-9/10", '"1"', True),
        # It does not know ranges, and sends all of it again.
        (None, '"1"', True),
        ("bytes 4-9/10", '"1"', False),
        # It does not know conditions, and sends another version.
        ("bytes 5-9/10", '"2"', False),
        # It does not know ETags.
        ("bytes 5-9/10", None, True),
    ],
)
def test_a_server_that_resumes_with_something_else_mixes_no_two_parts(
    resumed: str | None, etag: str | None, *, whole: bool
) -> None:
    content = b"0123456789"
    head = "HTTP/1.1 200 OK\r\nLast-Modified: Thu, 15 Jan 2026 10:30:45 GMT\r\n"
    first, second = ('ETag: "1"\r\n', f"ETag: {etag}\r\n") if etag else ("", "")

    def serve(connection: socket.socket) -> None:
        if b"range:" not in request(connection).lower():
            connection.sendall(f"{head}{first}Content-Length: 10\r\n\r\n".encode() + content[:5])
            return
        body = content[int(resumed[6]) :] if resumed else content
        stated = f"Content-Range: {resumed}\r\n" if resumed else ""
        connection.sendall(f"{head}{second}{stated}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    with RawServer(serve) as server:
        opened = source(server.url, source_timeout_seconds=10).open("s3://bucket/in/a.csv")
        if whole:
            with opened as stream:
                assert stream.read() == content
        else:
            with pytest.raises(SourceChangedError), opened as stream:
                stream.read()


def test_an_object_of_an_impossible_size_is_skipped_and_the_others_are_taken() -> None:
    sizes = (-5, 10**30, 3)
    with answering(bucket(*(key(f"in/{size}.csv", size=size) for size in sizes))) as server:
        found = list(source(server.url, source_timeout_seconds=10).list_files("*"))
    assert [one.reason if isinstance(one, Skipped) else one.name for one in found] == [
        "Its size is impossible.",
        "Its size is impossible.",
        "3.csv",
    ]
