"""Content types: detected, and compared with the announced one."""

from __future__ import annotations

import codecs

import pytest

from ingest_project.core.errors import FileRejectedError
from ingest_project.platform.http.file_names import announced_type, require_announced, sniff

DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (b"%PDF-1.7", "application/pdf"),
        (b"\n\n%PDF-1.4", "application/pdf"),
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"\x00\x00\x00\x18ftypmp42", "video/mp4"),
        (b"\x00\x00\x00\x18ftypheic", "image/heic"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
        (HTML, "text/html"),
        (codecs.BOM_UTF8 + b"\n <!-- x -->\n<HTML>", "text/html"),
        (codecs.BOM_UTF16_LE + "<html>".encode("utf-16-le"), "text/html"),
        (b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "x"><html>', "text/html"),
        (b'<?xml version="1.0"?><Error/>', "application/xml"),
        (b' {"error": 1}', "application/json"),
        (b"[1, 2]", "application/json"),
        (b"[section]\nkey=value", "text/plain"),
        (b"a,b\n1,2\n", "text/plain"),
        (b"BMW,Audi\n1,2\n", "text/plain"),
        (b"PAR1,PAR2\n1,2\n", "text/plain"),
        (b"ID3 is a tag of MP3 files", "text/plain"),
        (b"BM\x3a\0\0\0\0\0\0\0\x36", "image/bmp"),
        (b"\x00\x01\x02", None),
        (b"", "text/plain"),
    ],
)
def test_a_file_is_known_by_its_first_bytes(head: bytes, media_type: str | None) -> None:
    assert sniff(head) == media_type


@pytest.mark.parametrize(
    ("head", "declared", "name", "header"),
    [
        (HTML, "application/pdf", "a", "application/pdf"),
        (HTML, None, "a.pdf", "text/html"),
        (HTML, "application/octet-stream", "a.jpg", None),
        (HTML, None, "a.docx", None),
        (HTML, None, "a.zip", None),
        (HTML, None, "a.csv", "text/html"),
        (HTML, None, "a.json", "text/html"),
        (HTML, None, "a.xls", "text/html"),
        (b'{"error": "gone"}', "image/png", "a", None),
        (b"<?xml version='1.0'?><Error><Code>AuthenticationFailed</Code></Error>", None, "a.pdf", None),
    ],
)
def test_an_html_page_instead_of_a_document_is_refused(
    head: bytes, declared: str | None, name: str, header: str | None
) -> None:
    with pytest.raises(FileRejectedError) as refused:
        require_announced(head, announced_type(declared, name), header, "https://example.com/a")
    assert refused.value.rule == "wrong_content_type"


@pytest.mark.parametrize(
    ("head", "declared", "name", "header", "media_type"),
    [
        (HTML, "text/html", "page.pdf", None, "text/html"),
        (HTML, None, "a.xls", "application/vnd.ms-excel", "text/html"),
        (b"PK\x03\x04", DOCX, "a", None, DOCX),
        (b"PK\x03\x04", None, "a.docx", None, DOCX),
        (b"PK\x03\x04", None, "a.jar", None, "application/java-archive"),
        (b"PK\x03\x04", "image/png", "a.png", None, "application/zip"),
        (b"a,b\n1,2", None, "a.csv", None, "text/csv"),
        (b"a,b\n1,2", None, "a", "text/csv; charset=utf-8", "text/csv"),
        (b"\xff\xd8\xff", "image/png", "a.png", "image/png", "image/jpeg"),
        (b"\x1f\x8b", None, "a.csv.gz", None, "application/gzip"),
        (b"\x00\x01", "application/x-own", "a", None, "application/x-own"),
        (b"\x00\x01", None, "a", "text; html", "application/octet-stream"),
        (b'{"a": 1}', None, "a.json", None, "application/json"),
    ],
)
def test_the_type_is_as_sniffed_or_as_announced_where_bytes_leave_it_open(
    head: bytes, declared: str | None, name: str, header: str | None, media_type: str
) -> None:
    assert require_announced(head, announced_type(declared, name), header, "https://example.com/a") == media_type
