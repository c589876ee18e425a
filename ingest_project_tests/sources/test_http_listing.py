"""Responses of web servers to a listing request: which are listings, their entries, and their cost."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import time
from collections.abc import Iterator
from typing import Any, Self
from urllib.parse import quote

import pytest

from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SourceAccessDeniedError,
    SourceUnreachableError,
    UnreadableListingError,
)
from ingest_project.core.settings import Settings
from ingest_project.sources import Skipped, Source, SourceFile, count_reason
from ingest_project.sources.http_listing import PARSED_HERE_BYTES
from ingest_project.sources.registry import SourceContext, open_source
from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request
from ingest_project_tests.services.raw_server import RawServer, request, silent

HTML = {"Content-Type": "text/html"}
JSON = {"Content-Type": "application/json"}
MTIME = "Thu, 15 Jan 2026 10:30:45 GMT"

INDEXES = {
    "nginx": "<html><head><title>Index of /in/</title></head><body><h1>Index of /in/</h1><hr><pre>"
    '<a href="../">../</a>{rows}</pre><hr></body></html>',
    "apache": '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN"><html><head><title>Index of /in</title></head>'
    '<body><h1>Index of /in</h1><table><tr><th><a href="?C=N;O=D">Name</a></th></tr><tr><td><a href="/">Parent '
    "Directory</a></td></tr>{rows}</table></body></html>",
    "python": '<!DOCTYPE HTML>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Directory listing for /in/'
    "</title>\n</head>\n<body>\n<h1>Directory listing for /in/</h1>\n<hr>\n<ul>\n{rows}</ul>\n<hr>\n</body>\n</html>",
    "lighttpd": '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.1//EN">\n<html '
    'xmlns="http://www.w3.org/1999/xhtml"><head><title>Index of /in/</title></head><body><h2>Index of /in/</h2>'
    '<div class="list"><table>{rows}</table></div><div class="foot">lighttpd</div></body></html>',
    "caddy": '<!DOCTYPE html><html><head><title>in</title></head><body><div class="wrapper"><main><div class="meta">'
    '<div id="summary"><span class="meta-item"><b>0</b> directories</span></div></div><table>'
    "{rows}</table></main></div></body></html>",
    "iis": "<html><head><title>files.example.com - /in/</title></head><body><H1>files.example.com - /in/</H1><hr>\n\n"
    '<pre><A HREF="/">[To Parent Directory]</A><br><br>{rows}</pre><hr></body></html>',
    "go": '<!doctype html>\n<meta name="viewport" content="width=device-width">\n<pre>\n{rows}</pre>\n',
    "jetty": '<html><head><link href="jetty-dir.css" rel="stylesheet"/><title>Directory: /in/</title></head><body><h1>'
    "Directory: /in/</h1><table>{rows}</table></body></html>",
}


class Pages:
    """A web server with a few pages; a context manager. Every file has three bytes."""

    def __init__(self, pages: dict[str, Answer]) -> None:
        self.pages = pages
        self.requested: list[str] = []
        self._http = HttpServer(self._answer)

    def __enter__(self) -> Self:
        self._http.__enter__()
        self.url = f"{self._http.url}/"
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.__exit__(None, None, None)

    def _answer(self, request: Request) -> Answer:
        target = request.path + "".join(f"?{name}={value}" for name, value in request.query.items())
        self.requested.append(f"{request.method} {target}")
        if target in self.pages:
            return self.pages[target]
        if request.path.endswith(".csv"):
            return Answer(headers={"ETag": '"1"', "Last-Modified": MTIME}, body=b"1,2")
        return Answer(404)


@pytest.fixture
def server() -> Iterator[Pages]:
    with Pages({}) as pages:
        yield pages


def source(url: str, settings: dict[str, Any] | None = None, **config: object) -> Source:
    made = Settings.model_validate({"downloads": {"allowed_internal_hosts": ["127.0.0.1"]}, **(settings or {})})
    return open_source({"source_type": "http", "path": url, **config}, SourceContext(made))


def listed(opened: Source, pattern: str = "*.csv") -> list[str]:
    return [found.name for found in opened.list_files(pattern) if isinstance(found, SourceFile)]


def reasons(opened: Source, pattern: str = "*.csv") -> list[str]:
    return [found.reason for found in opened.list_files(pattern) if isinstance(found, Skipped)]


def page(body: str | bytes, **headers: str) -> Answer:
    return Answer(headers={**HTML, **headers}, body=body.encode() if isinstance(body, str) else body)


def as_json(value: object, **headers: str) -> Answer:
    return Answer(headers={**JSON, **headers}, body=json.dumps(value).encode())


@pytest.mark.parametrize("index", INDEXES)
def test_the_index_of_every_common_server_is_understood_and_an_empty_one_is_empty(server: Pages, index: str) -> None:
    server.pages = {
        "/in/": page(INDEXES[index].replace("{rows}", '<tr><td><a href="a%231.csv">a#1.csv</a></td></tr>')),
        "/empty/": page(INDEXES[index].replace("{rows}", "")),
    }
    assert listed(source(f"{server.url}in/")) == ["a#1.csv"]
    assert list(source(f"{server.url}empty/").list_files("*")) == []


@pytest.mark.parametrize(
    ("answer", "kind", "seen"),
    [
        (page("<html><title>Sign in</title><form><input type=password></form><a href='help/'>?</a></html>"), SourceAccessDeniedError, "with a password field"),  # noqa: E501
        (page("<html><title>Welcome</title><a href='about/'>About</a><a href='style.css'>x</a></html>"), UnreadableListingError, "'Welcome'"),  # noqa: E501
        (page("<html><title>Error</title><p>Something went wrong.</html>"), UnreadableListingError, "'Error'"),
        (page("Forbidden"), UnreadableListingError, "text that is called HTML"),
        (page(""), UnreadableListingError, "an empty answer"),
        (Answer(headers={"Content-Type": "text/plain"}, body=b"Internal error.\n"), UnreadableListingError, "none of"),
        (Answer(headers={"Content-Type": "application/xml"}, body=b"<?xml version='1.0'?><ListBucketResult><Contents><Key>a.csv</Key></Contents></ListBucketResult>"), UnreadableListingError, "source_type s3"),  # noqa: E501
        (Answer(headers={"Content-Type": "application/xml"}, body=b"<?xml version='1.0'?><Error/>"), UnreadableListingError, "'error'"),  # noqa: E501
        (Answer(headers={"Content-Type": "text/csv"}, body=b"a,b\n1,2.x\n"), UnreadableListingError, "'text/csv'"),
        (Answer(headers={"Content-Type": "image/png"}, body=b"\x89PNG"), UnreadableListingError, "'image/png'"),
        (as_json({"error": "unauthorised"}), UnreadableListingError, "the field error is unknown"),
        (as_json("text"), UnreadableListingError, "no list of files"),
        (Answer(headers=JSON, body=b"[1"), UnreadableListingError, "not the JSON"),
        (Answer(headers=JSON, body=b"[" * 100_000), UnreadableListingError, "not the JSON"),
        (Answer(headers=JSON, body=b'{"files": ["a.csv"], "files": []}'), UnreadableListingError, "occurs 2 times"),
        (as_json([7, None, {"size": 5}]), UnreadableListingError, "none of which is understood"),
        (page("<title>Index of /</title><a href=a.csv>", **{"Content-Type": "text/html; charset=hex"}), UnreadableListingError, "charset 'hex'"),  # noqa: E501
        (page("<title>Index of /</title><a href=a.csv>", **{"Content-Type": "text/html; charset=utf-16"}), UnreadableListingError, "charset"),  # noqa: E501
        (page("<title>Index of /</title><a href=a.csv>", **{"Content-Type": "text/html; charset=" + "x" * 9_000}), UnreadableListingError, "charset"),  # noqa: E501
        (page("x", **{"Content-Encoding": "br"}), SourceAccessDeniedError, "Content-Encoding"),
    ],
)  # fmt: skip
def test_a_response_without_a_listing_is_a_named_failure_and_not_an_empty_source(
    server: Pages, answer: Answer, kind: type[PermanentError], seen: str
) -> None:
    server.pages["/in/"] = answer
    with pytest.raises(kind, match=seen):
        list(source(f"{server.url}in/").list_files("**/*.csv"))


def test_a_page_of_any_kind_that_links_files_is_a_listing(server: Pages) -> None:
    server.pages["/in/"] = page("<h2>Our data</h2><a href='a.csv'>a</a> <a href='/imprint/'>Imprint</a>")
    assert listed(source(f"{server.url}in/")) == ["a.csv"]


def test_a_folder_whose_page_is_no_listing_is_reported_and_the_rest_is_listed(server: Pages) -> None:
    server.pages = {
        "/in/": page("<title>Index of /in/</title><a href=x/>x/</a><a href=y/>y/</a><a href=z/>z/</a><a href=a.csv>"),
        "/in/x/": page("<title>Read me</title><a href=about/>"),
        "/in/y/": page("<title>Index of /in/y/</title><a href=b.csv>"),
    }
    found = list(source(f"{server.url}in/").list_files("**/*.csv"))
    assert sorted(entry.name for entry in found if isinstance(entry, SourceFile)) == ["a.csv", "b.csv"]
    reasons = {entry.reason for entry in found if isinstance(entry, Skipped) and entry.visible}
    assert reasons == {"A folder whose listing is not understood."}


NAMES = [
    "a#1.csv",
    "100%41.csv",
    "50% off.csv",
    "a?b.csv",
    "c&amp;d.csv",
    "e+f g.csv",
    "ü €.csv",
    "a:b.csv",
    "%2e%2e.csv",
]


def test_names_in_json_are_names_and_are_encoded_once(server: Pages) -> None:
    server.pages = {
        "/in/": as_json([{"name": name, "type": "file", "mtime": MTIME, "size": 3} for name in NAMES]),
        "/own/": as_json(
            {"files": [{"path": f"sub/{name}", "size": 3, "modified_at": "2026-01-15"} for name in NAMES]}
        ),
        "/plain/": as_json(NAMES),
    }
    for folder in ("in/", "own/", "plain/"):
        opened = source(f"{server.url}{folder}")
        files = [found for found in opened.list_files("*") if isinstance(found, SourceFile)]
        assert [file.name for file in files] == NAMES
        for file in files:
            with opened.open(file.path) as stream:
                assert stream.read() == b"1,2"
            last = server.requested[-1].removeprefix("GET ")
            assert last == f"/{folder}{'sub/' if folder == 'own/' else ''}{file.name}"


def test_urls_in_json_are_urls_and_are_not_encoded_again(server: Pages) -> None:
    server.pages["/in/"] = as_json({"files": [{"url": "a%231%25.csv", "name": "other"}, f"{server.url}in/b%20c.csv"]})
    files = [found for found in source(f"{server.url}in/").list_files("*") if isinstance(found, SourceFile)]
    assert [file.path for file in files] == [f"{server.url}in/a%231%25.csv", f"{server.url}in/b%20c.csv"]
    assert [file.name for file in files] == ["a#1%.csv", "b c.csv"]


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "x.csv", "size": "9" * 5_000},
        {"name": "x.csv", "size": -1},
        {"name": "x.csv", "size": 2**63},
        {"name": "x.csv", "size": 1e300},
        {"name": "x.csv", "mtime": "0001-01-01T00:00:00+14:00"},
        {"name": "x.csv", "mtime": "9999-12-31T23:59:59-14:00"},
        {"name": "x.csv", "mtime": "Thu, 99 Jan 99999999999999999999 10:30:45 GMT"},
        {"name": "x.csv", "mtime": "2026-13-01"},
        {"name": "x.csv", "mtime": "1" * 5_000},
        {"name": "../x.csv"},
        {"name": ".."},
        {"path": "sub/../../x.csv"},
        {"name": "x\n.csv"},
        {"name": "\ud800.csv"},
        {"name": "x" * 9_000 + ".csv"},
        {"url": "http://[x.csv"},
        {"size": 5},
        17,
    ],
)
def test_an_impossible_entry_is_refused_with_its_reason_and_the_others_are_taken(server: Pages, entry: object) -> None:
    server.pages["/in/"] = as_json([{"name": "good.csv", "size": 3, "mtime": MTIME}, entry])
    opened = source(f"{server.url}in/")
    assert listed(opened) == ["good.csv"]
    (reason,) = reasons(opened)
    assert reason.endswith(".")
    assert len(reason) < 200


def test_a_size_with_five_thousand_digits_in_json_or_in_a_header_is_no_unexpected_failure(server: Pages) -> None:
    server.pages["/in/"] = Answer(headers=JSON, body=b'[{"name": "a.csv", "size": ' + b"9" * 5_000 + b"}]")
    with pytest.raises(UnreadableListingError):
        listed(source(f"{server.url}in/"))
    server.pages["/in/"] = page("<title>Index of /</title><a href=a.csv>a</a>")
    odd = {"Content-Range": f"bytes 0-0/{'9' * 5_000}", "Last-Modified": "Thu, 01 Jan 99999999999 00:00:00 GMT"}
    server.pages["/in/a.csv"] = Answer(headers=odd, body=b"1,2")
    assert listed(source(f"{server.url}in/")) == ["a.csv"]


def test_links_are_relative_to_where_a_redirect_ended(server: Pages) -> None:
    server.pages = {
        "/data": Answer(302, headers={"Location": "/data/2026/list.html"}),
        "/data/2026/list.html": page("<title>Index of /</title><a href=a.csv>a</a><a href=/data/b.csv>b</a>"),
        "/old/": Answer(301, headers={"Location": "/new/"}),
        "/new/": page("<title>Index of /new/</title><a href=c.csv>c</a>"),
    }
    found = [entry.path for entry in source(f"{server.url}data").list_files("*") if isinstance(entry, SourceFile)]
    assert found == [f"{server.url}data/2026/a.csv", f"{server.url}data/b.csv"]
    with pytest.raises(ForbiddenPathError, match=r"redirects to .*/new/, outside"):
        listed(source(f"{server.url}old/"))
    assert listed(source(f"{server.url}old/", elsewhere=True)) == ["c.csv"]


def test_redirects_that_never_end_are_named(server: Pages) -> None:
    server.pages = {"/in/": Answer(302, headers={"Location": "/in/"})}
    with pytest.raises(SourceAccessDeniedError, match="more than 5 redirects"):
        listed(source(f"{server.url}in/"))


def test_links_are_relative_to_the_base_of_the_page_under_the_same_rules(server: Pages) -> None:
    def based(base: str) -> Answer:
        return page(f"<head><base href='{base}'><title>Index of /</title></head><a href=a.csv>a</a>")

    server.pages = {
        "/in/": based("/in/sub/"),
        "/out/": based("/in/"),
        "/far/": based("http://169.254.169.254/"),
        "/bad/": based("http://[/"),
    }
    found = [entry.path for entry in source(f"{server.url}in/").list_files("*") if isinstance(entry, SourceFile)]
    assert found == [f"{server.url}in/sub/a.csv"]
    assert reasons(source(f"{server.url}out/")) == ["A link that leads out of the listing's folder."]
    assert "internal" in reasons(source(f"{server.url}far/"))[0]
    with pytest.raises(UnreadableListingError, match="base"):
        listed(source(f"{server.url}bad/"))


def test_the_pages_of_a_listing_are_read_to_the_last_each_once(server: Pages) -> None:
    server.pages = {
        "/json/": as_json({"files": ["a.csv"], "next": "?page=2"}),
        "/json/?page=2": as_json({"files": ["b.csv", "a.csv"], "next": f"{server.url}json/?page=3"}),
        "/json/?page=3": as_json({"files": ["c.csv"], "next": None}),
        "/header/": as_json(["a.csv"], Link='</header/?after=a>; rel="next", </header/>; rel="first"'),
        "/header/?after=a": as_json(["b.csv"], Link='</header/>; rel="prev"'),
        "/html/": page("<title>Index of /</title><a href=a.csv>a</a><a href='?page=2'>2</a><a href='?page=3'>3</a>"),
        "/html/?page=2": page("<title>Index of /</title><a href=b.csv>b</a><a href='/html/?page=3' rel=next>"),
        "/html/?page=3": page("<title>Index of /</title><a href=c.csv>c</a><a href='?page=2' rel=prev>"),
    }
    assert listed(source(f"{server.url}json/")) == ["a.csv", "b.csv", "c.csv"]
    assert listed(source(f"{server.url}header/")) == ["a.csv", "b.csv"]
    assert listed(source(f"{server.url}html/")) == ["a.csv", "b.csv", "c.csv"]


@pytest.mark.parametrize(
    "answer",
    [
        as_json({"files": ["a.csv"], "next_cursor": "abc"}),
        as_json({"files": ["a.csv"], "isTruncated": True}),
        as_json({"files": ["a.csv"], "NextContinuationToken": "abc"}),
        as_json({"files": ["a.csv"], "meta": {"has_more": True}}),
        as_json({"files": ["a.csv"], "total": 20}),
        as_json({"files": ["a.csv"], "page": 1, "pages": 3}),
        as_json({"files": ["a.csv"], "next": "http://example.com/more"}),
        as_json(["a.csv"], **{"X-Next-Page": "2"}),
        as_json(["a.csv"], **{"X-Total-Pages": "2"}),
    ],
)
def test_a_paginated_listing_whose_next_page_cannot_be_requested_is_refused(server: Pages, answer: Answer) -> None:
    server.pages["/in/"] = answer
    with pytest.raises(UnreadableListingError, match="page"):
        listed(source(f"{server.url}in/"))


def test_an_endless_chain_of_pages_is_aborted(server: Pages) -> None:
    server.pages["/in/"] = as_json({"files": ["a.csv"], "next": "?page=1"})
    server.pages["/in/?page=1"] = as_json({"files": ["a.csv"], "next": "?page=1"})
    assert listed(source(f"{server.url}in/")) == ["a.csv"]
    limits = {"polling": {"max_listing_entries": 50}}
    for number in range(60):
        server.pages[f"/many/?page={number}"] = as_json({"files": [f"{number}.csv"], "next": f"?page={number + 1}"})
    with pytest.raises(PermanentError, match="INGEST_MAX_LISTING_ENTRIES"):
        listed(source(f"{server.url}many/?page=0", limits))


@pytest.mark.parametrize("word", ["utf-8", "none", "aws-chunked"])
def test_an_unknown_content_encoding_is_ignored(server: Pages, word: str) -> None:
    server.pages["/in/"] = page("<title>Index of /</title><a href=a.csv>a</a>", **{"Content-Encoding": word})
    server.pages["/in/a.csv"] = Answer(headers={"ETag": '"1"', "Content-Encoding": word}, body=b"1,2")
    opened = source(f"{server.url}in/")
    (file,) = opened.list_files("*")
    assert isinstance(file, SourceFile)
    assert file.size_bytes == 3
    with opened.open(file.path) as stream:
        assert stream.read() == b"1,2"


def test_a_listing_and_files_that_are_compressed_unrequested_are_read(server: Pages) -> None:
    body = gzip.compress(b"<title>Index of /</title><a href=a.csv>a</a>")
    server.pages["/in/"] = page(body, **{"Content-Encoding": "gzip"})
    assert listed(source(f"{server.url}in/")) == ["a.csv"]


def test_a_large_page_is_parsed_in_a_process_of_its_own_with_the_same_result(server: Pages) -> None:
    names = [f"{number} #.csv" for number in range(20)]
    padding = " " * PARSED_HERE_BYTES
    rows = "".join(f'<a href="{quote(name)}">{number}</a>\n' for number, name in enumerate(names))
    server.pages = {
        "/in/": page(INDEXES["nginx"].replace("{rows}", rows + padding)),
        "/json/": as_json([{"name": name, "size": 3, "mtime": MTIME, "note": padding[::10]} for name in names]),
        "/login/": page("<title>Sign in</title><input type=password>" + padding),
    }
    assert listed(source(f"{server.url}in/")) == names
    assert listed(source(f"{server.url}json/")) == names
    with pytest.raises(SourceAccessDeniedError, match="password"):
        listed(source(f"{server.url}login/"))


@pytest.mark.parametrize(
    "opening",
    [
        "<?",
        "<!--",
        "<!",
        "<a ",
        "<a href='",
        '<a href="',
        "<a href=x ",
        "</",
        "<title>",
        "<script>",
        "<a =",
        "&#",
        "<![CDATA[",
    ],
)
def test_a_megabyte_of_what_is_never_closed_is_parsed_at_once(server: Pages, opening: str) -> None:
    server.pages["/in/"] = page("<title>Index of /</title>" + opening * (1_000_000 // len(opening)))
    started = time.monotonic()
    with contextlib.suppress(PermanentError):
        listed(source(f"{server.url}in/"))
    assert time.monotonic() - started < 20


def drip(head: bytes, piece: bytes = b"x") -> Any:  # noqa: ANN401
    """An answer that comes byte by byte and never ends."""

    def behave(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(0.05)

    return behave


QUICK = {"polling": {"source_timeout_seconds": 0.2}}


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Endless: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;",
    ],
    ids=["body", "header", "chunk"],
)
def test_a_server_that_sends_a_byte_now_and_then_blocks_neither_a_listing_nor_a_stat_nor_a_file(head: bytes) -> None:
    with RawServer(drip(head)) as slow:
        started = time.monotonic()
        opened = source(slow.url, QUICK)
        with pytest.raises(SourceUnreachableError):
            listed(opened)
        if b"Endless" in head:
            with pytest.raises(SourceUnreachableError):
                opened.stat(f"{slow.url}a.csv")
        assert time.monotonic() - started < 15


def test_a_file_that_comes_byte_by_byte_is_given_up() -> None:
    with RawServer(drip(b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 100000\r\n\r\n')) as slow:
        started = time.monotonic()
        with (
            pytest.raises(SourceUnreachableError, match="too slow"),
            source(slow.url, QUICK).open(f"{slow.url}a.csv") as stream,
        ):
            stream.read()
        assert time.monotonic() - started < 15


def test_a_server_that_accepts_and_is_silent_ends_in_time_and_may_be_back_later() -> None:
    with RawServer(silent) as half_open:
        settings = {"polling": {"source_timeout_seconds": 0.2}}
        with pytest.raises(SourceUnreachableError):
            listed(source(half_open.url, settings))


def test_a_listing_that_takes_too_long_as_a_whole_is_given_up(server: Pages) -> None:
    names = "".join(f"<a href={number}/>{number}/</a>" for number in range(200))
    server.pages["/in/"] = page(f"<title>Index of /</title>{names}")
    with pytest.raises(SourceUnreachableError, match="INGEST_MAX_LISTING_SECONDS"):
        listed(source(f"{server.url}in/", {"polling": {"max_listing_seconds": 0.05}}), "**/*.csv")


@pytest.mark.parametrize("broken", ["/in/b.csv", "/in/sub/"])
def test_a_page_with_a_server_error_fails_the_listing_after_all_other_pages(server: Pages, broken: str) -> None:
    links = "".join(f"<a href={name}>{name}</a>" for name in ("a.csv", "b.csv", "sub/", "late/", "c.csv"))
    server.pages = {"/in/": page(links), "/in/sub/": page(links), "/in/late/": page("<a href=d.csv>d</a>")}
    server.pages[broken] = Answer(500)
    found: list[str] = []
    entries = source(f"{server.url}in/").list_files("**/*.csv")
    with pytest.raises(SourceUnreachableError, match="500"):
        found.extend(one.path.removeprefix(server.url) for one in entries if isinstance(one, SourceFile))
    assert {"in/a.csv", "in/c.csv", "in/late/d.csv"} <= set(found)
    assert broken.removeprefix("/") not in found


def test_thousands_of_bad_links_are_counted_by_a_few_reasons(server: Pages) -> None:
    links = "".join(f"<a href='s{number}://x/{number}.csv'>" for number in range(6_000))
    server.pages["/in/"] = page(f"<title>Index of /</title><a href=a.csv>{links}")
    counts: dict[str, int] = {}
    for entry in source(f"{server.url}in/").list_files("*"):
        if isinstance(entry, Skipped):
            count_reason(counts, entry.reason)
    assert sum(counts.values()) == 6_000
    assert len(counts) < 100
