"""No output shows the value of any secret setting, whatever fails."""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psycopg2
import pytest
from dagster import DagsterError, DagsterInstance, build_sensor_context
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ingest_project.cli.main import run
from ingest_project.core.errors import IngestError, SettingsError
from ingest_project.core.logging import configure_logging
from ingest_project.core.settings import Credential, Settings, current_settings, load_settings
from ingest_project.core.yaml_models import leaves, variables_of
from ingest_project.operations import SystemResources
from ingest_project_tests.journeys.system import FILE_EVENTS, POLLING, System, changed, environment
from ingest_project_tests.operations.conftest import running
from ingest_project_tests.services.kafka import Server

# Lower case, so that it can stand in a host name, and base64, as keys of storage accounts are.
CANARY = "canary"
NOWHERE = "127.0.0.1:9"
AROUND = {
    "warehouse.database_url": f"postgresql://user:{{}}@{NOWHERE}/none",
    "dagster.postgres_url": f"postgresql://user:{{}}@{NOWHERE}/dagster",
    "eventhubs.connection_string": f"Endpoint=sb://{NOWHERE}/;SharedAccessKeyName=n;SharedAccessKey={{}};EntityPath=e",
    "alerts.webhook_url": f"http://{NOWHERE}/{{}}",
    "alerts.urls": f"json://{NOWHERE}/{{}}",
    "alerts.owners": f'{{{{"data": ["json://{NOWHERE}/{{}}"]}}}}',
    "onelake.sas_token": "sv=2026-01-01&sig={}",
    "sas_token": "sv=2026-01-01&sig={}",
}
ELSEWHERE = {
    "KAFKA_BOOTSTRAP_SERVERS": NOWHERE,
    "KAFKA_REQUEST_TIMEOUT_SECONDS": "0.2",
    "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_USERNAME": "user",
    "INGEST_LANDING_URL": "s3://bucket/landing",
    "INGEST_QUARANTINE_URL": "s3://bucket/quarantine",
    "INGEST_S3_ENDPOINT_URL": f"http://{NOWHERE}",
    "INGEST_S3_ACCESS_KEY_ID": "key",
    "INGEST_S3_REGION": "eu-central-1",
    "INGEST_EVENTHOUSE_ADDRESS": f"http://{NOWHERE}",
    "INGEST_ONELAKE_ENDPOINT": f"http://{NOWHERE}",
    "INGEST_ALLOWED_SOURCE_HOSTS": "127.0.0.1",
    "INGEST_ALLOWED_INTERNAL_HOSTS": "127.0.0.1",
}
COMMANDS = (
    ("config",),
    ("config", "--json"),
    ("status",),
    ("files", "list"),
    ("attachments", "list"),
    ("quarantine", "list"),
    ("dlq", "list"),
    ("sources", "list", "--json"),
    ("sources", "test", "sftp"),
    ("sources", "test", "ftp"),
    ("sources", "test", "s3"),
    ("sources", "test", "http"),
    ("activity", "hour", "2026-01-01-00:00"),
    ("crm", "unidentified", "list"),
    ("trace", "some-trace"),
    ("send", "file-event", "a.csv"),
    ("alerts", "list"),
    ("alerts", "test"),
    ("migrate",),
    ("retention", "--dry-run"),
    ("monitor", "--host", "203.0.113.1", "--port", "0"),
)


def secret_fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for path, field in leaves(model):
        if "SecretStr" in str(field.annotation):
            yield path, field


def canary(path: str) -> str:
    """The value of one secret: no two are the same, and none is part of anything else."""
    letters = "".join(letter for letter in path if letter.isalnum())
    return (CANARY + letters).ljust(40, "x")


def value_of(path: str) -> str:
    return AROUND.get(path, "{}").format(canary(path))


def stored_credential() -> dict[str, Any]:
    secrets = {path: value_of(path) for path, _ in secret_fields(Credential)}
    return {**secrets, "username": "user", "access_key_id": "key", "account_name": "account", "hosts": ["127.0.0.1"]}


def variables() -> dict[str, str]:
    """The environment of a system all of whose secrets are set, and none of whose services answer."""
    all_of_it, no_key = stored_credential(), {"account_key": None, "account_name": None}
    sources = {kind: {"source_config": config, "every_seconds": 60} for kind, config in source_configs().items()}
    return {
        **{variables_of(field)[0]: value_of(path) for path, field in secret_fields(Settings)},
        **ELSEWHERE,
        # A store takes one of the two.
        "INGEST_CREDENTIALS": json.dumps({"all": all_of_it, "sas": {**all_of_it, **no_key}}),
        "INGEST_SOURCES": json.dumps(sources),
    }


