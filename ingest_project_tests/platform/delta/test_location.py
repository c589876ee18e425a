"""Delta tables on S3 and on Azure's storage: the same promises, kept by conditional requests."""

from __future__ import annotations

import base64
import http.client
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError
from azure.storage.blob import ContainerClient, ContainerSasPermissions, generate_container_sas
from pydantic import SecretStr

from ingest_project.core.errors import SettingsError, StoreUnavailableError
from ingest_project.devstack import free_port
from ingest_project.platform.azure import OneLakeCredential, identity
from ingest_project.platform.delta import DeltaCredentials, delta_location, may_be_a_rows_fault, storage_options
from ingest_project.platform.delta.maintenance import optimize_and_vacuum
from ingest_project.platform.delta.table import AlreadyCommitted, Committed, DeltaStore
from ingest_project.platform.object_store.s3 import s3_client
from ingest_project.platform.object_store.store import S3Options
from ingest_project_tests.platform.delta.test_append import numbers, together
from ingest_project_tests.platform.delta.test_maintenance import AT_ONCE, keep_nothing_expired
from ingest_project_tests.services.azurite import ACCOUNT, KEY, Azurite, why_not_azurite
from ingest_project_tests.services.kafka import wait_until

pytestmark = pytest.mark.long

ONELAKE = "https://onelake.dfs.fabric.microsoft.com/11111111-1111-1111-1111-111111111111/2222/Tables/results"
Location = tuple[str, DeltaCredentials]


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    if reason := why_not_azurite():
        pytest.skip(reason)
    server = Azurite()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def distant_s3() -> Iterator[S3Options]:
    """An S3 server in a process of its own: delta-rs keeps the interpreter to itself while it changes properties."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: answers(port), 30)
            yield S3Options(f"http://127.0.0.1:{port}", "us-east-1", "test-key", "test-secret")
        finally:
            server.kill()


@pytest.fixture
def s3_location(distant_s3: S3Options) -> Location:
    """A prefix in a bucket of this test alone."""
    name = f"test-{uuid.uuid4().hex}"
    s3_client(distant_s3).create_bucket(Bucket=name)
    return f"s3://{name}/some/prefix", DeltaCredentials(s3=distant_s3)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture
def azure_location(azurite: Azurite, monkeypatch: pytest.MonkeyPatch) -> Location:
    """A container of this test alone, entered with the account's key."""
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", azurite.server_url)
    # It cannot list from a start name.
    monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
    name = f"test-{uuid.uuid4().hex}"
    with ContainerClient(azurite.endpoint_url, name, credential=KEY) as container:
        container.create_container()
    credential = OneLakeCredential(account_name=ACCOUNT, account_key=SecretStr(KEY))
    return f"abfss://{name}@{ACCOUNT}.dfs.core.windows.net/some/table", DeltaCredentials(azure=credential)


def serve_azure_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Send delta-rs to a local server instead of the account's own host, by its own environment variables."""
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", url)
    monkeypatch.setenv("AZURE_ALLOW_HTTP", "true")


@pytest.fixture(params=["s3", "azure"])
def location(request: pytest.FixtureRequest) -> Location:
    found: Location = request.getfixturevalue(f"{request.param}_location")
    return found


def store_at(location: Location) -> DeltaStore:
    return DeltaStore(delta_location(*location))


def read(store: DeltaStore) -> list[int]:
    table = store.opened()
    assert table is not None
    return sorted(pa.table(table.scan().read_all())["n"].to_pylist())


def test_a_position_is_committed_once_in_remote_locations(location: Location) -> None:
    store = store_at(location)
    assert store.committed_version("topic-0") is None
    assert isinstance(store.append(numbers(1, 2), app_id="topic-0", version=2), Committed)
    assert store.append(numbers(1, 2), app_id="topic-0", version=2) == AlreadyCommitted(2)
    assert store_at(location).append(numbers(1, 2), app_id="topic-0", version=2) == AlreadyCommitted(2)
    assert read(store) == [1, 2]


def test_concurrent_writers_commit_each_position_once_in_remote_locations(location: Location) -> None:
    def append_all() -> None:
        store = store_at(location)
        for version in range(1, 6):
            store.append(numbers(version), app_id="topic-0", version=version)

    together(append_all, append_all, append_all)
    assert read(store_at(location)) == [1, 2, 3, 4, 5]


def test_maintenance_works_in_remote_locations(location: Location) -> None:
    store = store_at(location)
    for version in range(12):
        store.append(numbers(version), app_id="topic-0", version=version)
    keep_nothing_expired(store)
    done = optimize_and_vacuum(store, AT_ONCE)
    assert done is not None
    assert (done.before.files, done.after.files, len(done.removed)) == (12, 1, 12)
    assert read(store) == list(range(12))


