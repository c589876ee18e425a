"""Find files inside compressed files and zip archives by their content, and expand one at a time to a temporary folder.

A compressed file holds one file. An archive's files are read one after the other, each with its own header, in the
order of the archive. An archive that is damaged, or has a file that cannot be read, is rejected as a whole with the
name of that file: a partial delivery must not replace a complete one. Names inside are never used as paths.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from io import SEEK_SET, FileIO
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, cast

import pyarrow as pa

from ingest_project.contracts.files import COMPRESSED_TYPES, file_type_of, is_readable, type_inside
from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.core.logging import printable
from ingest_project.readers.layout import ReadLimits

PIECE_BYTES = 1024**2
# The end of each stream of bzip2 and xz copies the rest of its block, and a file may be millions of empty streams.
BLOCK_BYTES = 16 * 1024
# Files that expand to less have no limit of their expansion ratio: repeated rows compress well.
SMALL_BYTES = 16 * 1024**2
# An entry of a zip archive's directory is rarely longer than a few hundred bytes.
DIRECTORY_ENTRY_BYTES = 1024
# The dictionary of xz's highest level has 64 MiB.
XZ_MEMORY_BYTES = 128 * 1024**2
NAME_SHOWN = 200
NAMES_SHOWN = 10
MAX_LEFT_OUT = 50
STARTS = (
    (re.compile(rb"\x1f\x8b\x08"), "gzip"),
    (re.compile(rb"BZh[1-9](?:1AY&SY|\x17\x72\x45\x38\x50\x90)"), "bzip2"),
    (re.compile(rb"\xfd7zXZ\0"), "xz"),
    # A frame, or a skippable frame, with which pzstd begins its files.
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstd"),
    (re.compile(rb"PK(?:\x03\x04|\x05\x06)"), "zip"),
)
START_BYTES = 16
# The fifth byte distinguishes Parquet from a csv file whose first column is named PAR1.
PARQUET_START, OLE_START = b"PAR1\x15", b"\xd0\xcf\x11\xe0"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WORKBOOK_PART = "[Content_Types].xml"
ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
ENCRYPTED = 0x1
# NotImplementedError is a RuntimeError, and pyarrow's errors are ValueErrors.
DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, ValueError, RuntimeError, OverflowError)


class Contained(NamedTuple):
    """One file to read.

    Args:
        path: of its bytes, until the next one is requested.
        file_type: without compression; empty if neither name nor content says it.
        file_name: its own, without folders and without the ending of a compression.
        member: its name inside the archive, for people; empty for the file itself.
        left_out: names of the archive's files that were not chosen, up to MAX_LEFT_OUT of them.
    """

    path: Path
    file_type: str
    file_name: str
    member: str = ""
    left_out: tuple[str, ...] = ()


def files_inside(
    path: Path, file_type: str, file_name: str, limits: ReadLimits, members: str = ""
) -> Generator[Contained, None, None]:
    """Yield the files inside a container, or the file itself if it is not a container.

    Args:
        path: of a file that does not change meanwhile.
        file_type: as `file_type_of` returns it; the compression that it names need not be the one of the content.
        file_name: its own name.
        limits: limits of the expanded size.
        members: pattern of the names of the archive's files to read, in any case; all of them if empty.

    Raises:
        FileRejectedError: `unreadable_container`: damaged, cut short, encrypted, or with a file that is not read;
            `empty_file`: an archive without files, or without one that the pattern matches.
        LimitExceededError: it expands beyond a limit.
    """
    file = _named(path, file_type, file_name)
    if not _container(_start(path)):
        yield _plain(file)
        return
    with tempfile.TemporaryDirectory(prefix="expanded-") as folder:
        yield from _Expansion(Path(folder), limits, members).files(file, 0)


@dataclass
class _Expansion:
    """The expansion of one file, with the bytes and members that count towards its limits."""

    folder: Path
    limits: ReadLimits
    pattern: str = ""
    expanded_bytes: int = 0
    members: int = 0
    left_out: list[str] = field(default_factory=list)

    def files(self, file: Contained, depth: int) -> Iterator[Contained]:
        container = _container(_start(file.path))
        is_archive = container == "zip" and not self._is_workbook(file)
        if container in {"", "zip"} and not is_archive:
            yield _plain(file)
            return
        if depth == self.limits.max_archive_depth:
            raise LimitExceededError("INGEST_MAX_ARCHIVE_DEPTH", f"More than {depth} containers are nested")
        inside = self._members(file) if is_archive else self._content(file, container)
        for contained in inside:
            try:
                yield from self.files(contained, depth + 1)
            except FileRejectedError as error:
                raise in_member(error, contained.member if is_archive else "") from error
            finally:
                contained.path.unlink(missing_ok=True)

    def _is_workbook(self, file: Contained) -> bool:
        """Return True for a zip archive that is a workbook: by its declared type, else by its parts."""
        if file.file_type:
            return file.file_type in {"xlsx", "xls"}
        with _opened_archive(file.path, self.limits) as archive:
            return WORKBOOK_PART in archive.NameToInfo

    def _content(self, file: Contained, container: str) -> Iterator[Contained]:
        with _damage(f"The {container} file"), file.path.open("rb") as content:
            target = self._expanded(DECOMPRESSORS[container](content), file.path.stat().st_size)
        yield file._replace(path=target)

    def _members(self, archive_file: Contained) -> Iterator[Contained]:
        with _opened_archive(archive_file.path, self.limits) as archive:
            for member in self._checked(archive):
                name = "/".join(filter(None, (archive_file.member, _shown(member.filename))))
                with _damage(f"The file {name} in the archive"):
                    target = self._expanded(_member_pieces(archive, member), member.compress_size)
                own = _parts(member.filename)[-1]
                yield _named(target, file_type_of(own), own)._replace(member=name, left_out=tuple(self.left_out))

    def _checked(self, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        """Return the files of an archive, if all of them may be read; folders and hidden files are left out."""
        members = [member for member in archive.infolist() if not (_is_folder(member) or _is_hidden(member.filename))]
        self.members += len(members)
        if self.members > self.limits.max_archive_members:
            raise LimitExceededError("INGEST_MAX_ARCHIVE_MEMBERS", f"The archive has {self.members} files")
        if not members:
            raise FileRejectedError("empty_file", "The archive has no files.")
        if min(member.header_offset for member in archive.infolist()) > 0:
            raise _unreadable("The archive begins with bytes of none of its files, as where two follow each other.")
        if not {WORKBOOK_PART, "mimetype"}.isdisjoint(archive.NameToInfo):
            raise _unreadable("The file is an office document, of which only xlsx and xls workbooks are read.")
        repeated = [name for name, times in Counter(member.filename for member in members).items() if times > 1]
        if repeated:
            raise _unreadable(f"The archive has more than one file called {_shown(repeated[0])}.")
        chosen = [member for member in members if self._is_chosen(member.filename)]
        if not chosen:
            names = ", ".join(_shown(member.filename) for member in members[:NAMES_SHOWN])
            raise FileRejectedError("empty_file", f"No file of the archive matches {self.pattern!r}; it has {names}.")
        for member in chosen:
            if problem := _problem(member):
                raise _unreadable(f"The file {_shown(member.filename)} in the archive {problem}.")
        others = [_shown(member.filename) for member in members if not self._is_chosen(member.filename)]
        self.left_out = [*self.left_out, *others][:MAX_LEFT_OUT]
        return chosen

    def _is_chosen(self, name: str) -> bool:
        """Return True for a name that matches; a pattern without a slash is that of a file in any folder."""
        compared = name if "/" in self.pattern else name.rpartition("/")[2]
        # An archive within the archive is opened to see what is in it.
        return not self.pattern or fnmatchcase(compared.lower(), self.pattern.lower()) or name.lower().endswith(".zip")

    def _expanded(self, pieces: Iterable[bytes], compressed_bytes: int) -> Path:
        """Write the content of a container to a file, within the limits."""
        size, limits = 0, self.limits
        with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
            for piece in pieces:
                size += len(piece)
                self.expanded_bytes += len(piece)
                if self.expanded_bytes > limits.max_expanded_bytes:
                    raise LimitExceededError(
                        "INGEST_MAX_EXPANDED_BYTES", f"The file expands to more than {limits.max_expanded_bytes} bytes"
                    )
                if size > max(SMALL_BYTES, limits.max_expansion_ratio * compressed_bytes):
                    raise LimitExceededError(
                        "INGEST_MAX_EXPANSION_RATIO",
                        f"The file expands to more than {limits.max_expansion_ratio} times its size",
                    )
                file.write(piece)
        return Path(file.name)


def _named(path: Path, file_type: str, file_name: str) -> Contained:
    is_compressed = file_type.rpartition(".")[2] in COMPRESSED_TYPES
    return Contained(path, type_inside(file_type), file_name.rpartition(".")[0] if is_compressed else file_name)


def _plain(file: Contained) -> Contained:
    if file.file_type == "zip":
        raise _unreadable("The file is not a zip archive, or its beginning is missing.")
    return file._replace(file_type=file.file_type or _detected(file.path))


def in_member(error: FileRejectedError, member: str) -> FileRejectedError:
    """Return the same error with the name of the archive's file that it is about."""
    if not member or member in error.detail:
        return error
    if isinstance(error, LimitExceededError):
        return LimitExceededError(error.limit, f"In {member}: {error.detail.removesuffix(f' (limit: {error.limit})')}")
    return FileRejectedError(error.rule, f"In {member}: {error.detail}")


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(START_BYTES)


