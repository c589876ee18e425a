"""Jobs are untrusted: no credential or connection goes to a location that no setting names."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from ingest_project.contracts.files import FileEvent
from ingest_project.core.errors import (
    AddressRejectedError,
    ForbiddenPathError,
    IngestError,
    PermanentError,
    SourceUnreachableError,
)
from ingest_project.core.secrets import text_of
from ingest_project.core.settings import Credential, PollingSettings, Settings
from ingest_project.file_ingest.sensors import Announced, with_versions
from ingest_project.platform.http import pinned_transport
from ingest_project.platform.http.host_policy import HostLists
from ingest_project.platform.http.pinned_transport import Connector
from ingest_project.platform.object_store.s3 import s3_client as store_client
from ingest_project.platform.object_store.store import S3Options
from ingest_project.sources import Source
from ingest_project.sources.ftp import open_ftp
from ingest_project.sources.registry import SourceContext, open_source, require_known_options
from ingest_project.sources.s3 import S3Account, account_client, bound
from ingest_project_tests.services.dfs_server import DfsServer
from ingest_project_tests.services.identity import IdentityServer
from ingest_project_tests.services.listener import Listener, Redirecting
from ingest_project_tests.sources.backends import S3Backend
from ingest_project_tests.sources.served import OPENED, context_of

SAS = "sv=2024-01-01&sig=the-signature"
PLACE = "w/i.Lakehouse/Files/a.csv"
# `{port}` is where somebody listens.
ONELAKE_ATTACKS = (
    "https://127.0.0.1:{port}\\.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}\\@onelake.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}/\\.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}%5c.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port};.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}#.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}?.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}\t.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}\n.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}\u2028.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}\uff0f.dfs.fabric.microsoft.com/" + PLACE,
    "https://127.0.0.1:{port}\uff3c.dfs.fabric.microsoft.com/" + PLACE,
    "https://onelake.dfs.fabric.microsoft.com@127.0.0.1:{port}/" + PLACE,
    "https://onelake.dfs.fabric.microsoft.com:443@127.0.0.1:{port}/" + PLACE,
    "https://[::ffff:127.0.0.1]:{port}\\.dfs.fabric.microsoft.com/" + PLACE,
    "https://[127.0.0.1:{port}\\.dfs.fabric.microsoft.com/" + PLACE,
    "https://2130706433:{port}\\.dfs.core.windows.net/c/a.csv",
    "abfss://w@127.0.0.1:{port}\\.dfs.fabric.microsoft.com/i.Lakehouse/Files/a.csv",
    "abfss://w@127.0.0.1:{port}\\@onelake.dfs.fabric.microsoft.com/i.Lakehouse/Files/a.csv",
    "abfss://w\\@127.0.0.1:{port}/i.Lakehouse/Files/a.csv",
    "abfss://c@127.0.0.1:{port}\\.blob.core.windows.net/a.csv",
    "https://127.0.0.1:{port}/" + PLACE,
    "http://127.0.0.1:{port}/" + PLACE,
    "HTTPS://127.0.0.1:{port}\\.DFS.Fabric.Microsoft.com/" + PLACE,
    "https:\\\\127.0.0.1:{port}\\.dfs.fabric.microsoft.com/" + PLACE,
    "https://evil.dfs.core.windows.net/c/a.csv",
    "https://onelake.dfs.fabric.microsoft.com/somebody-elses/i.Lakehouse/Files/a.csv",
    "https://onelake.dfs.fabric.microsoft.com:8443/" + PLACE,
    "somebody-elses/i.Lakehouse/Files/a.csv",
)


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as listening:
        yield listening


def opened(settings: dict[str, Any], config: dict[str, Any]) -> Source:
    made = Settings.model_validate(settings)
    return open_source(config, SourceContext(made))


def require_refused(settings: dict[str, Any], config: dict[str, Any], path: str) -> None:
    """All that a job, a file event and a sensor's tick may do with it ends in a refusal of ours."""
    with pytest.raises(PermanentError):
        opened(settings, config).require_allowed(path)
    with pytest.raises(PermanentError):
        opened(settings, config).stat(path)
    with pytest.raises(PermanentError):
        list(opened(settings, config).list_files("**"))
    with pytest.raises(PermanentError), opened(settings, config).open(path):
        pass


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"source_type": "ftp", "host": "h", "timezone": "Europe/Berlin"}, "'timezone', did you mean time_zone?"),
        ({"source_type": "s3", "bucket": "b", "prefix": "in"}, "unknown 'prefix'"),
        ({"source_type": "http", "path": "https://h/", "elsewhere": "yes"}, "elsewhere of source_config must be true"),
        ({"source_type": "local", "path": "/in", "file\n\x1b[2J": 1}, "'file��[2J'"),
    ],
)
def test_an_option_without_effect_is_refused_where_a_listing_is_asked_for(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(PermanentError) as caught:
        require_known_options(config)
    assert reason in str(caught.value)
    require_known_options({"source_type": "of-another-package", "anything": 1})
    require_known_options({"source_type": "s3", "bucket": "b", "requester_pays": True, "credentials": "c"})


@pytest.mark.parametrize("attack", ONELAKE_ATTACKS)
def test_no_identity_and_no_sas_leaves_for_a_host_or_account_that_no_setting_names(
    attack: str, listener: Listener, identity_server: IdentityServer
) -> None:
    path = attack.format(port=listener.port)
    stored = {"unbound": {"sas_token": SAS}, "other": {"sas_token": SAS, "hosts": ["account.dfs.core.windows.net"]}}
    onelake = {"allowed_accounts": ["account.dfs.core.windows.net", "onelake.dfs.fabric.microsoft.com/w-of-ours"]}
    for more in ({}, {"sas_token": SecretStr(SAS)}):
        settings = {"onelake": {**onelake, **more}, "credentials": stored}
        for credentials in ({}, {"credentials": "unbound"}, {"credentials": "other"}):
            require_refused(settings, {"source_type": "onelake", "path": path, **credentials}, path)
    # A file event says where its file is by a second address.
    ours = "https://account.dfs.core.windows.net/c/in"
    source = opened({"onelake": onelake}, {"source_type": "onelake", "path": ours})
    event = FileEvent(file_path=path, file_name="a.csv")
    assert with_versions([Announced(event, source)]) == [event]
    assert (listener.connections, listener.received) == (0, b"")
    assert identity_server.resources == []


def test_a_credential_of_another_kind_does_not_become_this_host_s_identity(identity_server: IdentityServer) -> None:
    settings = {"credentials": {"ftp": {"username": "u", "password": "p", "hosts": ["account.dfs.core.windows.net"]}}}
    config = {"source_type": "onelake", "path": "https://account.dfs.core.windows.net/c/in", "credentials": "ftp"}
    with pytest.raises(PermanentError, match="no sas_token"):
        opened(settings, config)
    assert identity_server.resources == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_redirect_of_the_service_takes_no_sas_to_another_host(host: str, listener: Listener) -> None:
    with Redirecting(f"http://{host}:{listener.port}/elsewhere") as service:
        settings = {"onelake": {"endpoint": service.url, "sas_token": SecretStr(SAS)}}
        source = opened(settings, {"source_type": "onelake", "path": "w/i.Lakehouse/Files"})
        with pytest.raises(IngestError) as caught:
            source.stat(PLACE)
        assert "the-signature" not in str(caught.value)
        with pytest.raises(IngestError):
            list(source.list_files("**"))
        assert service.requests
    assert (listener.connections, listener.received) == (0, b"")


S3_ENDPOINTS = (
    "http://127.0.0.1:{port}",
    "http://localhost:{port}",
    "http://LOCALHOST.:{port}/",
    "http://[::ffff:127.0.0.1]:{port}",
    "http://2130706433:{port}",
    "http://0x7f.1:{port}",
    "http://127.1:{port}",
    "http://0.0.0.0:{port}",
    "http://１２７.0.0.1:{port}",  # noqa: RUF001 - that is the point
    "http://127.0.0.1:{port}\\@files.example.com",
    "http://files.example.com@127.0.0.1:{port}",
    "http://127.0.0.1:{port}#files.example.com",
    "http://127.0.0.1:{port}?files.example.com",
    "http://127.0.0.1:{port}/in",
    "http://[::1",
)


@pytest.mark.parametrize("allowed", [["*", "0.0.0.0/0", "::/0"], ["*.example.com", "files.example.com"]])
@pytest.mark.parametrize("endpoint", S3_ENDPOINTS)
def test_an_endpoint_of_a_job_does_not_reach_an_internal_address_that_no_setting_names(
    endpoint: str, allowed: list[str], listener: Listener
) -> None:
    settings = {
        "polling": {"allowed_source_hosts": allowed, "allowed_buckets": ["*"]},
        "credentials": {"key": {"access_key_id": "k", "secret_access_key": "s", "hosts": ["*"]}},
    }
    config = {"source_type": "s3", "path": "s3://bucket/in", "endpoint_url": endpoint.format(port=listener.port)}
    for more in ({}, {"credentials": "key"}):
        with pytest.raises(PermanentError):
            opened(settings, {**config, **more, "region": "us-east-1"}).stat("s3://bucket/in/a.csv")
    assert listener.connections == 0


def test_an_endpoint_that_a_setting_names_may_be_internal_and_a_denied_one_may_not(s3_options: S3Options) -> None:
    backend = S3Backend(s3_options, "named-endpoint")
    backend.put("a.csv", b"x")
    server = (s3_options.endpoint_url or "").removeprefix("http://")
    keys = {"access_key_id": s3_options.access_key_id, "secret_access_key": s3_options.secret_access_key}
    config = {"source_type": "s3", "path": "s3://named-endpoint/in", "endpoint_url": s3_options.endpoint_url}
    config |= {"region": "us-east-1", "credentials": "key"}
    named: dict[str, Any] = {"credentials": {"key": {**keys, "hosts": [server], "buckets": ["named-*"]}}}
    assert opened(named, config).stat("s3://named-endpoint/in/a.csv").size_bytes == 1
    network = {"polling": {"allowed_source_hosts": ["*"]}, "downloads": {"allowed_internal_hosts": ["127.0.0.0/8"]}}
    anyone = {"credentials": {"key": {**keys, "hosts": ["*"], "buckets": ["named-*"]}}}
    with pytest.raises(AddressRejectedError, match="loopback"):
        opened(anyone, config).stat("s3://named-endpoint/in/a.csv")
    assert opened({**anyone, **network}, config).stat("s3://named-endpoint/in/a.csv").size_bytes == 1
    with pytest.raises(AddressRejectedError, match="denied"):
        opened({**named, "downloads": {"denied_hosts": ["127.0.0.0/8"]}}, config).stat("s3://named-endpoint/in/a.csv")


def test_an_s3_endpoint_is_resolved_once_for_check_and_connection(
    s3_options: S3Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = S3Backend(s3_options, "rebinding")
    backend.put("a.csv", b"x")
    port = int((s3_options.endpoint_url or "").rpartition(":")[2])
    account = S3Account(
        f"http://localhost:{port}",
        "us-east-1",
        s3_options.access_key_id,
        SecretStr(text_of(s3_options.secret_access_key or "")),
    )
    # The first name server's answer is public; the owner of the name answers otherwise the second time.
    for answers, outcome in (
        ([["127.0.0.1"], ["10.0.0.1"]], None),
        ([["8.8.8.8", "127.0.0.1"]], AddressRejectedError),
        ([["10.0.0.1"]], AddressRejectedError),
    ):
        rules = HostLists(internal=("127.0.0.0/8",) if outcome is None else ()).rules_for(
            ("localhost", port), internal_allowed=False
        )
        resolved = iter(answers)
        client = account_client.__wrapped__(account, 5.0, HostLists())
        monkeypatch.setattr(
            pinned_transport, "system_addresses", lambda _host, _port, resolved=resolved: next(resolved)
        )
        bound(client, Connector(rules))
        if outcome is None:
            assert client.head_object(Bucket="rebinding", Key="in/a.csv")["ContentLength"] == 1
            assert next(resolved) == ["10.0.0.1"]
        else:
            with pytest.raises(outcome):
                client.head_object(Bucket="rebinding", Key="in/a.csv")


@pytest.mark.parametrize("status", [301, 307])
def test_a_redirect_of_an_s3_server_leads_nowhere(status: int, listener: Listener) -> None:
    with Redirecting(f"http://127.0.0.1:{listener.port}/bucket/in/a.csv", status) as service:
        settings = {"polling": {"allowed_source_hosts": [f"127.0.0.1:{service.port}"], "allowed_buckets": ["bucket"]}}
        config = {"source_type": "s3", "path": "s3://bucket/in", "endpoint_url": service.url, "region": "us-east-1"}
        with pytest.raises(IngestError):
            opened(settings, config).stat("s3://bucket/in/a.csv")
        assert service.requests
    assert listener.connections == 0


def test_a_bucket_is_read_only_where_a_setting_names_it(s3_options: S3Options) -> None:
    for bucket in ("of-a-source", "of-a-key", "of-nobody"):
        store_client(s3_options).create_bucket(Bucket=bucket)
        store_client(s3_options).put_object(Bucket=bucket, Key="in/a.csv", Body=b"x")
    keys = {"access_key_id": s3_options.access_key_id, "secret_access_key": s3_options.secret_access_key}
    settings: dict[str, Any] = {
        "storage": {"s3_endpoint_url": s3_options.endpoint_url, "s3_region": "us-east-1"}
        | {f"s3_{name}": value for name, value in keys.items()},
        "sources": {
            "one": {"source_config": {"source_type": "s3", "path": "s3://of-a-source/in"}},
            "elsewhere": {
                "source_config": {"source_type": "s3", "bucket": "of-nobody", "endpoint_url": "https://s3.example.com"}
            },
            "nothing": {"source_config": {"source_type": "s3"}},
        },
        "credentials": {"key": {**keys, "buckets": ["of-a-*"]}},
    }
    for bucket, credentials, allowed in (
        ("of-a-source", {}, True),
        ("of-a-key", {"credentials": "key"}, True),
        ("of-a-key", {}, False),
        ("of-nobody", {}, False),
        ("of-nobody", {"credentials": "key"}, False),
    ):
        config = {"source_type": "s3", "path": f"s3://{bucket}/in", **credentials}
        if allowed:
            assert opened(settings, config).stat(f"s3://{bucket}/in/a.csv").size_bytes == 1
        else:
            with pytest.raises(ForbiddenPathError, match=r"INGEST_ALLOWED_BUCKETS|their 'buckets'"):
                opened(settings, config)
    listed = {**settings, "polling": {"allowed_buckets": ["of-no*"]}}
    assert opened(listed, {"source_type": "s3", "bucket": "of-nobody"}).stat("in/a.csv").size_bytes == 1


@pytest.mark.parametrize("kind", ["ftp", "sftp"])
@pytest.mark.parametrize("allowed", ["*", "*:{port}", "0.0.0.0/0", "*.localhost"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0", "a.localhost"])  # noqa: S104 - to refuse
def test_a_wildcard_does_not_let_a_file_server_be_internal(
    kind: str, allowed: str, host: str, listener: Listener
) -> None:
    settings = {
        "polling": {"allowed_source_hosts": [allowed.format(port=listener.port)], "source_timeout_seconds": 2.0},
        "credentials": {"c": {"username": "u", "password": "p", "hosts": ["*"], "plain_http": True}},
    }
    config = {"source_type": kind, "host": host, "port": listener.port, "path": "/", "credentials": "c", "tls": "none"}
    # SourceUnreachableError: a name that this machine does not know.
    with pytest.raises((ForbiddenPathError, SourceUnreachableError)):
        opened(settings, config).stat("/a.csv")
    assert listener.connections == 0


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f.1",
        "127.1",
        "0177.0.0.1",
        "１２７.0.0.1",  # noqa: RUF001 - that is the point
        "[::ffff:127.0.0.1]",
        "[[::1]]",
        "fe80::1%lo",
        "127.0.0.1:22",
        "127.0.0.1\\x.example",
        "127.0.0.1%00.example",
        "user@127.0.0.1",
        "a b",
        "a/b",
        "x\r\ny",
        "*",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["ftp", "sftp"])
def test_a_host_of_a_job_is_one_spelling_of_one_host(kind: str, host: str) -> None:
    credentials = {"c": {"username": "u", "password": "p", "hosts": ["*"], "plain_http": True}}
    config = {"source_type": kind, "host": host, "path": "/", "credentials": "c", "tls": "none"}
    with pytest.raises(PermanentError, match="host"):
        opened({"credentials": credentials}, config)


def test_a_denied_host_is_denied_to_file_servers_too(listener: Listener) -> None:
    settings = {
        "downloads": {"denied_hosts": ["127.0.0.0/8"]},
        "credentials": {"c": {"username": "u", "password": "p", "hosts": ["127.0.0.1"], "plain_http": True}},
    }
    for kind in ("ftp", "sftp"):
        config = {"source_type": kind, "host": "127.0.0.1", "port": listener.port, "path": "/", "credentials": "c"}
        with pytest.raises(ForbiddenPathError, match="denied"):
            opened(settings, {**config, "tls": "none"}).stat("/a.csv")
    assert listener.connections == 0


@pytest.mark.parametrize(
    "passive", ["229 Entering Extended Passive Mode (|||{port}|)", "227 Entering Passive Mode (127,0,0,1,{high},{low})"]
)
@pytest.mark.parametrize("port", [22, 0, 1023, 65_536, 99_999])
def test_a_data_connection_does_not_go_to_another_service_of_the_same_host(passive: str, port: int) -> None:
    answers = {
        "USER": "230 In",
        "FEAT": "500 What",
        "TYPE": "200 Well",
        "CWD": "250 There",
        "EPSV": passive.format(port=port, high="", low="") if passive.startswith("229") else "500 What",
        "PASV": passive.format(port=port, high=port // 256, low=port % 256),
    }
    with _FtpControl(answers) as server:
        config = {"host": "127.0.0.1", "port": server.server_address[1], "path": "/", "tls": "none"}
        stored = {"c": Credential.model_validate({"hosts": ["127.0.0.1"], "username": "u", "password": "p"})}
        source = open_ftp(config, context_of(PollingSettings(source_timeout_seconds=5.0), stored))
        OPENED.append(source)
        with pytest.raises(SourceUnreachableError, match=r"port|227|unreadable|not understood"):
            list(source.list_files("*"))


class _FtpControl(socketserver.ThreadingTCPServer):
    """The control connection of an FTP server that answers each command by its table."""

    daemon_threads = True

    def __init__(self, answers: dict[str, str]) -> None:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 Here\r\n")
                for line in self.rfile:
                    command = line.split()[0].decode().upper()
                    self.wfile.write(f"{answers.get(command, '500 What')}\r\n".encode())

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def server_close(self) -> None:
        self.shutdown()
        super().server_close()


def test_a_location_that_a_setting_names_is_read(dfs: DfsServer, dfs_url: str) -> None:
    """The rules let through what is meant: by the endpoint, by a credential's hosts, by the list."""
    server = dfs.url.removeprefix("http://")
    stored = {"sas": {"sas_token": "sv=x", "hosts": [server]}}
    for settings, credentials in (
        ({"onelake": {"endpoint": dfs.url}}, {}),
        ({"onelake": {"endpoint": dfs.url}, "credentials": stored}, {"credentials": "sas"}),
    ):
        opened(settings, {"source_type": "onelake", "path": dfs_url, **credentials}).require_allowed(dfs_url)
