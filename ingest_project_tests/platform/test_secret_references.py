"""Secrets by reference: each kind of place is read by its real client, and what connects next uses the newest value."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
import sqlalchemy as sa
import structlog
from moto.core.models import DEFAULT_ACCOUNT_ID
from pydantic import SecretStr
from structlog.testing import capture_logs

from ingest_project.core import secrets
from ingest_project.core.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    DownloadRejectedError,
    SettingsError,
    SourceAccessDeniedError,
)
from ingest_project.core.secrets import SecretReference
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.resources import open_warehouse
from ingest_project.platform.azure import onelake_options, parse_address
from ingest_project.platform.azure.client import shared_file_system
from ingest_project.platform.dagster.instance import shared_engine
from ingest_project.platform.database import open_engine, reading
from ingest_project.platform.delta import delta_credentials, delta_location, storage_options
from ingest_project.platform.http.client import web_client
from ingest_project.platform.http.pinned_transport import Deadline
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project.platform.kafka.reader import TopicReader
from ingest_project.platform.object_store.s3 import s3_client
from ingest_project.platform.object_store.store import S3Options
from ingest_project.sources.registry import SourceContext, open_source
from ingest_project_tests.services.ftp_server import PASSWORD, USER
from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request
from ingest_project_tests.services.identity import IdentityServer
from ingest_project_tests.services.kafka import (
    CONNECTION_STRING,
    SASL_USER,
    KafkaServer,
    Server,
    settings_for,
    wait_until,
)
from ingest_project_tests.services.key_vault import KeyVaultServer
from ingest_project_tests.services.postgres import PostgresServer
from ingest_project_tests.services.sftp_server import SftpServer


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """References that no other test has read, and files that are looked at each time."""
    monkeypatch.setattr(secrets, "FILE_CHECK_SECONDS", 0.0)
    monkeypatch.setattr(secrets, "_kept", {})
    yield
    secrets.set_ttl(secrets.DEFAULT_TTL_SECONDS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A mounted secret that is wrong."""
    path = tmp_path / "secret"
    path.write_text("wrong\n")
    return path


def reference(file: Path) -> SecretReference:
    return SecretReference(f"file://{file}")