def _container(start: bytes) -> str:
    return next((name for pattern, name in STARTS if pattern.match(start)), "")


def _detected(path: Path) -> str:
    """Detect the type of content whose name has no known ending."""
    with path.open("rb") as file:
        text = file.read(PIECE_BYTES)
    if text.startswith(PARQUET_START):
        return "parquet"
    if text.startswith(OLE_START):
        return "xls"
    if _container(text) == "zip":
        return "xlsx"
    return "json" if text.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] in {b"{", b"["} else "csv"


def _unreadable(detail: str) -> FileRejectedError:
    return FileRejectedError("unreadable_container", detail)


def _shown(name: str) -> str:
    return printable(name[:NAME_SHOWN])


def _parts(name: str) -> list[str]:
    # Some Windows programs write backslashes as separators.
    return name.replace("\\", "/").split("/")


def _is_folder(member: zipfile.ZipInfo) -> bool:
    return member.is_dir() or (not member.file_size and member.filename.endswith("\\"))


def _is_hidden(name: str) -> bool:
    """Return True for what systems add: dot files, the folder of macOS for resource forks, and files of Windows."""
    parts = [part for part in _parts(name) if part not in {".", ".."}]
    return any(part.startswith(".") or part in {"__MACOSX", "Thumbs.db", "desktop.ini"} for part in parts)