def test_a_commit_whose_answer_is_lost_is_found_and_not_repeated(s3_location: Location) -> None:
    store_at(s3_location).append(numbers(0), app_id="topic-0", version=0)
    url, credentials = s3_location
    assert credentials.s3.endpoint_url is not None
    with proxy_to(credentials.s3.endpoint_url, lambda method, path: method == "PUT" and "02.json" in path) as proxy:
        options = S3Options(proxy.url, "us-east-1", "test-key", "test-secret")
        store = store_at((url, DeltaCredentials(s3=options)))
        try:
            store.append(numbers(1), app_id="topic-0", version=1)
        except StoreUnavailableError:
            assert store.append(numbers(1), app_id="topic-0", version=1) == AlreadyCommitted(1)
        assert proxy.lost > 0
    assert read(store_at(s3_location)) == [0, 1]


def test_a_sas_lets_in_and_one_that_does_not_is_not_shown(
    azurite: Azurite, azure_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = azure_location
    monkeypatch.delenv("AZURE_STORAGE_USE_EMULATOR")
    serve_azure_at(monkeypatch, azurite.endpoint_url)
    container = urlsplit(url).username
    assert container is not None
    sas = generate_container_sas(
        ACCOUNT,
        container,
        account_key=KEY,
        permission=ContainerSasPermissions(read=True, write=True, list=True, delete=True, create=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )

    def append_with(sas: str) -> None:
        credential = OneLakeCredential(sas=SecretStr(sas))
        store_at((url, DeltaCredentials(azure=credential))).append(numbers(1), app_id="topic-0", version=1)

    append_with(sas)
    secret = base64.b64encode(b"not the signature at all").decode().rstrip("=")
    with pytest.raises(StoreUnavailableError) as caught:
        append_with(sas.split("&sig=")[0] + f"&sig={secret}")
    assert secret not in str(caught.value)


class Identity:
    """An identity of Azure that gives these tokens in turn, each with its minutes."""

    def __init__(self, *tokens: tuple[str, int]) -> None:
        self._tokens = iter(tokens)

    def get_token(self, *_scopes: str) -> AccessToken:
        """Return the next token."""
        value, minutes = next(self._tokens)
        return AccessToken(value, int((datetime.now(UTC) + timedelta(minutes=minutes)).timestamp()))


def test_a_token_is_renewed_before_it_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Identity(("token-1", 4), ("token-2", 60))
    monkeypatch.setattr(identity, "default_credential", lambda: host)
    location = delta_location(ONELAKE)
    assert (
        location.url
        == "abfss://11111111-1111-1111-1111-111111111111@onelake.dfs.fabric.microsoft.com/2222/Tables/results"
    )
    first, second = storage_options(location), storage_options(location)
    assert (first.values["azure_storage_token"], first.ended) == ("token-1", True)
    assert (second.values["azure_storage_token"], second.ended) == ("token-2", False)
    assert "token-" not in repr(first) + repr(location)


def test_a_token_that_fails_is_the_fault_of_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Identity):
        def get_token(self, *_scopes: str) -> AccessToken:
            raise ClientAuthenticationError("Attempted credentials:\n\tManagedIdentity: timed out")

    monkeypatch.setattr(identity, "default_credential", Broken)
    with pytest.raises(StoreUnavailableError, match="Attempted credentials: ManagedIdentity: timed out") as caught:
        store_at((ONELAKE, DeltaCredentials())).append(numbers(1), app_id="topic-0", version=1)
    assert not may_be_a_rows_fault(caught.value)


def test_the_token_of_the_moment_is_what_the_service_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Identity(("first", 1), ("second", 1))
    monkeypatch.setattr(identity, "default_credential", lambda: host)
    shown: set[str | None] = set()

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.add(self.headers.get("Authorization"))
            listing = b"<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>"
            self.send_response_only(200 if "comp=list" in self.path else 404)
            self.send_header("Content-Length", str(len(listing)))
            self.end_headers()
            self.wfile.write(listing)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    serve_azure_at(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}")
    store = store_at((ONELAKE, DeltaCredentials()))
    try:
        for token in ("first", "second"):
            shown.clear()
            assert store.committed_version("topic-0") is None
            assert shown == {f"Bearer {token}"}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "gopher://x/y",
        "https://example.com/table",
        "abfss://table",
        "https://account.dfs.core.windows.net/filesystem",
    ],
)
def test_addresses_that_lead_to_no_table_are_settings_errors(url: str) -> None:
    with pytest.raises(SettingsError):
        delta_location(url)


def test_a_server_that_is_away_says_so_soon() -> None:
    options = S3Options("http://127.0.0.1:1", "us-east-1", "key", "secret")
    with pytest.raises(StoreUnavailableError, match="Connection refused"):
        store_at(("s3://bucket/x", DeltaCredentials(s3=options))).committed_version("topic-0")


class proxy_to:  # noqa: N801 - reads as the function it is used as
    """Hands requests on to a server, and cuts the connection instead of some of its answers."""

    def __init__(self, url: str, loses_answer: Callable[[str, str], bool]) -> None:
        self.lost = 0
        proxy, target = self, urlsplit(url).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                connection = http.client.HTTPConnection(target)
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                if answer.status < 300 and loses_answer(self.command, self.path):
                    proxy.lost += 1
                    self.close_connection = True
                    return
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
                self.send_header("Content-Length", str(length or 0))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 - http.server's names

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
