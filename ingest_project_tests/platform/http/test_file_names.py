"""Names of downloaded files."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest_project.platform.http.file_names import (
    MAX_BYTES,
    MAX_CHARACTERS,
    chosen_file_name,
    disposition_file_name,
    safe_file_name,
)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("../../x", "x"),
        ("..\\..\\windows\\win.ini", "win.ini"),
        ("C:\\temp\\a.pdf", "a.pdf"),
        ("/etc/passwd", "passwd"),
        ("..", "download"),
        ("", "download"),
        (" . . ", "download"),
        (".htaccess", "htaccess"),
        ("a.pdf. . ", "a.pdf"),
        ('a"b:c|d<e>f*g?.pdf', "a_b_c_d_e_f_g_.pdf"),
        ("a\x00b\nc\u202efdp.exe", "abcfdp.exe"),
        ("con", "_con"),
        ("NUL.txt", "_NUL.txt"),
        ("console.txt", "console.txt"),
        ("Cafe\u0301.pdf", "Café.pdf"),
        ("a\ud800b.pdf", "ab.pdf"),
    ],
)
def test_a_name_is_made_safe(name: str, safe: str) -> None:
    assert safe_file_name(name) == safe


def test_a_long_name_keeps_its_ending() -> None:
    assert safe_file_name("🚀" * 300 + ".pdf") == "🚀" * 49 + ".pdf"
    assert safe_file_name("a" * 300 + ".tar") == "a" * 116 + ".tar"


@settings(deadline=None)
@example("a\x00\u0301")
@given(st.text(max_size=300))
def test_no_name_is_ever_unsafe(name: str) -> None:
    safe = safe_file_name(name)
    assert 0 < len(safe) <= MAX_CHARACTERS
    assert len(safe.encode()) <= MAX_BYTES
    assert safe_file_name(safe) == safe
    assert safe.strip(" .") == safe
    assert not set(safe) & set('"\\/:|<>*?')


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ('attachment; filename="a b.pdf"', "a b.pdf"),
        ("attachment; filename=a.pdf; size=3", "a.pdf"),
        ("attachment; filename=\"plain.pdf\"; filename*=UTF-8''%e2%82%ac.pdf", "€.pdf"),
        ("attachment; filename*=iso-8859-1'en'%A3.pdf", "£.pdf"),
        ("attachment; filename*=UTF-8''%ff%ff; filename=fallback.pdf", "fallback.pdf"),
        ("attachment; filename*=nonsense''%61.pdf; filename=fallback.pdf", "fallback.pdf"),
        ('attachment; filename="a\\"b.pdf"', 'a"b.pdf'),
        ('attachment; filename="Ã¤.pdf"', "ä.pdf"),
        ('attachment; filename="a%20b.pdf"', "a b.pdf"),
        ("inline", None),
        (None, None),
    ],
)
def test_the_name_in_a_content_disposition_is_found(header: str | None, name: str | None) -> None:
    assert disposition_file_name(header) == name


def test_the_sender_names_a_file_before_the_server_and_the_address_do() -> None:
    header = 'attachment; filename="server.pdf"'
    assert chosen_file_name("task.pdf", header, "/a/url.pdf?x=1") == "task.pdf"
    assert chosen_file_name(None, header, "/a/url.pdf?x=1") == "server.pdf"
    assert chosen_file_name("..", None, "/a/r%C3%A4t.pdf?x=1") == "rät.pdf"
    assert chosen_file_name(None, None, "/") == "download"
