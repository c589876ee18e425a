"""SFTP sources against a real server: host keys, logins, large folders, and connections that break."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SettingsError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
)
from ingest_project.core.settings import Credential, PollingSettings
from ingest_project.sources import SourceFile, sftp_protocol
from ingest_project.sources.file_server import FileServerSource
from ingest_project.sources.sftp import open_sftp
from ingest_project_tests.services.sftp_server import PASSWORD, USER, SftpServer
from ingest_project_tests.sources.served import OPENED, context_of, skipped, taken

CHANGED = datetime(2023, 11, 14, 22, 13, 35, tzinfo=UTC)
CONTENT = os.urandom(9_000_001)
QUICK = PollingSettings(source_timeout_seconds=5.0)


def source(
    server: SftpServer,
    path: str = "/",
    servers: PollingSettings = QUICK,
    config: Mapping[str, object] | None = None,
    **stored: object,
) -> FileServerSource:
    fields = {
        "username": USER,
        "password": PASSWORD,
        "hosts": ["127.0.0.1"],
        "host_key_fingerprints": [server.fingerprint],
        **stored,
    }
    job = {"host": "127.0.0.1", "port": server.port, "path": path, "credentials": "store", **(config or {})}
    opened = open_sftp(job, context_of(servers, {"store": Credential.model_validate(fields)}))
    OPENED.append(opened)
    return opened


def test_files_of_all_levels_are_listed_described_and_read_over_one_connection(folder: Path) -> None:
    for name in ("a.csv", "b b.XLSX", "grüße €.csv", "sub/deep/c.csv", "notes.pdf", ".hidden.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        os.utime(folder / name, (CHANGED.timestamp(), CHANGED.timestamp()))
    with SftpServer(folder) as server:
        opened = source(server)
        files = taken(opened, "**/*")
        assert set(files) == {"/a.csv", "/b b.XLSX", "/grüße €.csv", "/sub/deep/c.csv"}
        for path, file in files.items():
            assert file.modified_at == CHANGED
            assert opened.stat(path) == file
            with opened.open(path) as stream:
                assert stream.read().decode() == path.removeprefix("/")
        assert skipped(opened)["/notes.pdf"].visible
        assert not skipped(opened)["/.hidden.csv"].visible
        assert server.logins == 1
        assert opened.canonical_location("a b.csv") == f"sftp://collector@127.0.0.1:{server.port}/a%20b.csv"


def test_links_to_files_are_followed_links_to_folders_are_not(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.csv").write_text("12345")
    (folder / "sub" / "up").symlink_to("..")
    (folder / "to_file.csv").symlink_to("sub/a.csv")
    (folder / "to_folder.csv").symlink_to("sub")
    (folder / "to_nothing.csv").symlink_to("none")
    with SftpServer(folder) as server:
        opened = source(server)
        files = taken(opened, "**/*.csv")
        assert set(files) == {"/sub/a.csv", "/to_file.csv"}
        assert files["/to_file.csv"].size_bytes == 5
        assert "links are not followed" in skipped(opened)["/to_folder.csv"].reason
        assert "leads nowhere" in skipped(opened)["/to_nothing.csv"].reason


def test_a_missing_path_and_a_folder_as_a_file_have_their_own_errors(folder: Path) -> None:
    (folder / "sub").mkdir()
    with SftpServer(folder) as server:
        with pytest.raises(SourceNotFoundError, match=r"sftp://collector@127\.0\.0\.1:\d+/none does not exist"):
            list(source(server, "/none").list_files("*"))
        with pytest.raises(SourceNotFoundError):
            source(server).stat("/none.csv")
        with pytest.raises(ForbiddenPathError, match="not a regular file"):
            source(server).stat("/sub")
        assert taken(source(server, "/sub")) == {}
        assert server.logins == 1


def test_an_unknown_host_key_is_refused_with_how_to_add_it(folder: Path, tmp_path: Path) -> None:
    (folder / "a.csv").write_text("x")
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text("")
    servers = PollingSettings(source_timeout_seconds=5.0, known_hosts_file=known_hosts)
    with SftpServer(folder) as server:
        opened = source(server, servers=servers, host_key_fingerprints=[])
        with pytest.raises(SourceAccessDeniedError, match="host key is not known") as refusal:
            opened.stat("/a.csv")
        assert server.fingerprint in str(refusal.value)
        line = str(refusal.value).partition("INGEST_SFTP_KNOWN_HOSTS: ")[2].rstrip(".")
        assert server.logins == 0
        known_hosts.write_text(line + "\n")
        assert opened.stat("/a.csv").size_bytes == 1


def test_a_server_with_several_keys_shows_the_one_that_is_known(folder: Path, tmp_path: Path) -> None:
    (folder / "a.csv").write_text("x")
    known_hosts = tmp_path / "known_hosts"
    with SftpServer(folder, host_key=asyncssh.generate_private_key("ecdsa-sha2-nistp256")) as server:
        known_hosts.write_text(f"# ours\nother.example ssh-ed25519 AAAA\n{server.known_hosts_line}")
        servers = PollingSettings(source_timeout_seconds=5.0, known_hosts_file=known_hosts)
        assert source(server, servers=servers, host_key_fingerprints=[]).stat("/a.csv").size_bytes == 1


def test_a_changed_host_key_is_refused_before_anything_is_sent(folder: Path, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    with SftpServer(folder) as server:
        known_hosts.write_text(server.known_hosts_line)
        port, fingerprint = server.port, server.fingerprint
    with SftpServer(folder, port=port) as impostor:
        pinned = source(impostor, host_key_fingerprints=[fingerprint])
        stored = source(
            impostor,
            servers=PollingSettings(known_hosts_file=known_hosts, source_timeout_seconds=5),
            host_key_fingerprints=[],
        )
        for opened in (pinned, stored):
            with pytest.raises(SourceAccessDeniedError, match="Nothing was sent") as refusal:
                opened.stat("/a.csv")
            assert impostor.fingerprint in str(refusal.value)
        assert impostor.logins == 0


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256"])
@pytest.mark.parametrize("passphrase", [None, "open sesame"])
def test_a_key_lets_us_in_with_and_without_a_passphrase(
    folder: Path, tmp_path: Path, kind: str, passphrase: str | None
) -> None:
    (folder / "a.csv").write_text("x")
    key = asyncssh.generate_private_key(kind)
    file = tmp_path / "key"
    key.write_private_key(file, passphrase=passphrase, rounds=51)
    with SftpServer(folder, client_key=key.export_public_key().decode()) as server:
        stored: dict[str, Any] = {"password": None, "private_key_file": file, "private_key_passphrase": passphrase}
        assert source(server, **stored).stat("/a.csv").size_bytes == 1
        if passphrase:
            with pytest.raises(SettingsError, match="private_key_passphrase") as refusal:
                source(server, **{**stored, "private_key_passphrase": "wrong secret"}).stat("/a.csv")
            assert "wrong secret" not in str(refusal.value)


def test_a_wrong_password_or_key_is_permanent_and_is_not_repeated_in_the_message(folder: Path, tmp_path: Path) -> None:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "key")
    with SftpServer(folder) as server:
        wrong: list[dict[str, Any]] = [
            {"password": "wrong horse"},
            {"password": None, "private_key_file": tmp_path / "key"},
        ]
        for stored in wrong:
            with pytest.raises(SourceAccessDeniedError, match="refuses the key or the password") as refusal:
                source(server, **stored).stat("/a.csv")
            assert "wrong horse" not in str(refusal.value)
        with pytest.raises(SettingsError, match="cannot be used"):
            source(server, password=None, private_key_file=tmp_path / "none").stat("/a.csv")
        assert server.logins == 0


def test_a_job_needs_credentials_that_are_for_this_host(folder: Path) -> None:
    with SftpServer(folder) as server:
        with pytest.raises(PermanentError, match="needs stored 'credentials'"):
            source(server, config={"credentials": None})
        with pytest.raises(ForbiddenPathError, match="not for this host"):
            source(server, hosts=["files.example.com"]).stat("/a.csv")
        with pytest.raises(SettingsError, match="SHA256:"):
            source(server, host_key_fingerprints=["MD5:00"])
        assert not server.connections


def test_names_that_are_not_utf8_are_readable_and_request_the_same_bytes(folder: Path) -> None:
    (folder / "Müller.csv").write_text("old")
    with SftpServer(folder, latin1=True) as server:
        opened = source(server)
        (file,) = taken(opened).values()
        assert (file.name, file.path) == ("Müller.csv", "bytes:/M%FCller.csv")
        with opened.open(file.path) as stream:
            assert stream.read() == b"old"
        assert list(taken(source(server, config={"encoding": "latin-1"}))) == ["/Müller.csv"]


def test_a_transfer_that_is_cut_goes_on_where_it_stopped(folder: Path) -> None:
    (folder / "a.csv").write_bytes(CONTENT)
    with SftpServer(folder, cut_after=4_000_000, cuts=1) as server:
        with source(server).open("/a.csv") as stream:
            assert stream.read() == CONTENT
        assert server.logins == 2


def test_a_transfer_is_aborted_if_the_file_changed_before_it_resumes(folder: Path) -> None:
    (folder / "a.csv").write_bytes(CONTENT)
    with SftpServer(folder, cut_after=4_000_000, cuts=1) as server, source(server).open("/a.csv") as stream:
        stream.read(10)
        (folder / "new").write_bytes(CONTENT + b"more")
        (folder / "new").rename(folder / "a.csv")
        with pytest.raises(SourceChangedError, match="another version"):
            stream.read()


def test_a_server_that_dies_in_the_middle_is_unreachable_and_found_again_later(folder: Path) -> None:
    (folder / "a.csv").write_bytes(CONTENT)
    server = SftpServer(folder)
    opened = source(server)
    with opened.open("/a.csv") as stream:
        stream.read(10)
        server.close()
        with pytest.raises(SourceUnreachableError):
            stream.read()
    with pytest.raises(SourceUnreachableError, match="refused"):
        opened.stat("/a.csv")
    with SftpServer(folder, port=server.port, host_key=server.host_key):
        assert opened.stat("/a.csv").size_bytes == len(CONTENT)


def test_a_server_that_dies_during_requests_is_unreachable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_protocol, "REQUEST_BYTES", 64)  # a window of so many requests takes a while to send
    (folder / "a.csv").write_bytes(CONTENT)
    server = SftpServer(folder)
    with source(server).open("/a.csv") as stream:
        stream.read(10)
        server.close()
        with pytest.raises(SourceUnreachableError):
            stream.read()


def test_a_kept_connection_that_the_server_has_closed_is_replaced_unnoticed(folder: Path) -> None:
    (folder / "a.csv").write_text("x")
    with SftpServer(folder) as server:
        opened = source(server)
        assert opened.stat("/a.csv").size_bytes == 1
        for connection in server.connections:
            server._loop.call_soon_threadsafe(connection.abort)
        assert list(taken(opened)) == ["/a.csv"]
        assert server.logins == 2


def test_thousands_of_entries_are_each_listed_once_as_they_come(folder: Path) -> None:
    names = {f"/reading_{number}.csv" for number in range(4_000)}
    for name in names:
        (folder / name[1:]).touch()
    with SftpServer(folder) as server:
        entries = source(server).list_files("*")
        first = next(entries)
        assert isinstance(first, SourceFile)
        others = [entry.path for entry in entries]
        assert len(others) == len(names) - 1
        assert {first.path, *others} == names


def test_reading_a_file_takes_memory_for_a_window_of_it_however_slowly_it_is_used(folder: Path) -> None:
    with (folder / "a.csv").open("wb") as file:
        file.truncate(64 * 1024**2)
    with SftpServer(folder) as server, source(server).open("/a.csv") as stream:
        stream.read(1)
        tracemalloc.start()
        for _ in range(8):
            assert len(stream.read(1024**2)) == 1024**2
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 24 * 1024**2
