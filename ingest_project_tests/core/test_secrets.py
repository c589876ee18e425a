"""Secrets that a setting names by a file or a vault, as they are read with the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest_project.core import secrets
from ingest_project.core.errors import SettingsError
from ingest_project.core.secrets import SecretReference, is_secret
from ingest_project.core.settings import Settings, load_settings
from ingest_project.core.yaml_models import leaves, variables_of

SECRET_SETTINGS = {path: variables_of(field)[0] for path, field in leaves(Settings) if is_secret(field.annotation)}
STRONG = "postgresql://user:s3cret-0123456789@127.0.0.1:9/of-"


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """References that no other test has read."""
    monkeypatch.setattr(secrets, "_kept", {})
    yield
    secrets.set_ttl(secrets.DEFAULT_TTL_SECONDS)


@pytest.mark.parametrize("path", SECRET_SETTINGS)
def test_every_secret_can_be_in_a_file(path: str, tmp_path: Path) -> None:
    name, file, value = SECRET_SETTINGS[path], tmp_path / "mounted", STRONG + path.replace(".", "-")
    file.write_text(f"{value}\r\n")
    loaded = load_settings({f"{name}_FILE": str(file)}, tmp_path)
    (setting,) = (setting for setting in loaded.each() if setting.path == path)
    assert isinstance(setting.value, SecretReference)
    assert (setting.value.get_secret_value(), setting.reference, str(setting.origin)) == (
        value, f"file://{file}", "environment",
    )  # fmt: skip
    with pytest.raises(SettingsError, match=f"{name} and {name}_FILE are both set in environment"):
        load_settings({name: value, f"{name}_FILE": str(file)}, tmp_path)
    section, _, field = path.partition(".")
    (tmp_path / "config.yaml").write_text(json.dumps({section: {f"{field}_file": str(file)}}))
    (from_yaml,) = (setting for setting in load_settings({}, tmp_path).each() if setting.path == path)
    assert (from_yaml.reference, str(from_yaml.origin)) == (f"file://{file}", "config.yaml")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "is empty"), (b"\n", "is empty"), (b"\xff", "not UTF-8"), (b"x" * 70_000, "65536")],
)
def test_a_file_that_holds_no_secret_is_named_with_its_setting(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "mounted"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=f"DATABASE_URL .from environment.: .*mounted.*{reason}"):
        load_settings({"DATABASE_URL_FILE": str(file)}, tmp_path)
    (tmp_path / ".env").write_text(f'INGEST_CREDENTIALS={{"store": {{"password_file": "{file}"}}}}\n')
    with pytest.raises(SettingsError, match=f"credentials.store.password .from .env.: .*mounted.*{reason}"):
        load_settings({}, tmp_path)


def test_the_environment_wins_over_a_file_that_dotenv_names(tmp_path: Path) -> None:
    (tmp_path / "mounted").write_text("sqlite:////from-file")
    (tmp_path / ".env").write_text(f"DATABASE_URL_FILE={tmp_path}/mounted\n")
    settings = load_settings({"DATABASE_URL": "sqlite:////given"}, tmp_path).settings
    assert settings.warehouse.database_url.get_secret_value() == "sqlite:////given"


def test_credentials_have_references_too_and_may_be_in_a_file_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "mounted").write_text("s3cret")
    stored = {
        "a": {"username": "u", "password_file": f"{tmp_path}/mounted"},
        "b": {"secret": "aws-sm://prod/api#token", "account_key": "keyvault://vault/key/3f2b"},
    }
    (tmp_path / "all").write_text(f"{json.dumps(stored)}\n")
    (tmp_path / "config.yaml").write_text(json.dumps({"credentials": stored}))
    for environ in ({"INGEST_CREDENTIALS": json.dumps(stored)}, {"INGEST_CREDENTIALS_FILE": f"{tmp_path}/all"}, {}):
        credentials = load_settings(environ, tmp_path).settings.credentials
        password = credentials["a"].password
        assert password is not None
        assert password.get_secret_value() == "s3cret"
        assert repr(credentials["b"].secret) == "SecretReference('aws-sm://prod/api#token')"
        assert repr(credentials["b"].account_key) == "SecretReference('keyvault://vault/key/3f2b')"


def test_a_list_of_secrets_may_hold_references(tmp_path: Path) -> None:
    (tmp_path / "mounted").write_text("slack://a/b/c\n")
    urls = f"keyvault://vault/slack file://{tmp_path}/mounted mailto://user:pass@example.com"
    found = load_settings({"INGEST_ALERT_URLS": urls}, tmp_path).settings.alerts.urls
    assert [isinstance(one, SecretReference) for one in found] == [True, True, False]
    assert found[1].get_secret_value() == "slack://a/b/c"
    (from_file,) = load_settings({"INGEST_ALERT_URLS_FILE": f"{tmp_path}/mounted"}, tmp_path).settings.alerts.urls
    assert from_file.get_secret_value() == "slack://a/b/c"


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("keyvault://vault", "keyvault://vault/secret"),
        ("keyvault://vault/a/b/c", "keyvault://vault/secret"),
        ("keyvault://user@vault/a", "keyvault://vault/secret"),
        ("aws-sm://", "aws-sm://secret-id"),
        ("aws-sm://a b", "aws-sm://secret-id"),
    ],
)
def test_a_malformed_reference_names_the_right_form(value: str, right: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"INGEST_MONITOR_TOKEN .*write {right}"):
        load_settings({"INGEST_MONITOR_TOKEN": value}, tmp_path)


def test_a_misspelt_file_of_a_secret_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Did you mean KAFKA_SASL_PASSWORD_FILE"):
        load_settings({"KAFKA_SASL_PASWORD_FILE": "x"}, tmp_path)
    (tmp_path / "config.yaml").write_text("warehouse: {database_url: a, database_url_file: b}")
    with pytest.raises(SettingsError, match=r"warehouse\.database_url and warehouse\.database_url_file are both set"):
        load_settings({}, tmp_path)


def test_a_token_that_is_rotated_to_a_weak_one_keeps_its_last_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "FILE_CHECK_SECONDS", 0.0)
    (tmp_path / "mounted").write_text("0123456789abcdef")
    token = load_settings({"INGEST_MONITOR_TOKEN_FILE": f"{tmp_path}/mounted"}, tmp_path).settings.monitor.token
    assert token is not None
    (tmp_path / "mounted").write_text("weak")
    assert token.get_secret_value() == "0123456789abcdef"
    monkeypatch.setattr(secrets, "_kept", {})
    with pytest.raises(SettingsError, match="it can be guessed"):
        load_settings({"INGEST_MONITOR_TOKEN_FILE": f"{tmp_path}/mounted"}, tmp_path)
