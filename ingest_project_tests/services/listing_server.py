"""A web server whose folders are listed as nginx, Apache or a JSON index would list them."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request, ServedOverHttp

Style = Literal["nginx", "apache", "json", "lines"]


class ListingServer(ServedOverHttp):
    """Serves a folder; a context manager.

    Args:
        folder: what it serves.
        style: how it lists.
        head: whether it answers HEAD.
        ranges: whether it continues files.
    """

    def __init__(self, folder: Path, style: Style = "nginx", *, head: bool = True, ranges: bool = True) -> None:
        self.folder = folder
        self.style = style
        self.head = head
        # Its answer where it has none.
        self.without_head = 405
        self.ranges = ranges
        self.requests: Counter[str] = Counter()
        self.status = 0
        self.cut_after = 0
        self.cuts = 0
        self._http = HttpServer(self._respond)

    @property
    def url(self) -> str:
        """Of its root, with a slash at the end."""
        return f"{self._http.url}/"

    def _respond(self, request: Request) -> Answer:
        self.requests[request.method] += 1
        place = self.folder / request.path.strip("/")
        if self.status:
            return Answer(self.status)
        if place.is_dir() and request.path.endswith("/"):
            body, media_type = self._listing(place, request.path)
            return Answer(headers={"Content-Type": media_type}, body=body)
        if place.is_dir():
            return Answer(301, headers={"Location": f"{quote(request.path)}/"})
        if not place.is_file():
            return Answer(404)
        if request.method == "HEAD" and not self.head:
            return Answer(self.without_head)
        return self._file(request, place)

    def _file(self, request: Request, place: Path) -> Answer:
        content, status = place.read_bytes(), place.stat()
        changed = datetime.fromtimestamp(int(status.st_mtime), UTC)
        etag = f'"{status.st_mtime_ns:x}-{len(content):x}"'
        headers = {"ETag": etag, "Last-Modified": format_datetime(changed, usegmt=True)}
        range_header = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        start, answer = 0, Answer(headers=headers)
        if range_header and self.ranges and request.headers.get("if-range", etag) == etag:
            start = int(range_header[1])
            answer.status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        answer.body = content[start:]
        if request.method == "HEAD":
            answer.body_size, answer.body = len(content), b""
        elif self.cuts and len(answer.body) > self.cut_after:
            self.cuts -= 1
            answer.stop_after = self.cut_after
        return answer

    def _listing(self, folder: Path, path: str) -> tuple[bytes, str]:
        entries = sorted(folder.iterdir())
        match self.style:
            case "nginx":
                lines = [f'<a href="{_href(entry)}">{html.escape(entry.name)}</a>{_about(entry)}' for entry in entries]
                title = html.escape(path)
                page = f"<html><head><title>Index of {title}</title></head>\n<body>\n<h1>Index of {title}</h1><hr><pre>"
                page += '<a href="../">../</a>\n' + "\n".join(lines) + "\n</pre><hr></body>\n</html>\n"
                return page.encode(), "text/html"
            case "apache":
                return _apache(entries, path).encode(), "text/html;charset=UTF-8"
            case "json":
                return json.dumps([_described(entry) for entry in entries]).encode(), "application/json"
            case "lines":
                return "\n".join(["# files", *map(_href, entries)]).encode(), "text/plain"


def _href(entry: Path) -> str:
    return quote(entry.name) + ("/" if entry.is_dir() else "")


def _about(entry: Path) -> str:
    status = entry.stat()
    moment = datetime.fromtimestamp(status.st_mtime, UTC)
    return f"          {moment:%d-%b-%Y %H:%M}          {'-' if entry.is_dir() else status.st_size}"


def _apache(entries: list[Path], path: str) -> str:
    rows = [
        f'<tr><td valign="top"><a href="{_href(entry)}"><img src="/icons/text.gif" alt="[TXT]"></a></td>'
        f'<td><a href="{_href(entry)}">{html.escape(entry.name)}</a></td>'
        '<td align="right">2026-01-15 10:30  </td><td align="right">5.1K</td><td>&nbsp;</td></tr>'
        for entry in entries
    ]
    return (
        '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">\n<html>\n <head>\n  <title>Index of '
        f"{html.escape(path.rstrip('/'))}</title>\n </head>\n <body>\n<h1>Index of {html.escape(path)}</h1>\n<table>\n"
        '<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th></tr>\n'
        f'<tr><td><a href="{path.rstrip("/").rpartition("/")[0]}/">Parent Directory</a></td></tr>\n'
        + "\n".join(rows)
        + "\n</table>\n</body></html>\n"
    )


def _described(entry: Path) -> dict[str, object]:
    status = entry.stat()
    mtime = format_datetime(datetime.fromtimestamp(int(status.st_mtime), UTC), usegmt=True)
    if entry.is_dir():
        return {"name": entry.name, "type": "directory", "mtime": mtime}
    return {"name": entry.name, "type": "file", "mtime": mtime, "size": status.st_size}
