"""FTP sources against real servers: with and without MLSD, behind NAT, with TLS, in latin-1, and broken off."""

from __future__ import annotations

import os
import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ingest_project.core.errors import (
    ForbiddenPathError,
    PermanentError,
    SourceAccessDeniedError,
    SourceChangedError,
    SourceNotFoundError,
    SourceUnreachableError,
    UnknownCredentialsError,
)
from ingest_project.core.settings import Credential, PollingSettings
from ingest_project.sources import SourceFile
from ingest_project.sources.file_server import FileServerSource
from ingest_project.sources.ftp import map_error, open_ftp
from ingest_project.sources.registry import open_source
from ingest_project_tests.services.ftp_server import PASSWORD, USER, FtpServer
from ingest_project_tests.services.ftps_server import CHANGED_AT, Certificates, FtpsServer, made_certificates
from ingest_project_tests.sources.served import OPENED, context_of, skipped, taken

WITHOUT_MLSD = frozenset({"MLSD", "MLST"})
LIST_ONLY = frozenset({"MLSD", "MLST", "MDTM", "SIZE", "EPSV", "FEAT"})
CHANGED = datetime(2023, 11, 14, 22, 13, 35, tzinfo=UTC)
CONTENT = os.urandom(3_000_000)
QUICK = PollingSettings(source_timeout_seconds=5.0)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return made_certificates(tmp_path_factory.mktemp("certificates"))


def credential(**more: Any) -> Credential:  # noqa: ANN401 - any field of it
    return Credential.model_validate(
        {"username": USER, "password": PASSWORD, "hosts": ["127.0.0.1"], "plain_http": True, **more}
    )


def source(
    server: FtpServer | FtpsServer,
    path: str = "/",
    servers: PollingSettings = QUICK,
    stored: Credential | None = None,
    **config: object,
) -> FileServerSource:
    config = {"host": "127.0.0.1", "port": server.port, "path": path, "credentials": "store", "tls": "none", **config}
    opened = open_ftp(config, context_of(servers, {"store": stored or credential()}))
    OPENED.append(opened)
    return opened


