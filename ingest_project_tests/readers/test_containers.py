"""Compressed files and archives: read by content, within limits, rejected whole with the reason and the file's name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from ingest_project.contracts.files import file_type_of
from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.readers import Target
from ingest_project.readers.formats.containers import files_inside
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.profiles import ReaderProfile
from ingest_project.readers.reading import MEMBER_LINES, read_chunks
from ingest_project_tests.readers.samples import HEADER, read_text
from ingest_project_tests.services.memory import with_peak_memory

TARGET = Target(("a", "b"), frozenset({"a"}))
PROFILE = ReaderProfile.model_validate({"name": "own", "dataset": "own"})
CSV = b"a,b\n1,2\n3,4\n"
ROWS = [(2, "1", "2"), (3, "3", "4")]


def zstd(content: bytes) -> bytes:
    compressed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return compressed


COMPRESSIONS: Mapping[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}
EACH = pytest.mark.parametrize("ending", COMPRESSIONS)


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def chunks_of(folder: Path, name: str, content: bytes, limits: ReadLimits | None = None) -> list[RowsChunk]:
    path = folder / "landed"
    path.write_bytes(content)
    return list(read_chunks(path, file_type_of(name), PROFILE, limits or ReadLimits(), name, TARGET))


def rows_of(folder: Path, name: str, content: bytes, limits: ReadLimits | None = None) -> list[tuple[object, ...]]:
    chunks = chunks_of(folder, name, content, limits)
    return pl.concat(chunk.rows for chunk in chunks).select("line_number", "a", "b").rows()


def rejected(folder: Path, name: str, content: bytes, limits: ReadLimits | None = None) -> FileRejectedError:
    with pytest.raises(FileRejectedError) as caught:
        chunks_of(folder, name, content, limits)
    return caught.value


@EACH
def test_a_compressed_file_is_read_under_its_name_another_or_none(tmp_path: Path, ending: str) -> None:
    content = COMPRESSIONS[ending](CSV)
    for name in (f"x.csv.{ending}", "x.csv", f"x.{ending}", "x.csv.gz"):
        assert rows_of(tmp_path, name, content) == ROWS
    assert rows_of(tmp_path, f"x.csv.{ending}", CSV) == ROWS, "a server may have expanded it"


@EACH
def test_parts_that_follow_each_other_are_one_file(tmp_path: Path, ending: str) -> None:
    compress = COMPRESSIONS[ending]
    assert rows_of(tmp_path, "x.csv", compress(CSV[:6]) + compress(CSV[6:]) + compress(b"5,6\n"))[-1] == (4, "5", "6")


@EACH
def test_a_compressed_file_that_is_cut_or_followed_by_anything_is_rejected(tmp_path: Path, ending: str) -> None:
    content = COMPRESSIONS[ending](CSV * 100)
    for cut in (len(content) - 1, len(content) // 2, 17):
        assert rejected(tmp_path, "x.csv", content[:cut]).rule == "unreadable_container"
    assert rejected(tmp_path, "x.csv", content + b"and more that is no stream").rule == "unreadable_container"


def test_the_shipped_dataset_takes_no_compressed_file_under_a_plain_name(tmp_path: Path) -> None:
    for compress in (gzip.compress, lzma.compress, zstd):
        with pytest.raises(FileRejectedError, match="a compressed file or an archive, not rows of text"):
            read_text(tmp_path, compress(HEADER.encode()))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "a compressed file or an archive"),
        (b"x.csv".ljust(257, b"\0") + b"ustar", "a compressed file or an archive"),
        (b"PAR1\x15", "a Parquet file"),
        (b"Obj\x01\x04", "a file of Avro or another binary format"),
        (b"ARROW1\0\0", "a file of Avro or another binary format"),
        (b"\xff\xff\xff\xff\xa8\0\0\0", "a file of Avro or another binary format"),
        (b"CDF\x01\0", "a file of Avro or another binary format"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "an HTML or XML document"),
        (b"<?xml version='1.0'?>", "an HTML or XML document"),
    ],
)
def test_bytes_that_are_not_text_are_named(content: bytes, kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileRejectedError, match=f"The file is {kind}, not rows of text"):
        read_text(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "rule"),
    [(b"%PDF-1.4", "unreadable_container"), (b"PAR1\x15", "unreadable_container"), (b"", "empty_file")],
)
def test_content_of_another_type_is_rejected(tmp_path: Path, content: bytes, rule: str) -> None:
    assert rejected(tmp_path, "x.txt", content).rule == rule
    assert rejected(tmp_path, "x.csv.gz", gzip.compress(content)).rule == rule
    assert rejected(tmp_path, "x.zip", content).rule == "unreadable_container"


@pytest.mark.parametrize("part", ["mimetype", "[Content_Types].xml"])
@pytest.mark.parametrize("name", ["x.csv", "x.zip"])
def test_a_document_of_an_office_program_is_named(tmp_path: Path, name: str, part: str) -> None:
    refusal = rejected(tmp_path, name, zipped({part: b"x", "content.xml": b"<x/>"}))
    assert (refusal.rule, "of which only xlsx and xls" in refusal.detail) == ("unreadable_container", True)


@pytest.mark.parametrize("first", ["PAR1", "PK", "BZh91AY", "Obj", "ustar"])
@pytest.mark.parametrize("name", ["x.csv", "x.gz"])
def test_a_first_column_named_as_another_format_begins_is_text(tmp_path: Path, name: str, first: str) -> None:
    content = f"{first},a,b\n0,1,2\n0,3,4\n".encode()
    assert rows_of(tmp_path, name, gzip.compress(content) if name == "x.gz" else content) == ROWS


@pytest.mark.parametrize("name", ["x.tsv", "x.psv", "x.txt", "x.dat", "x.csv"])
@pytest.mark.parametrize("delimiter", ["\t", "|", ",", ";"])
def test_delimited_text_is_read_under_all_of_its_names(tmp_path: Path, name: str, delimiter: str) -> None:
    assert rows_of(tmp_path, name, CSV.replace(b",", delimiter.encode())) == ROWS


def test_the_files_of_an_archive_are_read_one_after_the_other(tmp_path: Path) -> None:
    files = {
        "halls/a.csv": CSV,
        "b.jsonl.gz": gzip.compress(b'\n{"a": 5, "b": 6}\nbad\n'),
        "../../c.CSV": b"b,a\n8,7\n9\n",
        "__MACOSX/halls/._a.csv": b"resource fork",
        ".DS_Store": b"x",
        "empty folder/": b"",
    }
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        chunks = chunks_of(tmp_path, "x.zip", zipped(files, method))
        rows = pl.concat((chunk.rows for chunk in chunks), how="diagonal").select("line_number", "a", "b").rows()
        assert rows == [*ROWS, (MEMBER_LINES + 2, "5", "6"), (2 * MEMBER_LINES + 2, "7", "8")]
        assert [record for chunk in chunks for record in chunk.malformed.rows()] == [
            (MEMBER_LINES + 3, "b.jsonl.gz, line 3: bad", "not_json"),
            (2 * MEMBER_LINES + 3, "../../c.CSV, line 3: 9", "too_few_cells"),
        ]
        assert chunks[0].raw_text([3, 2]) == ["halls/a.csv, line 3: 3,4", "halls/a.csv, line 2: 1,2"]
        assert chunks[-1].raw_text([2 * MEMBER_LINES + 2]) == ["../../c.CSV, line 2: 8,7"]
    assert not (tmp_path.parent / "c.CSV").exists()


def test_a_profile_chooses_the_files_of_an_archive_and_the_others_are_listed(tmp_path: Path) -> None:
    content = zipped(
        {"Metadaten/info.html": b"<p>", "produkt_1.txt": CSV, "sub/PRODUKT_2.TXT": CSV, "Metadaten.txt": b"x"}
    )
    path = tmp_path / "landed"
    path.write_bytes(content)

    def read(members: str) -> list[RowsChunk]:
        profile = ReaderProfile.model_validate({"name": "own", "dataset": "own", "members": members})
        return list(read_chunks(path, "zip", profile, ReadLimits(), "a.zip", TARGET))

    chunks = read("produkt_*.txt")
    assert [chunk.rows.height for chunk in chunks] == [2, 2]
    assert chunks[0].left_out == ("Metadaten/info.html", "Metadaten.txt")
    assert len(read("sub/*")) == 1
    with pytest.raises(
        FileRejectedError, match=r"No file of the archive matches '\*\.dat'; it has Metadaten/info\.html"
    ):
        read("*.dat")


def test_an_archive_is_rejected_whole_with_the_name_of_the_file_that_is_bad(tmp_path: Path) -> None:
    inner = zipped({"deep.csv": b"x,y\n1,2\n"})
    for files, rule, name in (
        ({"a.csv": CSV, "bad.csv": b"x,y\n1,2\n"}, "missing_column", "In bad.csv: "),
        ({"a.csv": CSV, "empty.csv": b""}, "empty_file", "In empty.csv: "),
        ({"a.csv": CSV, "inner.zip": inner}, "missing_column", "In inner.zip/deep.csv: "),
        ({"a.csv": CSV, "b.csv.gz": gzip.compress(CSV)[:-3]}, "unreadable_container", "In b.csv.gz: "),
        ({"a.csv": CSV, "read.me": b"hello"}, "unreadable_container", "read.me in the archive is of a type"),
        ({"a.csv": CSV, "evil\n\x1b[31m.exe": b"x"}, "unreadable_container", r"evil\n\x1b[31m.exe in the archive"),
    ):
        error = rejected(tmp_path, "x.zip", zipped(files))
        assert (error.rule, name in error.detail) == (rule, True), error.detail
    error = rejected(tmp_path, "x.zip", zipped({"a.csv": CSV, "b.json": b"["}))
    assert (error.rule, error.detail) == ("unreadable_json", "In b.json: Line 1: the array has no end.")
    assert rejected(tmp_path, "x.zip", zipped({})).rule == "empty_file"
    assert rejected(tmp_path, "x.zip", zipped({"a.csv": b"a,b\n"})).rule == "no_rows"
    too_long = rejected(tmp_path, "x.zip", zipped({"a.csv": b"a" * 100}), ReadLimits(max_row_bytes=10))
    assert isinstance(too_long, LimitExceededError)
    assert too_long.detail.startswith("In a.csv: ")
    assert too_long.detail.count("INGEST_MAX_ROW_BYTES") == 1


def test_links_repeated_names_and_passwords_in_an_archive_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link.csv")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert "is a link or a device" in rejected(tmp_path, "x.zip", buffer.getvalue()).detail
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.csv", CSV)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.csv", CSV)
    assert "more than one file called a.csv" in rejected(tmp_path, "x.zip", buffer.getvalue()).detail
    plain = zipped({"a.csv": CSV})
    encrypted = bytearray(plain)
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[plain.index(magic) + offset] |= 1
    assert "protected by a password" in rejected(tmp_path, "x.zip", bytes(encrypted)).detail
    assert "method 14" in rejected(tmp_path, "x.zip", zipped({"a.csv": CSV}, zipfile.ZIP_LZMA)).detail


def test_a_workbook_inside_a_container_stays_a_workbook(tmp_path: Path, workbook: bytes) -> None:
    for name, content in (
        ("x.xlsx", workbook),
        ("x.xlsx.gz", gzip.compress(workbook)),
        ("x.gz", gzip.compress(workbook)),
        ("x.zip", zipped({"x.xlsx": workbook})),
    ):
        assert [row[1:] for row in rows_of(tmp_path, name, content)] == [("1", "2")]


@pytest.fixture(scope="module")
def workbook() -> bytes:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["a", "b"])
    book.active.append([1, 2])
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


@EACH
def test_a_file_that_expands_beyond_a_limit_is_refused(tmp_path: Path, ending: str) -> None:
    compress = COMPRESSIONS[ending]
    # In parts: to compress it all at once takes bz2 seconds.
    content = compress(b"a,b\n") + compress(b"1,2\n" * 45_000) * 100
    error = rejected(tmp_path, "x.csv", content)
    assert isinstance(error, LimitExceededError)
    assert error.limit == "INGEST_MAX_EXPANSION_RATIO"
    error = rejected(tmp_path, "x.csv", content, ReadLimits(max_expanded_bytes=1024**2))
    assert isinstance(error, LimitExceededError)
    assert error.limit == "INGEST_MAX_EXPANDED_BYTES"


def test_a_file_of_an_archive_is_expanded_in_pieces_whatever_compresses_it(tmp_path: Path) -> None:
    # A thousand bytes that expand to half a gigabyte.
    content = zipped({"a.csv": bytes(512 * 1024**2)}, zipfile.ZIP_BZIP2)
    error, grown = with_peak_memory(lambda: rejected(tmp_path, "x.zip", content))
    assert isinstance(error, LimitExceededError)
    assert error.limit == "INGEST_MAX_EXPANSION_RATIO"
    assert grown < 100 * 1024**2


def test_a_file_of_an_archive_must_have_its_checksum_whatever_compresses_it(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
        content = zipped({"a.csv": CSV}, method)
        checksum = struct.pack("<L", zlib.crc32(CSV))
        assert content.count(checksum) == 2
        error = rejected(tmp_path, "x.zip", content.replace(checksum, b"abcd"))
        assert (error.rule, "Bad CRC-32" in error.detail) == ("unreadable_container", True)


@pytest.mark.parametrize("ending", ["bz2", "xz"])
def test_a_file_of_many_streams_takes_linear_time(tmp_path: Path, ending: str) -> None:
    empty = COMPRESSIONS[ending](b"")
    began = time.process_time()
    assert rows_of(tmp_path, f"x.csv.{ending}", empty * (1024**2 // len(empty)) + COMPRESSIONS[ending](CSV)) == ROWS
    assert time.process_time() - began < 0.4


def test_archives_have_limits_of_files_and_depth(tmp_path: Path) -> None:
    many = {f"{number}.csv": CSV for number in range(12)}
    for content, limits, setting in (
        (zipped(many), ReadLimits(max_archive_members=11), "INGEST_MAX_ARCHIVE_MEMBERS"),
        (
            zipped({"a.zip": zipped(many), "b.zip": zipped(many)}),
            ReadLimits(max_archive_members=20),
            "INGEST_MAX_ARCHIVE",
        ),
        (gzip.compress(gzip.compress(gzip.compress(CSV))), ReadLimits(), "INGEST_MAX_ARCHIVE_DEPTH"),
        (zipped({"a.zip": zipped({"b.csv.gz": gzip.compress(CSV)})}), ReadLimits(), "INGEST_MAX_ARCHIVE_DEPTH"),
        (zipped({"a.csv": b"a\n" * 100, "b.csv": b"a\n" * 100}), ReadLimits(max_expanded_bytes=300), "EXPANDED_BYTES"),
    ):
        error = rejected(tmp_path, "x.zip", content, limits)
        assert isinstance(error, LimitExceededError)
        assert setting in error.limit
    assert rows_of(tmp_path, "x.gz", gzip.compress(gzip.compress(CSV))) == ROWS


def test_a_directory_of_millions_of_entries_is_refused_before_it_is_read(tmp_path: Path) -> None:
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *[20] * 4, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 300_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFE, 0xFFFE, len(directory), 0, 0)
    error = rejected(tmp_path, "x.zip", b"PK\x03\x04" + directory + end)
    assert isinstance(error, LimitExceededError)
    assert error.limit == "INGEST_MAX_ARCHIVE_MEMBERS"


@pytest.mark.parametrize("kind", [*COMPRESSIONS, "zip"])
def test_any_damaged_file_is_refused_with_a_reason(tmp_path: Path, kind: str) -> None:
    chosen = random.Random(kind)  # noqa: S311 - the same damage in every run
    original = zipped({"a.csv": CSV, "b.csv.gz": gzip.compress(CSV)}) if kind == "zip" else COMPRESSIONS[kind](CSV * 50)
    for _ in range(300):
        damaged = bytearray(original)
        for _ in range(chosen.randint(1, 4)):
            damaged[chosen.randrange(len(damaged))] = chosen.randrange(256)
        cut = chosen.choice([len(damaged), chosen.randrange(len(damaged))])
        with suppress(FileRejectedError):
            chunks_of(tmp_path, f"x.{kind}", bytes(damaged[:cut]))
    assert not [*tmp_path.glob("expanded-*")]


@EACH
def test_expanding_takes_a_bounded_amount_of_memory(tmp_path: Path, ending: str) -> None:
    (tmp_path / "bomb").write_bytes(COMPRESSIONS[ending](bytes(90 * 1024**2)))
    limits = ReadLimits(max_expanded_bytes=80 * 1024**2, max_expansion_ratio=10**6)

    def expand() -> None:
        with pytest.raises(LimitExceededError):
            list(files_inside(tmp_path / "bomb", "csv.gz", "x.csv.gz", limits))

    assert with_peak_memory(expand)[1] < 40 * 1024**2
