"""The name and the media type of a downloaded file.

The name comes from the task or the server and is made safe for every store. The media type is detected from the first
bytes and compared with the announced one: a server may answer 200 with an error or login page, which would
otherwise be stored as a PDF.
"""

from __future__ import annotations

import codecs
import contextlib
import mimetypes
import re
import unicodedata
from urllib.parse import unquote

from ingest_project.core.errors import FileRejectedError

MAX_CHARACTERS = 120
MAX_BYTES = 200
FALLBACK = "download"
_MAX_EXTENSION = 20

# Separators, and characters that OneLake and Windows refuse.
_REFUSED = re.compile(r'["\\/:|<>*?]')
_WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?=\.|$)", re.IGNORECASE)
_EXTENDED = re.compile(r"filename\*\s*=\s*([\w!#$%&+^`{}~-]+)'[^']*'([^;\s\"]+)", re.IGNORECASE)
_PLAIN = re.compile(r"filename\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^;]+))", re.IGNORECASE)

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

# The bytes of a container format do not show its exact type: the announced type does.
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
# Files of these types are never markup or a short message; text, XML and formats without a signature may be either.
_BINARY = re.compile(
    r"image/(?!svg).*|audio/.*|video/.*"
    r"|application/(?:pdf|zip|x-zip.*|gzip|x-gzip|x-tar|x-7z.*|vnd\.rar|x-rar.*|x-bzip2|x-xz|msword|vnd\.ms-.*"
    r"|vnd\.openxmlformats-.*|vnd\.oasis\.opendocument.*|rtf|postscript|epub\+zip|java-archive|vnd\.apache\.parquet)"
)
_WEB_EXPORTS = frozenset({"application/vnd.ms-excel", "application/msword"})
_NEVER_HTML = frozenset({"text/csv", "text/tab-separated-values", "application/csv", "application/json"})


def safe_file_name(name: str) -> str:
    """Return a file name that every file system, OneLake and Windows accept.

    It has at most 120 characters and 200 bytes of UTF-8, keeps the ending, is never empty, and is in Unicode's composed
    form. Equal names give equal results; different names may, too.
    """
    # The name is the last part of a path, including a Windows path.
    name = re.split(r"[/\\]", name.rstrip("/\\ "))[-1]
    if not (name.isascii() and name.isprintable()):
        # Compose last: a removed character may have separated a letter from its accent.
        name = unicodedata.normalize("NFC", "".join(char for char in name if _printable(char)))
    name = _REFUSED.sub("_", name).strip(" .")
    if _WINDOWS_DEVICE.match(name):
        name = f"_{name}"
    return _shortened(name) or FALLBACK


def chosen_file_name(wanted: str | None, disposition: str | None, target: str) -> str:
    """Return the task's name, else the server's Content-Disposition name, else the last part of the address.

    Args:
        wanted: name from the task.
        disposition: value of the Content-Disposition header.
        target: path and query of the address.
    """
    for name in (wanted, disposition_file_name(disposition), path_file_name(target)):
        if name and (safe := safe_file_name(name)) != FALLBACK:
            return safe
    return FALLBACK


def disposition_file_name(header: str | None) -> str | None:
    """Parse the file name of a Content-Disposition (RFC 6266), `filename*` before `filename`; None if it has none."""
    extended = _EXTENDED.search(header or "")
    if extended:
        with contextlib.suppress(LookupError, UnicodeError):
            return unquote(extended[2], encoding=extended[1], errors="strict")
    plain = _PLAIN.search(header or "")
    if not plain:
        return None
    name = re.sub(r"\\(.)", r"\1", plain[1]) if plain[1] is not None else plain[2].strip()
    with contextlib.suppress(UnicodeError):
        # Headers are decoded as Latin-1; servers that send other characters unencoded mean UTF-8.
        name = name.encode("latin-1").decode()
    return unquote(name) if re.search(r"%[0-9A-Fa-f]{2}", name) else name


def path_file_name(target: str) -> str | None:
    """Return the last part of an address's path, decoded; None if the path ends in a slash."""
    return unquote(re.split(r"[?#]", target, maxsplit=1)[0].rpartition("/")[2]) or None


def sniff(head: bytes) -> str | None:
    """Return the media type that the first bytes of a file show; None if they show none."""
    is_text = _CONTROLS.search(head) is None
    for magic, media_type in _MAGIC:
        if head.startswith(magic) and not (is_text and magic.isalnum()):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] in _RIFF:
        return _RIFF[head[8:12]]
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if b"%PDF-" in head[:_PDF_HEADER_WITHIN]:
        return "application/pdf"
    return _sniff_text(head)


def announced_type(declared: str | None, file_name: str | None) -> str | None:
    """Return the media type that the event declares, else the one of the name's ending; None without either."""
    media_type = bare_type(declared)
    if media_type and media_type != UNKNOWN:
        return media_type
    guess, encoding = mimetypes.guess_type(file_name or "", strict=False)
    return "application/gzip" if encoding else guess


def require_announced(head: bytes, announced: str | None, header: str | None, redacted: str) -> str:
    """Return the media type of a file; refuse a file that is not of the announced kind.

    Args:
        head: first bytes of the file, up to SNIFFED_BYTES.
        announced: see `announced_type`.
        header: the server's Content-Type.
        redacted: the address, without secrets.

    Returns:
        the detected type, or the announced one if the bytes are ambiguous.

    Raises:
        FileRejectedError: the file is a web page or a message instead of the announced document, image or archive.
    """
    found = sniff(head)
    if announced and _contradicts(found, announced, bare_type(header)):
        raise FileRejectedError("wrong_content_type", f"{redacted} was announced as {announced} but is {found}")
    for candidate in (announced, bare_type(header)):
        if candidate and candidate != UNKNOWN and _could_be(found, candidate):
            return candidate
    return found or announced or bare_type(header) or UNKNOWN


def shows(head: bytes, announced: str | None) -> bool:
    """Return True if the first bytes of a file show the announced kind, or any kind if none is announced."""
    found = sniff(head)
    return found is not None and (announced is None or _could_be(found, announced))


def bare_type(value: str | None) -> str | None:
    """Return a media type without parameters, e.g. `text/html` for `Text/HTML; charset=utf-8`; None for other texts."""
    media_type = (value or "").partition(";")[0].strip().lower()
    return media_type if re.fullmatch(r"[\w.+-]+/[\w.+-]+", media_type) else None


def _printable(char: str) -> bool:
    # Control, surrogate, private-use and unassigned characters, and format characters such as a right-to-left override.
    return not unicodedata.category(char).startswith("C")


def _shortened(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    if not dot or not stem or len(ending) > _MAX_EXTENSION:
        stem, dot, ending = name, "", ""
    room_bytes = MAX_BYTES - len((dot + ending).encode())
    stem = stem[: MAX_CHARACTERS - len(dot + ending)].encode()[:room_bytes].decode(errors="ignore")
    return f"{stem.rstrip(' .') if dot else stem.strip(' .')}{dot}{ending}"


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


def _contradicts(found: str | None, announced: str, header: str | None) -> bool:
    if found == "text/html" and announced in _NEVER_HTML:
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
