"""Alerts arrive over webhooks and Apprise addresses, and a failing channel shows no secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations import SystemResources
from ingest_project.operations.alerts import (
    CHANNELS,
    Alert,
    AlertChannel,
    AlertDeliveryError,
    channels,
    channels_of,
    deliver,
    plain,
    require_usable,
    send,
    send_to_url,
    title_of,
)
from ingest_project.operations.alerts.watch import send_test
from ingest_project.operations.definitions import alerts_sensor
from ingest_project.testing.alert_channels import AlertChannelContract
from ingest_project_tests.services import listener as silent
from ingest_project_tests.services.alert_receivers import Listener, MailServer

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BEGUN = [Alert("firing", "job/a", "The last run of a failed.", "http://ui/runs/1", NOW)]


def test_the_subject_of_several_alerts_names_their_conditions() -> None:
    letters = Alert("firing", "dead_letters/t.dlq", "2 new", "http://ui/", NOW, condition="dead_letters")
    over = Alert("resolved", "lag/t", "much", "http://ui/", NOW, NOW, condition="lag")
    assert title_of("test", [letters, *BEGUN, over]) == "[test] 2 firing: dead letters, job/a; 1 resolved: lag"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_webhook_that_redirects_takes_the_alerts_nowhere_else(status: int) -> None:
    with silent.Listener() as elsewhere:
        with (
            silent.Redirecting(f"http://127.0.0.1:{elsewhere.port}/", status) as hook,
            pytest.raises(AlertDeliveryError, match=f"answered {status}"),
        ):
            deliver(SecretStr(f"{hook.url}/hook-secret"), "test", BEGUN)
        assert [(method, path) for method, path, _ in hook.requests] == [("POST", "/hook-secret")]
        assert elsewhere.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}\\.example.com/hook-secret",
        "http://example.com@127.0.0.1:{port}/hook-secret",
        "http://2130706433:{port}/hook-secret",
        "http://[::1/hook-secret",
        "ftp://127.0.0.1:{port}/hook-secret",
        "hook-secret",
    ],
)
def test_an_address_that_is_not_read_alike_by_everybody_gets_no_alerts(url: str) -> None:
    with silent.Listener() as elsewhere:
        with pytest.raises(AlertDeliveryError) as caught:
            deliver(SecretStr(url.format(port=elsewhere.port)), "test", BEGUN)
        assert "hook-secret" not in str(caught.value)
        assert elsewhere.connections == 0


def test_a_webhook_that_refuses_is_an_error_that_does_not_show_its_address(listener: Listener) -> None:
    listener.status = 500
    with pytest.raises(AlertDeliveryError, match="answered 500") as caught:
        deliver(SecretStr(listener.url), "test", BEGUN)
    assert "hook-secret" not in str(caught.value)
    with pytest.raises(AlertDeliveryError) as caught:
        deliver(SecretStr("http://127.0.0.1:1/hook-secret"), "test", BEGUN)
    assert "hook-secret" not in str(caught.value)


@dg.op
def break_or_not(context) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001 - Dagster cannot read it as text
    if context.run.tags.get("break"):
        raise dg.Failure("broken on purpose")


@dg.job
def fragile_job() -> None:
    break_or_not()


def test_a_job_that_fails_and_is_fixed_is_reported_through_the_webhook(
    listener: Listener, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    variables = {
        "INGEST_ALERT_WEBHOOK_URL": listener.url,
        "INGEST_ALERT_RESOLVE_AFTER_SECONDS": "0",
        "INGEST_STATE_DIR": str(tmp_path),
        "RETRY_DELAY": "0",
    }
    services = SystemResources(load_settings(variables, tmp_path).settings)
    definitions = dg.Definitions(jobs=[fragile_job], sensors=[alerts_sensor], resources={"services": services})

    def tick() -> None:
        repository = definitions.get_repository_def()
        context = dg.build_sensor_context(
            instance=instance, resources={"services": services}, repository_def=repository
        )
        repository.get_sensor_def(alerts_sensor.name).evaluate_tick(context)

    tick()
    fragile_job.execute_in_process(instance=instance, tags={"break": "yes"}, raise_on_error=False)
    listener.status = 503
    with pytest.raises(Exception, match="answered 503"):
        tick()
    listener.status = 200
    tick()
    tick()
    fragile_job.execute_in_process(instance=instance)
    tick()

    received = [(alert["status"], alert["incident"]) for message in listener.messages for alert in message["alerts"]]
    assert received == [("firing", "job/fragile_job"), ("resolved", "job/fragile_job")]
    assert "/runs/" in listener.messages[0]["text"]


def apprise_url(listener: Listener) -> str:
    return f"json://{listener.url.removeprefix('http://')}"


def test_every_channel_reports_the_outcome_of_a_test_message(listener: Listener, mail_server: MailServer) -> None:
    mail = f"mailto://127.0.0.1:{mail_server.port}?from=ingest@example.com&to=a@example.com,b@example.com&mode=insecure"
    urls = [apprise_url(listener), mail, "json://127.0.0.1:1/canary-secret"]
    owners = {"data": [apprise_url(listener)]}
    settings = Settings.model_validate({"alerts": {"webhook_url": listener.url, "urls": urls, "owners": owners}})
    outcomes = send_test(settings)
    assert [name for name, problem in outcomes.items() if problem is None] == [
        "webhook",
        "urls.1.json",
        "urls.2.mailto",
        "owners.data.1.json",
    ]
    assert "canary" not in str(outcomes)
    assert "connection error" in str(outcomes["urls.3.json"]).lower()
    assert len(listener.messages) == 3
    assert [message["To"] for message in mail_server.messages] == ["a@example.com", "b@example.com"]
    assert "This is a test" in mail_server.messages[0].as_string()
    assert list(send_test(settings, "data")) == ["owners.data.1.json"]


def test_alerts_of_an_owner_go_to_the_owners_addresses_and_the_webhook() -> None:
    alerts = {"webhook_url": "http://h/", "urls": ["json://all"], "owners": {"data": ["json://a", "slack://b"]}}
    settings = Settings.model_validate({"alerts": alerts})
    assert [*channels_of(settings, "data")] == ["webhook", "owners.data.1.json", "owners.data.2.slack"]
    assert [*channels_of(settings, "unknown")] == [*channels_of(settings, None)] == ["webhook", "urls.1.json"]


def test_a_service_that_apprise_does_not_know_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(SettingsError, match="address 2: Apprise knows no service 'slak', did you mean slack") as caught:
        require_usable(Settings.model_validate({"alerts": {"urls": ["json://localhost", "slak://canary/token/x"]}}))
    assert "canary" not in str(caught.value)
    with pytest.raises(SettingsError, match="data, address 1: Apprise cannot use it as an address of slack") as caught:
        require_usable(Settings.model_validate({"alerts": {"owners": {"data": ["slack://canary"]}}}))
    assert "canary" not in str(caught.value)


def test_an_address_can_be_a_reference_to_a_secret(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(apprise_url(listener) + "\n")
    reference = f"file://{tmp_path}/url"
    for variables in (
        {"INGEST_ALERT_URLS": reference},
        {"INGEST_ALERT_URLS_FILE": f"{tmp_path}/url"},
        {"INGEST_ALERT_OWNERS": json.dumps({"data": [reference]}), "INGEST_ALERT_WEBHOOK_URL": listener.url},
    ):
        settings = load_settings(variables, tmp_path).settings
        require_usable(settings)
        assert set(send_test(settings).values()) == {None}
    # A vault is not asked before there is something to send.
    require_usable(load_settings({"INGEST_ALERT_URLS": "keyvault://none/secret"}, tmp_path).settings)
    (tmp_path / "other").write_text("canary")
    with pytest.raises(SettingsError, match="no URL of Apprise") as caught:
        load_settings({"INGEST_ALERT_URLS": f"file://{tmp_path}/other"}, tmp_path)
    assert "canary" not in str(caught.value)


def test_a_service_that_redirects_takes_the_alerts_nowhere_else() -> None:
    with silent.Listener() as elsewhere, silent.Redirecting(f"http://127.0.0.1:{elsewhere.port}/", 307) as hook:
        url = SecretStr(hook.url.replace("http://", "json://") + "/canary-secret")
        with pytest.raises(AlertDeliveryError) as caught:
            send_to_url(url, Settings(), BEGUN)
        assert elsewhere.connections == 0
        assert "canary" not in str(caught.value)


def test_names_of_strangers_are_no_mentions_links_or_templates(listener: Listener) -> None:
    name = plain("<!channel> @everyone [win](http://evil)\x1b[2J\nOVER: {{app_id}} :smile: " + "x" * 1_000)
    assert len(name) <= 500
    assert "\n" not in name
    assert "\x1b" not in name
    assert "@everyone" not in name
    assert "](" not in name
    assert "<" not in name
    send_to_url(SecretStr(apprise_url(listener)), Settings(), [Alert("firing", "x", name, "http://ui/", NOW)])
    (message,) = listener.messages
    assert "{{app_id}} :smile:" in message["message"]


def test_a_channel_of_another_package_shows_no_secret_when_it_fails() -> None:
    def broken(_settings: Settings, _alerts: Sequence[Alert]) -> None:
        raise ValueError("http://canary-secret")

    with pytest.raises(AlertDeliveryError) as caught:
        send(Settings(), "bell", broken, BEGUN)
    assert str(caught.value) == "bell did not accept the alerts: ValueError. They are sent again."


class TestWebhook(AlertChannelContract):
    """The shipped channel passes the contract suite."""

    @pytest.fixture
    def channel(self) -> AlertChannel:
        """The webhook."""
        return CHANNELS["webhook"]

    @pytest.fixture
    def settings(self, listener: Listener) -> Settings:
        """Of a webhook that accepts alerts."""
        return Settings.model_validate({"alerts": {"webhook_url": listener.url}})

    @pytest.fixture
    def received(self, listener: Listener) -> Callable[[], str]:
        """All messages."""
        return lambda: json.dumps(listener.messages, ensure_ascii=False)

    @pytest.fixture
    def unreachable(self) -> Settings:
        """Of a webhook that is not there."""
        return Settings.model_validate({"alerts": {"webhook_url": "http://127.0.0.1:1/hook-secret"}})


class TestApprise(AlertChannelContract):
    """An address of Apprise passes the contract suite."""

    @pytest.fixture
    def channel(self) -> AlertChannel:
        """All addresses of the settings."""

        def send_all(settings: Settings, alerts: Sequence[Alert]) -> None:
            for one in channels(settings).values():
                one(settings, alerts)

        return send_all

    @pytest.fixture
    def settings(self, listener: Listener) -> Settings:
        """Of a service that accepts alerts."""
        return Settings.model_validate({"alerts": {"urls": [apprise_url(listener)]}})

    @pytest.fixture
    def received(self, listener: Listener) -> Callable[[], str]:
        """All messages."""
        return lambda: json.dumps(listener.messages, ensure_ascii=False)

    @pytest.fixture
    def unreachable(self) -> Settings:
        """Of a service that is not there."""
        return Settings.model_validate({"alerts": {"urls": ["json://127.0.0.1:1/hook-secret"]}})