@pytest.fixture
def secrets_manager(s3_options: S3Options, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401 - has no stubs here
    """A client of Secrets Manager, which our own code reaches as boto3 is configured."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", s3_options.endpoint_url or "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", DEFAULT_ACCOUNT_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    return boto3.Session().client("secretsmanager")


@pytest.fixture
def key_vault(
    tmp_path: Path, identity_server: IdentityServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KeyVaultServer]:
    """A vault whose authority this process trusts, and an identity that it lets in."""
    del identity_server
    with KeyVaultServer(tmp_path) as server:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(server.authority))
        yield server


def test_a_secret_of_secrets_manager_is_read_whole_or_by_a_field(secrets_manager: Any) -> None:  # noqa: ANN401
    name = f"prod/{uuid.uuid4().hex}"
    arn = secrets_manager.create_secret(Name=name, SecretString='{"password": "s3cret", "port": 5432}')["ARN"]
    for form, value in (
        (name, '{"password": "s3cret", "port": 5432}'),
        (f"{name}#password", "s3cret"),
        (f"{name}#port", "5432"),
        (f"{arn}#password", "s3cret"),
    ):
        assert SecretReference(f"aws-sm://{form}").get_secret_value() == value
    for form, reason in ((f"{name}#passwort", "field 'passwort'"), ("none", "ResourceNotFoundException")):
        with pytest.raises(SettingsError, match=reason) as caught:
            SecretReference(f"aws-sm://{form}").get_secret_value()
        assert "s3cret" not in str(caught.value)


def test_a_secret_of_key_vault_is_read_in_its_newest_version_or_a_named_one(key_vault: KeyVaultServer) -> None:
    key_vault.versions["db"] = ["first", "second"]
    assert SecretReference(f"keyvault://{key_vault.host}/db").get_secret_value() == "second"
    assert SecretReference(f"keyvault://{key_vault.host}/db/1").get_secret_value() == "first"
    with pytest.raises(SettingsError, match="no such secret"):
        SecretReference(f"keyvault://{key_vault.host}/none").get_secret_value()


def test_a_vault_is_queried_again_after_a_while_and_an_outage_keeps_the_last_value(
    key_vault: KeyVaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "RETRY_SECONDS", 0.0)
    # A logger that was used before keeps its processors, and nothing of it would be captured.
    monkeypatch.setattr(secrets, "logger", structlog.get_logger())
    secret = SecretReference(f"keyvault://{key_vault.host}/db")
    key_vault.versions["db"] = ["first"]
    assert secret.get_secret_value() == "first"
    key_vault.versions["db"].append("second")
    assert (secret.get_secret_value(), len(key_vault.reads)) == ("first", 1), "it is not asked each time"
    secrets.set_ttl(0)
    secret.refused("first")
    assert secret.get_secret_value() == "second"
    key_vault.is_away = True
    with capture_logs() as logged:
        wait_until(lambda: secret.get_secret_value() == "second" and key_vault.refused > 3)
    assert [one["event"] for one in logged] == ["secret_not_read_again"]
    assert "second" not in str(logged)
    key_vault.is_away = False
    key_vault.versions["db"].append("third")
    wait_until(lambda: secret.get_secret_value() == "third")


def test_a_refusal_reads_again_once_however_many_there_are(key_vault: KeyVaultServer) -> None:
    key_vault.versions["db"] = ["first"]
    secret = SecretReference(f"keyvault://{key_vault.host}/db")
    secret.get_secret_value()
    assert [secret.refused("first") for _ in range(5)] == [False] * 5
    assert len(key_vault.reads) == 2
    secrets._kept.clear()
    secret.get_secret_value()
    key_vault.versions["db"].append("second")
    assert secret.refused("first")
    assert SecretReference(secret.reference).refused("first"), "another client has used the old one as well"
    assert len(key_vault.reads) == 4


def test_a_file_that_is_away_or_empty_for_a_moment_keeps_its_last_value(file: Path) -> None:
    secret = reference(file)
    assert secret.get_secret_value() == "wrong"
    file.unlink()
    assert secret.get_secret_value() == "wrong"
    file.write_text("")
    assert secret.get_secret_value() == "wrong"
    # As Kubernetes does it: the name leads elsewhere from one moment to the next.
    other = file.with_name("other")
    other.write_text("right\n\n")
    file.unlink()
    file.symlink_to(other)
    assert secret.get_secret_value() == "right\n", "one newline is not part of it"


@pytest.fixture
def login(postgres_server: PostgresServer) -> Iterator[Callable[[str], str]]:
    """Sets the password of a role that needs one, and returns its URL."""
    rules = postgres_server.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"host all rotated all scram-sha-256\n{before}")
    postgres_server.execute("SELECT pg_reload_conf()")
    postgres_server.execute("CREATE ROLE rotated LOGIN")

    def with_password(password: str) -> str:
        postgres_server.execute(f"ALTER ROLE rotated PASSWORD '{password}'")
        return f"postgresql://rotated:{password}@127.0.0.1:{postgres_server.port}/postgres"

    yield with_password
    postgres_server.execute("DROP ROLE rotated")
    rules.write_text(before)
    postgres_server.execute("SELECT pg_reload_conf()")


def test_new_connections_to_postgresql_use_the_new_password(
    login: Callable[[str], str], key_vault: KeyVaultServer, postgres_server: PostgresServer
) -> None:
    key_vault.versions["db"] = [login("first")]
    url = SecretReference(f"keyvault://{key_vault.host}/db")
    # The last one is Dagster's, whose address may be another one than that of this process's settings.
    engine, warehouse, pool = open_engine(url), open_warehouse(url), shared_engine(url)

    def works() -> None:
        for one in (engine, pool):
            with reading(one) as connection:
                assert connection.execute(sa.select(sa.literal(7))).scalar() == 7
        with warehouse.transaction():
            pass

    works()
    key_vault.versions["db"].append(login("second"))
    end_all = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = 'rotated'"
    postgres_server.execute(end_all)
    works()
    assert len(key_vault.reads) == 2, "the refusal was the reason to look"

    login("third")
    postgres_server.execute(end_all)
    with pytest.raises(DatabaseUnavailableError, match="refuses this login"):
        works()
    engine.dispose()
    pool.dispose()
    warehouse.close()


def test_kafka_clients_that_stay_connected_take_the_new_password(kafka_server: Server, file: Path) -> None:
    if not isinstance(kafka_server, KafkaServer):
        pytest.skip("the embedded broker lets everybody in")
    topic = f"t{uuid.uuid4().hex}"
    kafka_server.create_topic(topic)
    secured = {
        "bootstrap_servers": kafka_server.sasl_bootstrap_servers,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_username": SASL_USER,
        "sasl_password": reference(file),
        "request_timeout_seconds": 2.0,
    }
    settings = settings_for(kafka_server.bootstrap_servers).model_copy(update=secured)
    with contextlib.closing(TopicReader(settings)) as reader, contextlib.closing(TopicWriter(settings)) as writer:
        with pytest.raises(BrokerUnavailableError):
            reader.read(topic, None, max_messages=1, max_bytes=1_000, wait_seconds=0)
        with pytest.raises(BrokerUnavailableError):
            writer.send_all(topic, [ProducerRecord(b"x")])
        file.write_text(CONNECTION_STRING)
        assert writer.send_all(topic, [ProducerRecord(b"x")]) == 1
        read = reader.read(topic, None, max_messages=1, max_bytes=1_000, wait_seconds=10)
        assert [message.value for message in read.messages] == [b"x"]


class Refusing:
    """A server that lets one authorization in, and answers 403 to every other."""

    def __init__(self, right: str, header: str = "authorization") -> None:
        self.seen: list[str] = []
        self.right, self.header = right, header
        self.http = HttpServer(self._respond)

    def _respond(self, request: Request) -> Answer:
        self.seen.append(request.headers.get(self.header, ""))
        return Answer(200 if self.right in self.seen[-1] else 403, {}, b"")


def test_s3_clients_sign_with_the_present_secret_and_a_refused_request_is_sent_again(key_vault: KeyVaultServer) -> None:
    key_vault.versions["key"] = ["first"]
    secret = SecretReference(f"keyvault://{key_vault.host}/key")
    server = Refusing("")
    with server.http:
        client = s3_client(S3Options(server.http.url, "us-east-1", "AKIAROTATED", secret))
        client.head_object(Bucket="bucket", Key="a")
        server.right = "never"
        key_vault.versions["key"].append("second")
        with pytest.raises(client.exceptions.ClientError):
            client.head_object(Bucket="bucket", Key="a")
    signatures = [seen.rpartition("Signature=")[2] for seen in server.seen]
    assert len(signatures) == 3, "once more with the new one, and no more"
    assert len(set(signatures[1:])) == 2
    assert len(key_vault.reads) == 2


def test_web_hosts_get_the_present_secret(key_vault: KeyVaultServer) -> None:
    key_vault.versions["token"] = ["first"]
    server = Refusing("second")
    port = server.http.server_address[1]
    stored = {
        "kind": "bearer", "hosts": [f"127.0.0.1:{port}"], "plain_http": True,
        "secret": f"keyvault://{key_vault.host}/token",
    }  # fmt: skip
    settings = Settings.model_validate(
        {"credentials": {"web": stored}, "downloads": {"allowed_internal_hosts": ["127.0.0.1"]}}
    )
    client = web_client(settings, 2, 2)
    with server.http:
        with pytest.raises(DownloadRejectedError), client.get(server.http.url, Deadline(timedelta(seconds=10))):
            pass
        key_vault.versions["token"].append("second")
        secrets._kept[stored["secret"]].refused_at = None  # type: ignore[index]
        with client.get(server.http.url, Deadline(timedelta(seconds=10))) as response:
            assert response.status == 200
    assert server.seen == ["Bearer first", "Bearer first", "Bearer second"]


def test_logins_to_file_servers_use_the_present_password(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.csv").write_text("x")
    with SftpServer(folder) as server:
        stored = {
            "username": USER, "password": f"file://{file}", "hosts": ["127.0.0.1"],
            "host_key_fingerprints": [server.fingerprint],
        }  # fmt: skip
        context = SourceContext(Settings.model_validate({"credentials": {"store": stored}}))
        config = {"source_type": "sftp", "host": "127.0.0.1", "port": server.port, "path": "/", "credentials": "store"}
        with pytest.raises(SourceAccessDeniedError):
            list(open_source(config, context).list_files("*"))
        file.write_text(f"{PASSWORD}\n")
        assert len(list(open_source(config, context).list_files("*"))) == 1


def test_clients_of_azure_and_delta_are_made_again_for_another_secret(file: Path) -> None:
    settings = Settings.model_validate(
        {
            "onelake": {"sas_token": f"file://{file}"},
            "storage": {"s3_access_key_id": "key", "s3_secret_access_key": f"file://{file}"},
        }
    )
    address = parse_address("https://account.dfs.core.windows.net/container/in")
    before = [delta_location(url, delta_credentials(settings)) for url in ("s3://bucket/table", address.url)]
    options = [storage_options(location) for location in before]

    def client() -> object:
        return shared_file_system(address.account_url, address.file_system, onelake_options(settings.onelake))

    first = client()
    assert client() is first
    assert [one.ended for one in options] == [False, False]
    file.write_text("another")
    assert client() is not first
    assert [one.ended for one in options] == [True, True]
    assert all("another" in storage_options(location).values.values() for location in before)


def test_a_reference_shows_where_it_is_kept_and_never_its_value(file: Path) -> None:
    secret = reference(file)
    assert secret == SecretStr("wrong")
    for shown in (
        repr(secret),
        str(secret),
        f"{secret}",
        repr(Settings.model_validate({"kafka": {"sasl_password": secret}})),
    ):
        assert "wrong" not in shown
    assert str(file) in repr(secret)