def source_configs() -> dict[str, dict[str, Any]]:
    with_all = {"credentials": "all"}
    return {
        "ftp": {"source_type": "ftp", "host": "127.0.0.1", "port": 9, "path": "/in", **with_all},
        "sftp": {"source_type": "sftp", "host": "127.0.0.1", "port": 9, "path": "/in", **with_all},
        "http": {"source_type": "http", "path": f"http://{NOWHERE}/in/", **with_all},
        "s3": {"source_type": "s3", "bucket": "bucket", "path": "in", "endpoint_url": f"http://{NOWHERE}", **with_all},
        "onelake": {"source_type": "onelake", "path": "ws/lake.Lakehouse/Files/in", "credentials": "sas"},
    }


def leaks(text: str) -> list[str]:
    """Surroundings of every canary in a text."""
    return [text[max(0, found.start() - 80) : found.start() + 60] for found in re.finditer(CANARY, text)]


def told(action: Callable[[], object]) -> str:
    """What fails, as Dagster records it and a log shows it: with all causes."""
    try:
        action()
    except (IngestError, DagsterError) as error:
        return "".join(traceback.format_exception(error))
    return ""


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """The project's own log, of all levels."""
    file = tmp_path / "log.jsonl"
    settings = load_settings({"LOG_FILE": str(file), "LOG_LEVEL": "DEBUG"}, tmp_path).settings.logging
    logger = logging.getLogger("ingest_project")
    before = logger.handlers, logger.level, logger.propagate
    configure_logging(settings)
    yield file
    for handler in logger.handlers:
        handler.close()
    logger.handlers, logger.level, logger.propagate = before


def test_every_secret_setting_is_marked_as_secret() -> None:
    names = ("password", "secret", "token", "account_key", "passphrase", "connection_string", "database_url", "webhook")
    for model in (Settings, Credential):
        secrets = {path for path, _ in secret_fields(model)}
        for path, _field in leaves(model):
            assert path in secrets or not any(name in path.rpartition(".")[2] for name in names), path


@pytest.fixture
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find no settings but those of the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INGEST_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("INGEST_STATE_DIR", str(tmp_path / "state"))


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_prints_a_secret(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    for name, value in variables().items():
        monkeypatch.setenv(name, value)
    if "monitor" in arguments:
        monkeypatch.delenv("INGEST_MONITOR_TOKEN")
        monkeypatch.delenv("INGEST_MONITOR_OPERATOR_TOKEN")
    run(arguments)
    printed = capfd.readouterr()
    assert leaks(printed.out + printed.err) == []
    assert "No such command" not in printed.err


@pytest.mark.usefixtures("in_empty_folder")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("INGEST_CREDENTIALS", f'{{"all": {{"password": "{CANARY}", }}'),
        ("INGEST_CREDENTIALS", f'{{"all": "{CANARY}"}}'),
        ("INGEST_SOURCES", f'{{"a": {{"source_config": {{"password": "{CANARY}"}}}}}}'),
        ("DATABASE_URL", f"postgresql//{CANARY}"),
    ],
)
def test_a_setting_that_is_wrong_is_refused_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert run(["status"])
    printed = capfd.readouterr()
    assert leaks(printed.out + printed.err) == []


