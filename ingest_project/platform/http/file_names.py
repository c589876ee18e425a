"""The name of a downloaded file: from whoever named it, made safe for every place that it may be stored in."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from urllib.parse import unquote

MAX_CHARACTERS = 120
MAX_BYTES = 200
FALLBACK = "download"
_MAX_EXTENSION = 20

# Separators, and what OneLake and Windows refuse.
_REFUSED = re.compile(r'["\\/:|<>*?]')
_WINDOWS_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?=\.|$)", re.IGNORECASE)
_EXTENDED = re.compile(r"filename\*\s*=\s*([\w!#$%&+^`{}~-]+)'[^']*'([^;\s\"]+)", re.IGNORECASE)
_PLAIN = re.compile(r"filename\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^;]+))", re.IGNORECASE)


def safe_file_name(name: str) -> str:
    """A name of one file in one folder that every file system, OneLake and Windows take.

    At most 120 characters and 200 bytes of UTF-8, the ending kept; never empty; in Unicode's composed form. The same
    name gives the same result; different names may.
    """
    # Of a path only the last part is a file's name; what a Windows sender calls a path counts as one.
    name = re.split(r"[/\\]", name.rstrip("/\\ "))[-1]
    if not (name.isascii() and name.isprintable()):
        # Composed last: what is left out may have stood between a letter and its accent.
        name = unicodedata.normalize("NFC", "".join(char for char in name if _printable(char)))
    name = _REFUSED.sub("_", name).strip(" .")
    if _WINDOWS_DEVICE.match(name):
        name = f"_{name}"
    return _shortened(name) or FALLBACK


def chosen_file_name(wanted: str | None, disposition: str | None, target: str) -> str:
    """The name as the task gives it, else as the server's Content-Disposition does, else the end of the address.

    Args:
        wanted: from the task.
        disposition: the header.
        target: path and query of the address.
    """
    for name in (wanted, disposition_file_name(disposition), path_file_name(target)):
        if name and (safe := safe_file_name(name)) != FALLBACK:
            return safe
    return FALLBACK


def disposition_file_name(header: str | None) -> str | None:
    """The file name of a Content-Disposition (RFC 6266): `filename*` before `filename`; None when it names none."""
    extended = _EXTENDED.search(header or "")
    if extended:
        with contextlib.suppress(LookupError, UnicodeError):
            return unquote(extended[2], encoding=extended[1], errors="strict")
    plain = _PLAIN.search(header or "")
    if not plain:
        return None
    name = re.sub(r"\\(.)", r"\1", plain[1]) if plain[1] is not None else plain[2].strip()
    with contextlib.suppress(UnicodeError):
        # Headers are read as Latin-1; servers that send other characters bare mean UTF-8.
        name = name.encode("latin-1").decode()
    return unquote(name) if re.search(r"%[0-9A-Fa-f]{2}", name) else name


def path_file_name(target: str) -> str | None:
    """The last part of an address's path, decoded; None when the path ends in a slash."""
    return unquote(re.split(r"[?#]", target, maxsplit=1)[0].rpartition("/")[2]) or None


def _printable(char: str) -> bool:
    # Controls, surrogates, private and unassigned characters, and formats such as "write right to left from here".
    return not unicodedata.category(char).startswith("C")


def _shortened(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    if not dot or not stem or len(ending) > _MAX_EXTENSION:
        stem, dot, ending = name, "", ""
    room_bytes = MAX_BYTES - len((dot + ending).encode())
    stem = stem[: MAX_CHARACTERS - len(dot + ending)].encode()[:room_bytes].decode(errors="ignore")
    return f"{stem.rstrip(' .') if dot else stem.strip(' .')}{dot}{ending}"