def _problem(member: zipfile.ZipInfo) -> str:
    """Return why a file of an archive is not read; empty if it is."""
    if member.flag_bits & ENCRYPTED:
        return "is protected by a password"
    if stat.S_IFMT(member.external_attr >> 16) not in {0, stat.S_IFREG}:
        return "is a link or a device, not a file"
    if member.compress_type not in ZIP_METHODS:
        return f"is compressed by method {member.compress_type}, which is not read; use deflate"
    file_type = file_type_of(_parts(member.filename)[-1])
    if is_readable(file_type):
        return ""
    return f"is of a type that no reader reads ({file_type or 'none'}); choose the files by `members` of the profile"


class _BoundedReads(FileIO):
    """A file that refuses large reads, such as that of a whole archive directory, and seeks before its beginning."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self._most:
            raise LimitExceededError("INGEST_MAX_ARCHIVE_MEMBERS", f"The archive's directory has {size} bytes")
        return super().read(size) or b""

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        if whence == SEEK_SET and offset < 0:
            raise zipfile.BadZipFile("an offset is negative")
        return super().seek(offset, whence)


@contextmanager
def _opened_archive(path: Path, limits: ReadLimits) -> Iterator[zipfile.ZipFile]:
    most = PIECE_BYTES + limits.max_archive_members * DIRECTORY_ENTRY_BYTES
    with _BoundedReads(path, most) as file:
        with _damage("The archive"):
            archive = zipfile.ZipFile(cast("BinaryIO", file))
        with archive:
            yield archive


@contextmanager
def _damage(what: str) -> Iterator[None]:
    """Convert the errors of decompressors for damaged content to FileRejectedError.

    Raises:
        FileRejectedError: `unreadable_container`.
    """
    try:
        yield
    except EOFError:
        raise _unreadable(f"{what} is cut short.") from None
    except DAMAGE as error:
        raise _unreadable(f"{what} is damaged: {printable(str(error)[:NAME_SHOWN])}.") from None
    except OSError as error:
        # An error of the system has a number; those of decompressors have none.
        if error.errno is not None:
            raise
        cut = "Truncated" in str(error)
        detail = "is cut short" if cut else f"is damaged: {printable(str(error)[:NAME_SHOWN])}"
        raise _unreadable(f"{what} {detail}.") from None


def _member_pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content of a file of an archive.

    zipfile expands all that it has read of bzip2 at once, which is gigabytes for a few kilobytes: here it reads such a
    file as if it were stored.
    """
    if member.compress_type != zipfile.ZIP_BZIP2:
        with archive.open(member) as file:
            yield from _pieces(file.read)
        return
    stored, checksum = copy(member), 0
    stored.compress_type, stored.file_size = zipfile.ZIP_STORED, member.compress_size
    # The checksum is of the content.
    del stored.CRC
    with archive.open(stored) as file:
        for piece in DECOMPRESSORS["bzip2"](file):
            checksum = zlib.crc32(piece, checksum)
            yield piece
    if checksum != member.CRC:
        raise zipfile.BadZipFile("Bad CRC-32")


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    return iter(lambda: read(PIECE_BYTES), b"")


def _streams(
    file: IO[bytes], make: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor], padding: bytes
) -> Iterator[bytes]:
    """Decompress all streams of a file, one after the other; what follows the last one is an error.

    The file classes of the standard library leave out what follows, and do not limit the memory of xz.
    """
    block = file.read(BLOCK_BYTES)
    while block:
        decompressor = make()
        while not decompressor.eof:
            if decompressor.needs_input and not block and not (block := file.read(BLOCK_BYTES)):
                raise EOFError
            yield decompressor.decompress(block, PIECE_BYTES)
            block = b""
        block = decompressor.unused_data
        while padding and not (block := block.lstrip(padding)) and (block := file.read(BLOCK_BYTES)):
            pass
        block = block or file.read(BLOCK_BYTES)


DECOMPRESSORS: dict[str, Callable[[IO[bytes]], Iterator[bytes]]] = {
    "gzip": lambda file: _pieces(gzip.GzipFile(fileobj=file).read),
    "bzip2": lambda file: _streams(file, bz2.BZ2Decompressor, b""),
    "xz": lambda file: _streams(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_BYTES), b"\0"),
    "zstd": lambda file: _pieces(pa.CompressedInputStream(file, "zstd").read),
}
