"""Local and dummy sources: listing, opening, and files that nobody may read."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingest_project.core import plugins
from ingest_project.core.errors import ForbiddenPathError, PermanentError, SourceNotFoundError, SourceUnreachableError
from ingest_project.core.settings import PollingSettings
from ingest_project.sources import Skipped, Source, SourceFile, only_accepted
from ingest_project.sources.local import _LocalFile
from ingest_project.sources.registry import SOURCES, open_source
from ingest_project_tests.sources.served import context_of


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def settings(inbox: Path) -> PollingSettings:
    return PollingSettings.model_validate({"local_roots": [inbox], "dummy_root": inbox})


@pytest.fixture(params=["local", "dummy"])
def source(request: pytest.FixtureRequest, inbox: Path, settings: PollingSettings) -> Source:
    return open_source({"source_type": request.param, "path": str(inbox)}, context_of(settings))


def taken(source: Source, pattern: str = "*") -> list[str]:
    return sorted(found.name for found in source.list_files(pattern) if isinstance(found, SourceFile))


def skipped(source: Source, pattern: str = "*") -> dict[str, Skipped]:
    return {Path(found.path).name: found for found in source.list_files(pattern) if isinstance(found, Skipped)}


def test_readable_files_are_listed_in_any_case_of_the_extension(source: Source, inbox: Path) -> None:
    for name in ("a.csv", "b.CSV", "c.xlsx", "d.Xls", "e.Json.GZ", "f.pdf", "README"):
        (inbox / name).write_text("x")
    assert taken(source) == ["a.csv", "b.CSV", "c.xlsx", "d.Xls", "e.Json.GZ"]
    assert set(skipped(source)) == {"f.pdf", "README"}
    assert all(skip.visible and "No reader reads" in skip.reason for skip in skipped(source).values())


def test_a_file_that_its_dataset_does_not_take_is_skipped_with_the_reason(source: Source, inbox: Path) -> None:
    for name in ("a.csv", "b.CSV", "c.zip", "README"):
        (inbox / name).write_text("x")
    refusals = {"c.zip": "Only csv, xlsx are ingested, not zip."}
    entries = list(only_accepted(source.list_files("*"), lambda file: refusals.get(file.name, "")))
    assert sorted(entry.name for entry in entries if isinstance(entry, SourceFile)) == ["a.csv", "b.CSV"]
    reasons = {Path(entry.path).name: entry.reason for entry in entries if isinstance(entry, Skipped)}
    assert reasons["c.zip"] == "Only csv, xlsx are ingested, not zip."


def test_hidden_lock_and_unfinished_files_are_counted_but_not_shown(source: Source, inbox: Path) -> None:
    for name in (".hidden.csv", "~$book.xlsx", "a.csv.part", "b.tmp", "good.csv"):
        (inbox / name).write_text("x")
    (inbox / ".git").mkdir()
    assert taken(source) == ["good.csv"]
    found = skipped(source, "**/*")
    assert set(found) == {".hidden.csv", "~$book.xlsx", "a.csv.part", "b.tmp", ".git"}
    assert not any(skip.visible for skip in found.values())


def test_files_outside_the_pattern_are_left_out(source: Source, inbox: Path) -> None:
    for name in ("a.csv", "A.CSV", "b.xlsx", "notes.txt"):
        (inbox / name).write_text("x")
    assert taken(source, "*.csv") == ["A.CSV", "a.csv"]
    assert skipped(source, "*.csv") == {}
    assert taken(source, "a*") == ["a.csv"]


def test_two_stars_match_subfolders_and_one_star_does_not(source: Source, inbox: Path) -> None:
    (inbox / "2026" / "01").mkdir(parents=True)
    for name in ("top.csv", "2026/year.csv", "2026/01/day.csv"):
        (inbox / name).write_text("x")
    assert taken(source, "*.csv") == ["top.csv"]
    assert taken(source, "**/*.csv") == ["day.csv", "top.csv", "year.csv"]
    assert taken(source, "2026/*.csv") == ["year.csv"]
    assert taken(source, "*/01/*.csv") == ["day.csv"]


def test_a_listed_file_says_its_size_and_utc_time_of_change(source: Source, inbox: Path) -> None:
    (inbox / "a.csv").write_bytes(b"12345")
    os.utime(inbox / "a.csv", ns=(0, 1_700_000_000_123_456_789))
    (found,) = source.list_files("*")
    modified_at = datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert found == SourceFile(f"{inbox}/a.csv", "a.csv", size_bytes=5, modified_at=modified_at)
    assert source.stat(found.path) == found


def test_a_listed_file_can_be_opened_by_its_path(source: Source, inbox: Path) -> None:
    (inbox / "a.csv").write_bytes(b"one\ntwo\n")
    (found,) = source.list_files("*")
    with source.open(found.path) as file:
        assert file.readline() == b"one\n"
        assert file.read() == b"two\n"


def test_a_name_that_is_not_utf8_is_skipped_with_a_printable_path(source: Source, inbox: Path) -> None:
    (Path(os.fsdecode(os.fsencode(inbox) + b"/caf\xe9.csv"))).write_text("x")
    (found,) = source.list_files("*")
    assert isinstance(found, Skipped)
    assert found.visible
    found.path.encode("utf-8")


def test_a_time_of_change_beyond_all_calendars_does_not_stop_the_listing(source: Source, inbox: Path) -> None:
    (inbox / "a.csv").write_text("x")
    os.utime(inbox / "a.csv", (0, -(2**31)))
    (found,) = source.list_files("*")
    assert isinstance(found, SourceFile)
    assert found.modified_at is not None
    assert found.modified_at.year == 1901


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../../../../etc/passwd", "file:///etc/passwd", "a\x00.csv", "\ud800.csv", "s3://b/k"]
)
def test_untrusted_paths_do_not_leave_the_roots(source: Source, path: str) -> None:
    with pytest.raises(ForbiddenPathError), source.open(path):
        pass
    with pytest.raises(ForbiddenPathError):
        source.stat(path)


def test_a_refusal_names_the_setting_that_would_allow_it(inbox: Path, settings: PollingSettings) -> None:
    for kind, setting in (("local", "INGEST_LOCAL_ROOTS"), ("dummy", "INGEST_DUMMY_ROOT")):
        opened = open_source({"source_type": kind, "path": "/etc"}, context_of(settings))
        with pytest.raises(ForbiddenPathError, match=setting):
            list(opened.list_files("*"))
    assert inbox.exists()


def test_a_folder_whose_name_begins_like_a_root_is_not_inside_it(source: Source, tmp_path: Path) -> None:
    (tmp_path / "inbox-private").mkdir()
    (tmp_path / "inbox-private" / "a.csv").write_text("x")
    with pytest.raises(ForbiddenPathError):
        source.stat(str(tmp_path / "inbox-private" / "a.csv"))


def test_a_symlink_out_of_the_root_is_refused_and_one_within_is_followed(
    source: Source, inbox: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.csv").write_text("secret")
    (inbox / "real.csv").write_text("x")
    (inbox / "out.csv").symlink_to(tmp_path / "elsewhere" / "secret.csv")
    (inbox / "within.csv").symlink_to("real.csv")
    (inbox / "folder-out").symlink_to(tmp_path / "elsewhere")
    (inbox / "folder-within").symlink_to(inbox)
    assert taken(source) == ["real.csv", "within.csv"]
    (inbox / "nowhere.csv").symlink_to("none")
    found = skipped(source)
    assert "outside the folders" in found["out.csv"].reason
    # Reasons are counted: none has the name of a file.
    assert [name for name, skip in found.items() if name in skip.reason] == []
    for path in ("out.csv", "folder-out/secret.csv"):
        with pytest.raises(ForbiddenPathError, match="outside the folders"), source.open(str(inbox / path)):
            pass
    with source.open(str(inbox / "folder-within" / "real.csv")) as file:
        assert file.read() == b"x"


def test_linked_folders_are_not_followed_so_that_a_loop_ends(source: Source, inbox: Path) -> None:
    (inbox / "loop").symlink_to(inbox)
    (inbox / "a.csv").write_text("x")
    (inbox / "self.csv").symlink_to(inbox / "self.csv")
    assert taken(source, "**/*.csv") == ["a.csv"]
    assert set(skipped(source, "**/*")) == {"loop", "self.csv"}


def test_a_link_swapped_between_check_and_open_does_not_lead_out(
    source: Source, inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The swap is put exactly between the two, where a race would have to hit."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.csv").write_text("secret")
    (inbox / "sub").mkdir()
    (inbox / "sub" / "a.csv").write_text("x")
    real_lstat = os.lstat

    def swap_then_lstat(path: str) -> os.stat_result:
        monkeypatch.undo()
        result = real_lstat(path)
        (inbox / "sub").rename(inbox / "was-sub")
        (inbox / "sub").symlink_to(tmp_path / "outside")
        return result

    monkeypatch.setattr(os, "lstat", swap_then_lstat)
    with pytest.raises(ForbiddenPathError), source.open(str(inbox / "sub" / "a.csv")):
        pass


def test_folders_pipes_sockets_and_devices_are_refused_at_once(source: Source, inbox: Path) -> None:
    (inbox / "folder.csv").mkdir()
    os.mkfifo(inbox / "pipe.csv")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inbox / "socket.csv"))
        for name in ("folder.csv", "pipe.csv", "socket.csv"):
            with pytest.raises(ForbiddenPathError, match="not a regular file"), source.open(str(inbox / name)):
                pass
    assert taken(source) == []


def test_a_pipe_that_replaced_a_file_does_not_block(
    source: Source, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(inbox / "pipe.csv")
    (inbox / "plain").write_text("x")
    plain = os.lstat(inbox / "plain")
    monkeypatch.setattr(os, "lstat", lambda _path: plain)
    with pytest.raises(ForbiddenPathError, match="not a regular file"), source.open(str(inbox / "pipe.csv")):
        pass


def test_a_missing_folder_and_a_missing_file_are_said_to_be_missing(
    source: Source, inbox: Path, settings: PollingSettings
) -> None:
    with pytest.raises(SourceNotFoundError):
        source.stat(str(inbox / "none.csv"))
    with pytest.raises(SourceNotFoundError):
        list(open_source({"source_type": "local", "path": str(inbox / "none")}, context_of(settings)).list_files("*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused_with_what_to_check(source: Source, inbox: Path) -> None:
    (inbox / "a.csv").write_text("x")
    (inbox / "a.csv").chmod(0)
    with pytest.raises(ForbiddenPathError, match="owner and mode"), source.open(str(inbox / "a.csv")):
        pass


def test_a_file_system_that_fails_while_reading_is_a_transient_failure_of_the_source(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    os.close(descriptor)
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, True)
    file = io.BufferedReader(_LocalFile(read_end, "a.csv"))
    os.close(read_end)
    os.close(write_end)
    with pytest.raises(SourceUnreachableError, match="Bad file descriptor"):
        file.read()


def test_a_folder_that_cannot_be_listed_now_is_a_failure_once_all_others_are_listed(
    source: Source, inbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "broken", "gone", "z"):
        (inbox / name).mkdir()
        (inbox / name / f"{name}.csv").write_text("x")
    real = os.scandir

    def scandir(folder: int) -> object:
        name = Path(f"/proc/self/fd/{folder}").readlink().name
        if name in {"broken", "gone"}:
            number = errno.ESTALE if name == "broken" else errno.ENOENT
            raise OSError(number, os.strerror(number))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    found = list[str]()
    with pytest.raises(SourceUnreachableError, match="Stale file handle"):
        found.extend(Path(entry.path).name for entry in source.list_files("**/*.csv"))
    assert sorted(found) == ["a.csv", "broken", "gone", "z.csv"]


@pytest.mark.parametrize("pattern", ["../*.csv", "a/../../*.csv", "/etc/*", "a\x00", "x" * 1001])
def test_a_pattern_cannot_leave_the_source(source: Source, pattern: str) -> None:
    with pytest.raises(PermanentError, match="file_pattern"):
        list(source.list_files(pattern))


def test_a_pattern_made_to_be_slow_is_answered_quickly(source: Source, inbox: Path) -> None:
    folder = inbox.joinpath(*["a"] * 40)
    folder.mkdir(parents=True)
    (folder / ("a" * 100 + ".csv")).write_text("x")
    started = time.thread_time()
    assert taken(source, "**/a/" * 30 + "*a*a*a*a*a*a*a*a*b") == []
    assert time.thread_time() - started < 2


def test_ten_thousand_files_are_listed_one_by_one_in_bounded_memory(source: Source, inbox: Path) -> None:
    for number in range(1, 10_001):
        (inbox / f"{number}.csv").touch()
    tracemalloc.start()
    try:
        count = sum(isinstance(found, SourceFile) for found in source.list_files("*.csv"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 10_000
    assert peak < 500_000


def test_relative_paths_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dummy_data").mkdir()
    (tmp_path / "dummy_data" / "a.csv").write_text("x")
    monkeypatch.chdir(tmp_path)
    source = open_source(
        {"source_type": "local", "path": "./dummy_data"}, context_of(PollingSettings.model_validate({}))
    )
    (found,) = source.list_files("*.csv")
    assert found.path == "./dummy_data/a.csv"
    assert source.location == f"local:{tmp_path}/dummy_data"


@pytest.mark.parametrize("path", ["./dummy_data/a.csv", "dummy_data/a.csv", "a.csv", "./a.csv"])
@pytest.mark.parametrize("here", [".", "elsewhere"])
def test_a_dummy_path_works_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, here: str
) -> None:
    (tmp_path / "dummy_data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "dummy_data" / "a.csv").write_text("x")
    monkeypatch.chdir(tmp_path / here)
    settings = PollingSettings.model_validate({"dummy_root": tmp_path / "dummy_data"})
    assert open_source({"source_type": "dummy"}, context_of(settings)).stat(path).size_bytes == 1


def test_dummy_and_local_give_the_same_file_the_same_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dummy_data").mkdir()
    (tmp_path / "dummy_data" / "a.csv").write_text("x")
    (tmp_path / "link").symlink_to("dummy_data")
    monkeypatch.chdir(tmp_path)
    settings = PollingSettings.model_validate({})
    locations = {
        open_source({"source_type": "dummy"}, context_of(settings)).canonical_location("./dummy_data/a.csv"),
        open_source({"source_type": "dummy"}, context_of(settings)).canonical_location("a.csv"),
        open_source({"source_type": "local"}, context_of(settings)).canonical_location(f"{tmp_path}/dummy_data/a.csv"),
        open_source({"source_type": "local"}, context_of(settings)).canonical_location("link/../dummy_data/./a.csv"),
        open_source({"source_type": "local"}, context_of(settings)).canonical_location("link/a.csv"),
    }
    assert locations == {f"local:{tmp_path}/dummy_data/a.csv"}


def test_a_path_that_no_file_can_have_still_has_a_location(settings: PollingSettings) -> None:
    assert open_source({"source_type": "local"}, context_of(settings)).canonical_location("a\x00b").startswith("local:")


def test_an_unknown_source_type_is_refused_with_the_known_ones(settings: PollingSettings) -> None:
    with pytest.raises(PermanentError, match=r"'s33'.*dummy, ftp, http, local, onelake, s3, sftp"):
        open_source({"source_type": "s33"}, context_of(settings))


@pytest.fixture
def installed_webdav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package with an entry point, as pip would lay it out."""
    info = tmp_path / "site" / "webdav_source-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: webdav-source\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ingest_project.sources]\nwebdav = webdav_source:open_webdav\n")
    (tmp_path / "site" / "webdav_source.py").write_text(
        "from ingest_project.sources.local import open_local\n"
        "def open_webdav(source_config, access):\n"
        "    return open_local({'path': ''}, access)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    plugins.installed.cache_clear()
    yield
    plugins.installed.cache_clear()


@pytest.mark.usefixtures("installed_webdav")
def test_another_package_can_bring_a_kind_of_source(settings: PollingSettings) -> None:
    assert [*SOURCES] == ["dummy", "ftp", "http", "local", "onelake", "s3", "sftp", "webdav"]
    assert open_source({"source_type": "webdav"}, context_of(settings)).location.startswith("local:")


def test_an_open_file_is_a_regular_file_and_closed_afterwards(source: Source, inbox: Path) -> None:
    (inbox / "a.csv").write_text("x")
    with source.open(str(inbox / "a.csv")) as file:
        descriptor = file.fileno()
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize(
    "path", ["/x" * 1_000_000, "../" * 1_000_000, "a/" * 2_000, "x" * 5_000, "\u00fc/" * 200 + "x" * 4_000, "/" * 300]
)
def test_a_path_of_a_million_parts_is_refused_at_once(source: Source, path: str) -> None:
    begun_at = time.thread_time()
    for refused in (source.require_allowed, source.stat):
        with pytest.raises(ForbiddenPathError, match="at most") as caught:
            refused(path)
        assert len(str(caught.value)) < 1_000
    with pytest.raises(ForbiddenPathError), source.open(path):
        pass
    with pytest.raises(ForbiddenPathError):
        list(replace(source, path=path).list_files("*"))  # type: ignore[type-var]
    assert len(source.canonical_location(path)) < 10_000
    assert time.thread_time() - begun_at < 5


def test_a_deep_path_within_the_bound_is_read(source: Source, inbox: Path) -> None:
    deep = inbox.joinpath(*["d"] * 100)
    deep.mkdir(parents=True)
    (deep / "a.csv").write_text("x")
    assert source.stat(str(deep / "a.csv")).size_bytes == 1


def test_a_hard_link_does_not_lead_out_of_the_folders_unless_a_setting_allows_it(
    source: Source, inbox: Path, tmp_path: Path, settings: PollingSettings
) -> None:
    (tmp_path / "secret.csv").write_text("secret")
    (inbox / "b.csv").write_text("b")
    os.link(tmp_path / "secret.csv", inbox / "a.csv")
    (inbox / "link.csv").symlink_to(inbox / "a.csv")
    for name in ("a.csv", "link.csv"):
        with pytest.raises(ForbiddenPathError, match="INGEST_ALLOW_HARD_LINKS"):
            source.stat(str(inbox / name))
        with pytest.raises(ForbiddenPathError, match="hard links"), source.open(str(inbox / name)):
            pass
    assert taken(source) == ["b.csv"]
    assert {name: "INGEST_ALLOW_HARD_LINKS" in skip.reason for name, skip in skipped(source).items()} == {
        "a.csv": True,
        "link.csv": True,
    }
    allowing = settings.model_copy(update={"allow_hard_links": True})
    opened = open_source({"source_type": "local", "path": str(inbox)}, context_of(allowing))
    assert taken(opened) == ["a.csv", "b.csv", "link.csv"]
    (tmp_path / "secret.csv").unlink()
    assert source.stat(str(inbox / "a.csv")).size_bytes == 6
