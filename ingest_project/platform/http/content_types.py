"""What a file is by its first bytes, and whether that is at all what was announced.

The case that matters: a server answers 200 with a page that says "not found" or "please log in", and it would be stored
as somebody's PDF.
"""

from __future__ import annotations

import codecs
import mimetypes
import re

from ingest_project.core.errors import FileRejectedError

SNIFFED_BYTES = 4096
UNKNOWN = "application/octet-stream"

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"BM", "image/bmp"),
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"BZh", "application/x-bzip2"),
    (b"\xfd7zXZ\x00", "application/x-xz"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"Rar!\x1a\x07", "application/vnd.rar"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (b"{\\rtf", "application/rtf"),
    (b"%!PS", "application/postscript"),
    (b"PAR1", "application/vnd.apache.parquet"),
    (b"ID3", "audio/mpeg"),
    (b"OggS", "application/ogg"),
    (b"\x1aE\xdf\xa3", "video/x-matroska"),
)
# The four bytes at offset 8 of a RIFF file.
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
# The brand of an ISO media file (after `ftyp`).
_BRANDS = {
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
    b"avif": "image/avif",
    b"qt  ": "video/quicktime",
}
_PDF_HEADER_WITHIN = 1024

_HTML = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|meta|script|h1)\b", re.IGNORECASE)
_XML_PREAMBLE = re.compile(rb"(?:\s|<\?.*?\?>|<!--.*?-->)*", re.DOTALL)
_JSON = re.compile(rb"""\{\s*(?:"|\}|$)|\[\s*(?:["\[{\]\d-]|true|false|null)""")
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MARKUP = frozenset({"text/html", "application/json", "application/xml"})

# A container's bytes do not say which of its kinds it is: what was announced does.
_CONTAINERS = {
    "application/zip": re.compile(
        r"application/(?:.*\+zip|x-zip.*|java-archive|vnd\.(?:openxmlformats|oasis|ms-).*|vnd\.android\.package-archive)"
    ),
    "application/x-ole-storage": re.compile(r"application/(?:msword|vnd\.ms-.*|x-msi|vnd\.visio)"),
    "text/plain": re.compile(r"text/(?!html).*|message/.*|application/(?:x-ndjson|yaml|x-yaml|sql|csv|pgp-signature)"),
    "application/json": re.compile(r"application/(?:.*\+json|x-ndjson)|text/.*"),
    "application/xml": re.compile(r"application/.*\+xml|text/xml|image/svg\+xml"),
    "application/gzip": re.compile(r"application/(?:x-gzip|x-tar|x-gtar|x-compressed-tar|x-tgz)"),
    "video/mp4": re.compile(r"(?:video|audio)/.*"),
    "application/ogg": re.compile(r"(?:video|audio)/.*"),
}
# Files of these types are never markup or a short message; text, XML and formats without a signature may be anything.
_BINARY = re.compile(
    r"image/(?!svg).*|audio/.*|video/.*"
    r"|application/(?:pdf|zip|x-zip.*|gzip|x-gzip|x-tar|x-7z.*|vnd\.rar|x-rar.*|x-bzip2|x-xz|msword|vnd\.ms-.*"
    r"|vnd\.openxmlformats-.*|vnd\.oasis\.opendocument.*|rtf|postscript|epub\+zip|java-archive|vnd\.apache\.parquet)"
)
_WEB_EXPORTS = frozenset({"application/vnd.ms-excel", "application/msword"})
_TABLES = frozenset({"text/csv", "text/tab-separated-values", "application/csv"})


def sniff(head: bytes) -> str | None:
    """The media type that the first bytes of a file show; None when they show none."""
    for magic, media_type in _MAGIC:
        if head.startswith(magic):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if b"%PDF-" in head[:_PDF_HEADER_WITHIN]:
        return "application/pdf"
    return _sniff_text(head)


def _sniff_text(head: bytes) -> str | None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        head = head[: len(head) // 2 * 2].decode("utf-16", "replace").encode()
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    preamble = _XML_PREAMBLE.match(text)
    content = text[preamble.end() if preamble else 0 :]
    if _HTML.match(content):
        return "text/html"
    if text.startswith(b"<?xml"):
        return "application/xml"
    if _CONTROLS.search(text):
        return None
    return "application/json" if _JSON.match(text) else "text/plain"


def announced_type(declared: str | None, file_name: str | None) -> str | None:
    """The media type that was promised: as the event declares it, else by the ending of the name; None for neither."""
    media_type = bare_type(declared)
    if media_type and media_type != UNKNOWN:
        return media_type
    return (
        mimetypes.guess_type(file_name or "", strict=False)[0] if _encoding(file_name) is None else "application/gzip"
    )


def require_announced(head: bytes, announced: str | None, header: str | None, printable: str) -> str:
    """Make sure that a file is of a kind that was promised.

    Args:
        head: its first bytes, up to SNIFFED_BYTES.
        announced: see `announced_type`.
        header: the server's Content-Type.
        printable: the address, as it may be printed.

    Returns:
        its media type: as sniffed, or what was announced where the bytes leave that open.

    Raises:
        FileRejectedError: it is a page or a message where a document, an image or an archive was promised.
    """
    found = sniff(head)
    if announced and _contradicts(found, announced, bare_type(header)):
        raise FileRejectedError("wrong_content_type", f"{printable} was announced as {announced} but is {found}")
    for candidate in (announced, bare_type(header)):
        if candidate and candidate != UNKNOWN and _could_be(found, candidate):
            return candidate
    return found or announced or bare_type(header) or UNKNOWN


def shows(head: bytes, announced: str | None) -> bool:
    """Whether the first bytes of a file show that it is of the announced kind, or of any kind where none is."""
    found = sniff(head)
    return found is not None and (announced is None or _could_be(found, announced))


def bare_type(value: str | None) -> str | None:
    """`text/html` of `Text/HTML; charset=utf-8`; None for what is not a media type."""
    media_type = (value or "").partition(";")[0].strip().lower()
    return media_type if re.fullmatch(r"[\w.+-]+/[\w.+-]+", media_type) else None


def _contradicts(found: str | None, announced: str, header: str | None) -> bool:
    if found == "text/html" and announced in _TABLES:
        return True
    if announced in _WEB_EXPORTS and header == announced:
        # Old web applications send HTML tables as Excel files, and Excel opens them; an error page says text/html.
        return False
    return found in _MARKUP and bool(_BINARY.fullmatch(announced))


def _could_be(found: str | None, candidate: str) -> bool:
    if found is None or found == candidate:
        return True
    container = _CONTAINERS.get(found)
    return container is not None and bool(container.fullmatch(candidate))


def _encoding(file_name: str | None) -> str | None:
    return mimetypes.guess_type(file_name or "", strict=False)[1]