@pytest.mark.parametrize(
    "content",
    [
        f'{{all: {{password: "{CANARY}}}}}',
        f"\n  all:\n    password: {CANARY}\n   secret: {CANARY}",
        f"\n  all: {CANARY}",
        f"\n  all: {{passwort: {CANARY}}}",
        *(f"\n  all:\n    password: {first}{CANARY}" for first in ("*", "!", "@", "%", "`", "\x07")),
    ],
)
def test_a_config_file_that_is_wrong_is_refused_without_its_secrets(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(f"credentials: {content}\n")
    with pytest.raises(SettingsError, match=r"credentials|not YAML: "):
        load_settings({}, tmp_path)
    assert leaks(told(lambda: load_settings({}, tmp_path))) == []


def test_an_unreachable_service_shows_no_secret(tmp_path: Path, log_file: Path) -> None:
    settings = load_settings({**variables(), "INGEST_STATE_DIR": str(tmp_path)}, tmp_path).settings
    services = SystemResources(settings)
    ways: dict[str, Callable[[], object]] = {
        "warehouse": lambda: services.files.get("a.csv~1"),
        "rows": lambda: services.warehouse.transaction().__enter__(),
        "kafka": lambda: services.reader.end_offsets("topic"),
        "event hub": lambda: services.event_hub_reader.end_offsets("e"),
        "landing": lambda: services.landing.find("ab" * 32),
        "eventhouse": lambda: services.eventhouse,
        **{
            kind: lambda config=config: list(services.open_source(config).list_files("*"))  # type: ignore[misc]
            for kind, config in source_configs().items()
        },
    }
    said = {name: told(action) for name, action in ways.items()}
    assert [name for name, text in said.items() if not text] == [], "each of them is to fail"
    assert [name for name in source_configs() if "SourceUnreachableError" not in said[name]] == []
    assert {name: leaks(text) for name, text in said.items() if leaks(text)} == {}
    assert leaks(repr(settings) + str(settings.model_dump()) + settings.model_dump_json()) == []
    assert leaks(log_file.read_text() if log_file.exists() else "") == []


def test_a_failing_tick_shows_no_secret(instance: DagsterInstance, tmp_path: Path, log_file: Path) -> None:
    from ingest_project.definitions import defs  # reads the settings of the process

    environ = {**variables(), "INGEST_STATE_DIR": str(tmp_path), "INGEST_EVENTHOUSE_QUERIES": str(tmp_path)}
    settings = load_settings(environ, tmp_path).settings
    repository = defs.get_repository_def()
    for sensor in repository.sensor_defs:
        # Without room the sensors only say so, and what alerts are sent is an address that does not answer.
        room = 2**62 if sensor.name == "alerts_sensor" else 0
        services = SystemResources(changed(settings, "backpressure", min_free_disk_bytes=room))
        with build_sensor_context(
            instance=instance, resources={"services": services}, repository_def=repository
        ) as context:
            said = told(lambda sensor=sensor, context=context: sensor.evaluate_tick(context))  # type: ignore[misc]
        assert said or sensor.name == "eventhouse_sensor", f"{sensor.name} is to fail"
        assert leaks(said) == [], sensor.name
    assert leaks(log_file.read_text() if log_file.exists() else "") == []


def test_neither_the_monitor_nor_its_log_shows_a_secret(tmp_path: Path, log_file: Path) -> None:
    settings = load_settings({**variables(), "INGEST_STATE_DIR": str(tmp_path)}, tmp_path).settings
    token = settings.monitor.token.get_secret_value() if settings.monitor.token else ""
    with running(settings) as address:
        for path in ("/", "/dashboard.json", "/metrics", "/readyz", "/healthz", "/login"):
            for headers in ({"Authorization": f"Bearer {token}"}, {}):
                assert leaks(answer_of(f"{address}{path}", headers)) == [], path
    assert leaks(log_file.read_text()) == []


def answer_of(url: str, headers: dict[str, str]) -> str:
    try:
        with urlopen(Request(url, headers=headers), timeout=60) as answer:  # noqa: S310 - loopback
            return f"{answer.headers}{answer.read().decode()}"
    except HTTPError as refusal:
        with refusal:
            return f"{refusal.headers}{refusal.read().decode()}"


def test_neither_dagster_nor_the_ledger_keeps_a_secret_of_what_failed(  # noqa: PLR0913, PLR0917 - two databases
    kafka_server: Server,
    postgres_url: str,
    instance: DagsterInstance,
    tmp_path: Path,
    log_file: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "in").mkdir()
    secret_url = postgres_url.replace("postgres@", f"postgres:{canary('warehouse')}@")
    environ = {
        **variables(),
        **environment(kafka_server.bootstrap_servers, secret_url, tmp_path),
        "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT",
        "INGEST_QUARANTINE_URL": "",
        "MAX_RETRIES": "1",
    }
    system = System(load_settings(environ, tmp_path).settings, instance, tmp_path / "in")
    quick = {kind: config for kind, config in source_configs().items() if kind != "onelake"}
    for kind, config in quick.items():
        system.send(system.settings.topics.polling_queue, {"job_id": kind, "source_config": config})
        event = {"file_path": f"{config['path']}/a.csv", "file_name": "a.csv", "source_type": kind, "etag": "1"}
        rest = {name: value for name, value in config.items() if name != "source_type"}
        system.send(system.settings.topics.file_event_queue, {**event, "source_config": rest})
    system.send_files(system.write("readable.csv", "no header\n"))
    runs = [system.execute("polling_batch", request) for request in system.requests(POLLING)]
    runs += [system.execute("file_batch", request) for request in system.requests(FILE_EVENTS)]
    kept = contents(postgres_url) + contents(current_settings().dagster.postgres_url.get_secret_value())
    system.close()

    assert len(runs) >= 2
    assert "127.0.0.1" in kept
    assert leaks(kept) == []
    assert leaks(log_file.read_text()) == []
    printed = capfd.readouterr()
    assert leaks(printed.out + printed.err) == []


def contents(database_url: str) -> str:
    """Every row of every table, as text."""
    connection = psycopg2.connect(database_url)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            tables = [name for (name,) in cursor.fetchall()]
            rows = []
            for table in tables:
                cursor.execute(f'SELECT CAST(t AS text) FROM "{table}" AS t')
                rows += [text for (text,) in cursor.fetchall()]
    finally:
        connection.close()
    return "\n".join(rows)
