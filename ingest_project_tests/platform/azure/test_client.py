"""Our clients of Microsoft's SDK: bounded waits, few connections, and our own errors."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from azure.storage.filedatalake import FileSystemClient
from pydantic import SecretStr

from ingest_project.core.errors import (
    PermanentError,
    SettingsError,
    SourceNotFoundError,
    StoreUnavailableError,
    TransientError,
)
from ingest_project.core.settings import Credential, OneLakeSettings
from ingest_project.platform.azure import (
    OneLakeAddress,
    OneLakeCredential,
    OneLakeOptions,
    StoreRejectedError,
    StoreThrottledError,
    onelake_options,
    parse_address,
)
from ingest_project.platform.azure.client import (
    list_folder,
    onelake_errors,
    open_file,
    open_file_system,
    retry_after_seconds,
)
from ingest_project_tests.services.dfs_calls import ACCOUNT, SAS
from ingest_project_tests.services.dfs_server import ACCOUNT_KEY, ITEM, DfsServer, guid_of
from ingest_project_tests.services.loaded_definitions import LoadedDefinitions


@pytest.fixture
def folder(dfs: DfsServer, dfs_url: str) -> OneLakeAddress:
    return parse_address(dfs_url, dfs.url)


@pytest.fixture
def files(dfs: DfsServer, folder: OneLakeAddress) -> Iterator[FileSystemClient]:
    options = replace(dfs.options, retries=2, longest_wait_seconds=1.0, read_timeout_seconds=1.0)
    with open_file_system(folder, options) as opened:
        yield opened


def write(files: FileSystemClient, address: OneLakeAddress, data: bytes) -> None:
    client = files.get_file_client(address.path)
    client.create_file()
    client.append_data(data, 0, flush=True)


@pytest.mark.parametrize("data", [b"", b"some bytes", bytes(range(256)) * 40_000], ids=["empty", "small", "large"])
def test_a_file_is_read_as_a_stream_through_the_blob_endpoint(
    files: FileSystemClient, folder: OneLakeAddress, data: bytes
) -> None:
    write(files, folder.child("a b/ü.csv"), data)
    with open_file(files, folder.child("a b/ü.csv")) as stream:
        assert stream.read(3) == data[:3]
        assert stream.read() == data[3:]


def test_a_file_replaced_while_it_is_read_fails_instead_of_mixing_two(
    files: FileSystemClient, folder: OneLakeAddress
) -> None:
    write(files, folder.child("a"), bytes(9 * 1024**2))
    with open_file(files, folder.child("a")) as stream:
        stream.read(10)
        write(files, folder.child("a"), b"x" * 9 * 1024**2)
        with pytest.raises(TransientError):
            stream.read()


def test_a_cut_in_the_middle_of_an_answer_is_overcome(
    dfs: DfsServer, files: FileSystemClient, folder: OneLakeAddress
) -> None:
    write(files, folder.child("a"), b"0123456789" * 1000)
    dfs.fail("read", kind="half")
    with open_file(files, folder.child("a")) as stream:
        assert stream.read() == b"0123456789" * 1000


def test_a_listing_of_many_pages_is_whole(files: FileSystemClient, folder: OneLakeAddress) -> None:
    for number in range(25):
        files.get_file_client(f"{folder.path}/d{number % 3}/f{number:02}").create_file()
    listed = [found for found in list_folder(files, folder, page=7) if not found.is_folder]
    assert len(listed) == len({found.path for found in listed}) == 25
    assert abs(datetime.now(UTC) - listed[0].modified_at) < timedelta(minutes=1)
    assert {found.size_bytes for found in listed} == {0}
    top = list(list_folder(files, folder, recursive=False, page=2))
    assert [found.path for found in top] == [f"{folder.path}/d{number}" for number in range(3)]


def test_a_listing_that_fails_at_a_later_page_is_a_failure_and_not_a_short_listing(
    dfs: DfsServer, files: FileSystemClient, folder: OneLakeAddress
) -> None:
    for number in range(5):
        files.get_file_client(f"{folder.path}/f{number}").create_file()
    dfs.fail("list", after=1, times=100)
    with pytest.raises(StoreThrottledError):
        list(list_folder(files, folder, page=2))


def test_a_missing_folder_is_reported_as_such(files: FileSystemClient, folder: OneLakeAddress) -> None:
    with pytest.raises(SourceNotFoundError):
        list(list_folder(files, folder.child("none")))


def test_a_workspace_is_reached_by_guid_as_well_as_by_name(
    dfs: DfsServer, files: FileSystemClient, folder: OneLakeAddress
) -> None:
    write(files, folder.child("a"), b"1")
    text = f"{dfs.url}/{guid_of('analytics')}/{guid_of(ITEM)}/{folder.path.removeprefix(ITEM + '/')}"
    by_guid = parse_address(text, dfs.url)
    with open_file_system(by_guid, dfs.options) as other, open_file(other, by_guid.child("a")) as stream:
        assert stream.read() == b"1"


def test_an_account_key_lets_us_in(dfs: DfsServer, folder: OneLakeAddress) -> None:
    credential = OneLakeCredential(account_name=ACCOUNT, account_key=SecretStr(ACCOUNT_KEY))
    with open_file_system(folder, replace(dfs.options, credential=credential)) as files:
        write(files, folder.child("a"), b"1")
        assert files.get_file_client(folder.child("a").path).exists()


def test_a_wrong_signature_is_refused_for_good_and_never_shown(dfs: DfsServer, folder: OneLakeAddress) -> None:
    wrong = SAS.replace("dGVzdC1zaWduYXR1cmU", "d3Jvbmctc2lnbmF0dXJl")
    options = replace(dfs.options, credential=OneLakeCredential(sas=SecretStr(wrong)))
    with (
        open_file_system(folder, options) as files,
        pytest.raises(StoreRejectedError, match=r"403 AuthenticationFailed.*credential") as refused,
        onelake_errors(folder.url),
    ):
        files.get_file_client(folder.child("a").path).create_file()
    assert refused.value.status == 403
    assert refused.value.__suppress_context__
    assert "d3Jvbmctc2lnbmF0dXJl" not in f"{refused.value}{options}"


def test_a_token_is_not_sent_over_plain_http(folder: OneLakeAddress) -> None:
    with pytest.raises(SettingsError, match="HTTPS"):
        open_file_system(folder, OneLakeOptions())


def test_the_settings_credential_is_used_unless_a_job_names_another() -> None:
    settings = OneLakeSettings(sas_token=SecretStr("ours"), endpoint="https://other.dfs.core.windows.net")
    assert onelake_options(settings).credential == OneLakeCredential(sas=SecretStr("ours"))
    named = onelake_options(settings, Credential(account_name="a", account_key=SecretStr("k")))
    assert named.credential == OneLakeCredential(account_name="a", account_key=SecretStr("k"))
    assert named.endpoint == "https://other.dfs.core.windows.net"


def test_a_credential_has_exactly_one_kind() -> None:
    with pytest.raises(SettingsError, match="not both"):
        OneLakeCredential(sas=SecretStr("a"), account_name="b", account_key=SecretStr("c"))
    with pytest.raises(SettingsError, match="belong together"):
        OneLakeCredential(account_key=SecretStr("c"))


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_transient_failure_is_retried_after_the_requested_wait(
    dfs: DfsServer, files: FileSystemClient, folder: OneLakeAddress, status: int
) -> None:
    dfs.fail("create", status=status, retry_after=0.6)
    started = time.monotonic()
    files.get_file_client(folder.child("a").path).create_file()
    assert time.monotonic() - started >= 0.6


def test_a_service_that_stays_busy_is_left_after_a_few_attempts(
    dfs: DfsServer, files: FileSystemClient, folder: OneLakeAddress
) -> None:
    dfs.fail("create", status=503, times=100)
    with pytest.raises(StoreThrottledError) as busy, onelake_errors(folder.url):
        files.get_file_client(folder.child("a").path).create_file()
    assert busy.value.retry_after is None
    assert dfs.requests() == {"create": 3}


def test_a_requested_wait_beyond_the_longest_ends_the_attempts_and_is_reported(
    dfs: DfsServer, files: FileSystemClient, folder: OneLakeAddress
) -> None:
    dfs.fail("create", status=429, retry_after=120, times=100)
    started = time.monotonic()
    with pytest.raises(StoreThrottledError) as busy, onelake_errors(folder.url):
        files.get_file_client(folder.child("a").path).create_file()
    assert busy.value.retry_after == timedelta(seconds=120)
    assert time.monotonic() - started < 60
    assert dfs.requests() == {"create": 1}


def test_a_silent_service_counts_as_away_and_not_for_minutes(dfs: DfsServer, folder: OneLakeAddress) -> None:
    dfs.fail("create", kind="stall", seconds=1.0, times=2)
    options = replace(dfs.options, retries=1, read_timeout_seconds=0.3)
    with open_file_system(folder, options) as files:
        with pytest.raises(StoreUnavailableError), onelake_errors(folder.url):
            files.get_file_client(folder.child("a").path).create_file()
        assert dfs.requests()["create"] == 2


def test_a_server_that_is_not_there_is_transient_and_the_message_has_no_signature() -> None:
    folder = parse_address("http://127.0.0.1:9/analytics/lake.Lakehouse/Files/x", "http://127.0.0.1:9")
    options = OneLakeOptions(OneLakeCredential(sas=SecretStr(SAS)), retries=0)
    with (
        open_file_system(folder, options) as files,
        pytest.raises(StoreUnavailableError, match="ServiceRequestError") as away,
        onelake_errors(folder.url),
    ):
        files.get_file_client(folder.child("a").path).create_file()
    assert "sig=" not in str(away.value)


@pytest.mark.parametrize("path", ["lake.Lakehouse/Other", "lake.Lakehouse/Files", "other.Lakehouse/Files/x"])
def test_changing_folders_that_fabric_owns_fails_permanently(files: FileSystemClient, path: str) -> None:
    with pytest.raises(PermanentError), onelake_errors(path):
        files.get_directory_client(path).create_directory()
    with pytest.raises(PermanentError), onelake_errors(path):
        files.get_directory_client(path).delete_directory()


def test_access_control_and_workspaces_are_not_ours_to_set(files: FileSystemClient, folder: OneLakeAddress) -> None:
    write(files, folder.child("a"), b"1")
    with pytest.raises(StoreRejectedError, match="400"), onelake_errors(folder.url):
        files.get_file_client(folder.child("a").path).set_access_control(permissions="0777")
    with pytest.raises(StoreRejectedError, match="403"), onelake_errors(folder.url):
        files.delete_file_system()


def test_a_missing_workspace_is_distinguished_from_a_missing_file(dfs: DfsServer, files: FileSystemClient) -> None:
    with pytest.raises(SourceNotFoundError, match=r"^there/x does not exist"), onelake_errors("there/x"):
        files.get_file_client(f"{ITEM}/Files/none/x").get_file_properties()
    elsewhere = parse_address(f"{dfs.url}/nowhere/{ITEM}/Files/x", dfs.url)
    with (
        open_file_system(elsewhere, dfs.options) as other,
        pytest.raises(SourceNotFoundError, match="workspace or file system"),
        onelake_errors(elsewhere.url),
    ):
        other.get_file_client(elsewhere.path).get_file_properties()


def test_threads_share_a_pool_that_has_room_for_them_all(
    files: FileSystemClient, folder: OneLakeAddress, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: write(files, folder.child(f"f{number}"), b"x"), range(60)))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not [record for record in caplog.records if "http_logging_policy" in record.name]
    assert sum("Starting new HTTP connection" in record.message for record in caplog.records) <= 8


def test_the_test_server_runs_alone_keeps_files_in_a_folder_and_injects_faults(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ingest_project_tests.services.dfs_server", "--folder", str(tmp_path / "files")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        started = json.loads(process.stdout.readline())
        options = OneLakeOptions(OneLakeCredential(sas=SecretStr(started["sas"])), endpoint=started["url"])
        folder = parse_address(f"{started['root']}/x", started["url"])
        with open_file_system(folder, options) as files:
            requests.post(f"{started['url']}/-/faults", json={"operation": "create", "retry_after": 0.1}, timeout=5)
            write(files, folder.child("a"), b"some bytes")
        counted = requests.get(f"{started['url']}/-/requests", timeout=5).json()
        process.terminate()
    assert counted == {"create": 2, "append": 1}
    assert [path.read_bytes() for path in (tmp_path / "files").iterdir()] == [b"some bytes"]


def test_importing_the_package_does_not_load_the_sdk(loaded_definitions: LoadedDefinitions) -> None:
    package = {f"ingest_project.{name}" for name in ("platform.azure", "platform.object_store", "attachments.storage")}
    assert package <= {*loaded_definitions.modules}
    assert not loaded_definitions.imported("azure")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "9" * 40}, 999_999_999.0),
        *(({"retry-after": text}, None) for text in ("nan", "inf", "-1", "1e9", "soon", "")),
        ({}, None),
    ],
)
def test_a_pause_is_a_number_or_a_date_and_any_other_value_is_ignored(
    header: dict[str, str], seconds: float | None
) -> None:
    assert retry_after_seconds(header) == seconds