@pytest.mark.parametrize("without", [frozenset(), WITHOUT_MLSD, LIST_ONLY], ids=["mlsd", "list+mdtm", "list"])
def test_files_of_all_levels_are_listed_described_and_read(folder: Path, without: frozenset[str]) -> None:
    for name in ("a.csv", "b b.XLSX", "grüße €.csv", "sub/deep/c.csv", "notes.pdf", ".hidden.csv"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        os.utime(folder / name, (CHANGED.timestamp(), CHANGED.timestamp()))
    with FtpServer(folder, without=without) as server:
        opened = source(server)
        files = taken(opened, "**/*")
        assert set(files) == {"/a.csv", "/b b.XLSX", "/grüße €.csv", "/sub/deep/c.csv"}
        # Of older files a listing has the day only.
        changed = datetime(2023, 11, 14, tzinfo=UTC) if without is LIST_ONLY else CHANGED
        for path, file in files.items():
            assert file.modified_at == changed
            assert opened.stat(path) == file
            with opened.open(path) as stream:
                assert stream.read().decode() == path.removeprefix("/")
        assert skipped(opened)["/notes.pdf"].visible
        assert not skipped(opened)["/.hidden.csv"].visible
        assert set(taken(opened)) == {"/a.csv", "/b b.XLSX", "/grüße €.csv"}


def test_a_recent_time_of_a_listing_is_in_minutes_and_stat_says_the_same(folder: Path) -> None:
    (folder / "a.csv").write_text("x")
    changed = datetime.now(UTC).timestamp() - 3_600
    os.utime(folder / "a.csv", (changed, changed))
    with FtpServer(folder, without=LIST_ONLY) as server:
        opened = source(server)
        (file,) = taken(opened).values()
        assert file.modified_at == datetime.fromtimestamp(changed // 60 * 60, UTC)
        assert opened.stat("/a.csv") == file


def test_the_seconds_are_requested_where_the_server_has_them(folder: Path) -> None:
    (folder / "a.csv").write_text("x")
    os.utime(folder / "a.csv", (CHANGED.timestamp(), CHANGED.timestamp()))
    with FtpServer(folder, without=WITHOUT_MLSD) as server:
        assert taken(source(server))["/a.csv"].modified_at == CHANGED
        assert server.commands["MDTM"] == 1


def test_a_missing_folder_a_missing_file_and_a_folder_as_file_are_distinguished(folder: Path) -> None:
    (folder / "sub").mkdir()
    with FtpServer(folder) as server:
        with pytest.raises(SourceNotFoundError, match=r"ftp://collector@127\.0\.0\.1:\d+/none does not exist"):
            list(source(server, "/none").list_files("*"))
        with pytest.raises(SourceNotFoundError), source(server).open("/none.csv"):
            pass
        with pytest.raises(ForbiddenPathError, match="not a regular file"):
            source(server).stat("/sub")
        assert taken(source(server, "/sub")) == {}
    with (
        FtpServer(folder, without=WITHOUT_MLSD) as server,
        pytest.raises(ForbiddenPathError, match="not a regular file"),
    ):
        source(server).stat("/sub")


def test_a_wrong_password_is_permanent_and_is_not_repeated_in_the_message(folder: Path) -> None:
    with FtpServer(folder) as server:
        opened = source(server, stored=credential(password=PASSWORD.replace("correct", "wrong")))
        with pytest.raises(SourceAccessDeniedError, match="refuses the user or the password") as refusal:
            list(opened.list_files("*"))
        assert "wrong horse" not in str(refusal.value)


def test_a_server_that_is_away_or_full_may_be_back_later(folder: Path) -> None:
    with FtpServer(folder) as server:
        pass
    with pytest.raises(SourceUnreachableError, match="refused"):
        list(source(server).list_files("*"))
    # The socket that listens counts as one.
    with FtpServer(folder, max_connections=2) as full, source(full).pool.lease(source(full).login):
        another = source(full, servers=PollingSettings(source_timeout_seconds=4))
        with pytest.raises(SourceUnreachableError, match="421"):
            another.stat("/a.csv")


def test_without_credentials_anonymous_is_let_in_to_a_host_that_is_allowed(folder: Path) -> None:
    (folder / "a.csv").write_text("x")
    with FtpServer(folder) as server:
        allowed = PollingSettings(allowed_source_hosts=["127.0.0.1"])
        assert list(taken(source(server, servers=allowed, credentials=None))) == ["/a.csv"]


def test_data_connections_go_to_the_server_whatever_address_it_names(folder: Path) -> None:
    (folder / "a.csv").write_text("x")
    with FtpServer(folder, without=frozenset({"EPSV"}), named_address="10.99.99.99") as server:
        assert list(taken(source(server))) == ["/a.csv"]
        assert server.commands["PASV"] == 1


def test_the_extended_passive_mode_comes_first(folder: Path) -> None:
    with FtpServer(folder, named_address="10.99.99.99") as server:
        taken(source(server))
        assert (server.commands["EPSV"], server.commands["PASV"]) == (1, 0)


def test_names_that_are_not_utf8_are_readable_and_request_the_same_bytes(folder: Path) -> None:
    (folder / "Müller.csv").write_text("old")
    with FtpServer(folder, encoding="latin-1") as server:
        opened = source(server)
        (file,) = taken(opened).values()
        assert (file.name, file.path) == ("Müller.csv", "bytes:/M%FCller.csv")
        assert opened.stat(file.path) == file
        with opened.open(file.path) as stream:
            assert stream.read() == b"old"
        assert opened.canonical_location(file.path).endswith("/M%FCller.csv")


def test_a_server_whose_encoding_is_known_has_plain_paths(folder: Path) -> None:
    (folder / "Prüfung").mkdir()
    (folder / "Prüfung" / "Müller.csv").write_text("x")
    with FtpServer(folder, encoding="latin-1") as server:
        opened = source(server, "/Prüfung", encoding="latin-1")
        assert list(taken(opened)) == ["/Prüfung/Müller.csv"]
        assert opened.stat("/Prüfung/Müller.csv").size_bytes == 1


@pytest.mark.parametrize("cut_control", [True, False], ids=["connection", "transfer"])
def test_a_transfer_that_is_cut_goes_on_where_it_stopped(folder: Path, *, cut_control: bool) -> None:
    (folder / "a.csv").write_bytes(CONTENT)
    with FtpServer(folder, cut_after=1_000_000, cut_control=cut_control, cuts=2) as server:
        with source(server).open("/a.csv") as stream:
            assert stream.read() == CONTENT
        assert len(server.restarts) == 2
        assert min(server.restarts) > 0


def test_a_server_that_cannot_resume_is_read_again_without_a_byte_twice(folder: Path) -> None:
    (folder / "a.csv").write_bytes(CONTENT)
    with FtpServer(folder, without=frozenset({"REST"}), cut_after=1_000_000, cuts=1) as server:
        with source(server).open("/a.csv") as stream:
            assert stream.read() == CONTENT
        assert server.commands["RETR"] == 2


def test_a_transfer_is_aborted_if_the_file_changed_before_it_resumes(folder: Path) -> None:
    (folder / "a.csv").write_bytes(CONTENT)
    with FtpServer(folder, cut_after=1_000_000, cuts=1) as server, source(server).open("/a.csv") as stream:
        stream.read(10)
        (folder / "new").write_bytes(CONTENT[::-1] + b"more")
        (folder / "new").rename(folder / "a.csv")
        with pytest.raises(SourceChangedError, match="another version"):
            stream.read()


def test_a_server_that_dies_in_the_middle_is_unreachable(folder: Path) -> None:
    (folder / "a.csv").write_bytes(os.urandom(30_000_000))
    server = FtpServer(folder)
    with source(server).open("/a.csv") as stream:
        stream.read(10)
        server.close()
        with pytest.raises(SourceUnreachableError):
            stream.read()


def test_a_batch_logs_in_once_and_threads_share_what_there_is(folder: Path) -> None:
    for number in range(20):
        (folder / f"{number}.csv").write_text(str(number))
    with FtpServer(folder) as server:
        opened = source(server)
        for number in range(20):
            with opened.open(f"/{number}.csv") as stream:
                assert stream.read().decode() == str(number)
        assert server.commands["PASS"] == 1
        threads = [threading.Thread(target=opened.stat, args=(f"/{number}.csv",)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.commands["PASS"] <= QUICK.source_connections_per_host


def test_a_kept_connection_that_the_server_has_closed_is_replaced_unnoticed(folder: Path) -> None:
    (folder / "a.csv").write_text("x")
    with FtpServer(folder) as server:
        opened = source(server)
        opened.stat("/a.csv")
    with FtpServer(folder, port=server.port):
        assert opened.stat("/a.csv").size_bytes == 1
        assert list(taken(opened)) == ["/a.csv"]


def test_folders_that_lead_back_to_themselves_are_met_once(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.csv").write_text("x")
    (folder / "sub" / "up").symlink_to("..")
    with FtpServer(folder) as server:
        opened = source(server)
        found = skipped(opened, "**/*.csv")
        assert len(taken(opened, "**/*.csv")) <= 2
        assert any("leads back" in skip.reason for skip in found.values())
    with FtpServer(folder, without=WITHOUT_MLSD) as server:
        assert list(taken(source(server), "**/*.csv")) == ["/sub/a.csv"]


@pytest.mark.parametrize("without", [frozenset(), LIST_ONLY], ids=["mlsd", "list"])
def test_ten_thousand_files_are_listed(folder: Path, without: frozenset[str]) -> None:
    for number in range(10_000):
        (folder / f"reading_{number}.csv").touch()
    with FtpServer(folder, without=without) as server:
        assert len(taken(source(server))) == 10_000
        assert server.commands["LIST"] + server.commands["MLSD"] <= 2


@pytest.mark.parametrize("implicit", [False, True], ids=["explicit", "implicit"])
def test_tls_protects_login_and_data_and_resumes_the_session(certificates: Certificates, *, implicit: bool) -> None:
    servers = PollingSettings(source_timeout_seconds=5, source_ca_file=certificates.authority)
    with FtpsServer({"a.csv": CONTENT}, certificates.server, implicit=implicit) as server:
        opened = source(server, servers=servers, tls="implicit" if implicit else "explicit")
        assert taken(opened)["/a.csv"].modified_at == CHANGED_AT
        with opened.open("/a.csv") as stream:
            assert stream.read() == CONTENT
        assert server.resumed == [True, True]
        opened.pool.close_idle()


def test_a_certificate_that_nobody_vouches_for_is_refused_before_the_login(certificates: Certificates) -> None:
    with FtpsServer({}, certificates.server) as server:
        opened = source(server, tls="explicit")
        with pytest.raises(SourceAccessDeniedError, match=r"certificate is not trusted.*INGEST_SOURCE_CA_FILE"):
            list(opened.list_files("*"))


@pytest.mark.parametrize(
    ("code", "expected"), [(10, SourceUnreachableError), (9, SourceUnreachableError), (62, SourceAccessDeniedError)]
)
def test_a_certificate_that_has_expired_may_be_renewed(code: int, expected: type[Exception]) -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed: certificate has expired")
    error.verify_code, error.verify_message = code, "certificate has expired"
    found = map_error(error, "ftp://host:990")
    assert type(found) is expected
    assert "certificate has expired" in str(found)


def test_a_password_is_not_sent_in_the_clear_unless_its_credentials_say_so(folder: Path) -> None:
    with FtpServer(folder) as server:
        with pytest.raises(SourceAccessDeniedError, match="does not offer TLS"):
            list(source(server, tls="explicit").list_files("*"))
        with pytest.raises(PermanentError, match="plain_http"):
            source(server, stored=credential(plain_http=False))
        assert server.commands["USER"] == 0


def test_a_listing_in_the_style_of_ms_dos_is_understood() -> None:
    with FtpsServer({"a.csv": b"12345", "b b.csv": b""}, dos=True) as server:
        opened = source(server)
        changed = datetime(2026, 1, 15, 10, 30, tzinfo=UTC)
        assert taken(opened) == {
            "/a.csv": SourceFile("/a.csv", "a.csv", 5, changed),
            "/b b.csv": SourceFile("/b b.csv", "b b.csv", 0, changed),
        }
        assert opened.stat("/a.csv").size_bytes == 5
        berlin = source(server, time_zone="Europe/Berlin").stat("/a.csv").modified_at
        assert berlin == datetime(2026, 1, 15, 9, 30, tzinfo=UTC)


def test_unlisted_hosts_are_not_contacted(folder: Path) -> None:
    with FtpServer(folder) as server:
        for stored, config in (
            (credential(hosts=["files.example.com"]), {}),
            (credential(), {"host": "localhost"}),
            (credential(hosts=[f"127.0.0.1:{server.port + 1}"]), {}),
            (credential(), {"host": "localhost", "credentials": None}),
        ):
            with pytest.raises(ForbiddenPathError, match="hosts"):
                list(source(server, stored=stored, **config).list_files("*"))
        wild = PollingSettings(allowed_source_hosts=["*"])
        with pytest.raises(ForbiddenPathError, match="internal"):
            list(source(server, servers=wild, stored=credential(hosts=["x.example"]), credentials=None).list_files("*"))
        assert server.commands.total() == 0


def test_invalid_source_options_are_refused_when_the_job_arrives() -> None:
    context = context_of(credentials={"store": credential()})
    config = {"source_type": "ftp", "host": "127.0.0.1", "credentials": "store", "tls": "none"}
    with pytest.raises(UnknownCredentialsError, match="'other'"):
        open_source({**config, "credentials": "other"}, context)
    with pytest.raises(PermanentError, match="carries 'password'"):
        open_source({**config, "password": "x"}, context)
    wrong = {"port": 0, "host": "a b", "username": "root", "tls": "ssl3", "encoding": "rot13", "time_zone": "../x"}
    for name, value in wrong.items():
        with pytest.raises(PermanentError, match=name):
            open_source({**config, name: value}, context)
    opened = open_source(config, context)
    with pytest.raises(ForbiddenPathError, match="control characters"):
        opened.require_allowed("/a\r\nDELE b.csv")


def test_a_file_has_one_location_however_it_is_named() -> None:
    config: dict[str, Any] = {"source_type": "ftp", "credentials": "store", "tls": "none", "path": "in"}
    opened = [
        open_source({**config, **more}, context_of(credentials={"store": credential(hosts=["files.example.com"])}))
        for more in ({"host": "FILES.example.com."}, {"host": "files.example.com", "port": "21", "username": USER})
    ]
    names = ("in/a.csv", "/in//a.csv", "/in/./a.csv", "/in/x/../a.csv", "bytes:/in/%61.csv")
    assert {one.canonical_location(name) for one in opened for name in names} == {
        "ftp://collector@files.example.com:21/in/a.csv"
    }
