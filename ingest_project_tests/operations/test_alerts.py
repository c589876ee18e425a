"""An incident is reported once when it begins and once when it is over."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from pydantic import SecretStr

from ingest_project.core.settings import Settings, load_settings
from ingest_project.operations import SystemResources
from ingest_project.operations.definitions import (
    CHANNELS,
    AlertChannel,
    AlertCondition,
    AlertDeliveryError,
    alerts_sensor,
    compare,
    deliver,
)
from ingest_project.testing.alert_channels import AlertChannelContract
from ingest_project_tests.services import listener as silent

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BROKEN = AlertCondition("job/a", "The last run of a failed.", "http://ui/runs/1")


class Listener:
    """A webhook that keeps its messages, and refuses while `status` says so."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.status = 200
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if owner.status == 200:
                    owner.messages.append(json.loads(body))
                self.send_response(owner.status)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Nothing on the tests' screen."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook-secret"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listening = Listener()
    yield listening
    listening.close()


def test_an_incident_is_reported_when_it_begins_and_when_it_is_over_and_not_in_between() -> None:
    known, begun = compare({}, [BROKEN], NOW)
    assert [(alert.status, alert.incident) for alert in begun] == [("firing", "job/a")]
    still, nothing = compare(known, [BROKEN], NOW + timedelta(minutes=5))
    assert nothing == []
    assert still["job/a"].since == NOW
    gone, over = compare(still, [], NOW + timedelta(minutes=9))
    assert gone == {}
    assert [(alert.status, alert.since, alert.ended_at) for alert in over] == [
        ("resolved", NOW, NOW + timedelta(minutes=9))
    ]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_webhook_that_redirects_takes_the_alerts_nowhere_else(status: int) -> None:
    _, begun = compare({}, [BROKEN], NOW)
    with silent.Listener() as elsewhere:
        with (
            silent.Redirecting(f"http://127.0.0.1:{elsewhere.port}/", status) as hook,
            pytest.raises(AlertDeliveryError, match=f"answered {status}"),
        ):
            deliver(SecretStr(f"{hook.url}/hook-secret"), "test", begun)
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
    _, begun = compare({}, [BROKEN], NOW)
    with silent.Listener() as elsewhere:
        with pytest.raises(AlertDeliveryError) as caught:
            deliver(SecretStr(url.format(port=elsewhere.port)), "test", begun)
        assert "hook-secret" not in str(caught.value)
        assert elsewhere.connections == 0


def test_a_webhook_that_refuses_is_an_error_that_does_not_show_its_address(listener: Listener) -> None:
    listener.status = 500
    _, begun = compare({}, [BROKEN], NOW)
    with pytest.raises(AlertDeliveryError, match="answered 500") as caught:
        deliver(SecretStr(listener.url), "test", begun)
    assert "hook-secret" not in str(caught.value)
    with pytest.raises(AlertDeliveryError) as caught:
        deliver(SecretStr("http://127.0.0.1:1/hook-secret"), "test", begun)
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
    services = SystemResources(load_settings({"INGEST_ALERT_WEBHOOK_URL": listener.url}, tmp_path).settings)
    definitions = dg.Definitions(jobs=[fragile_job], sensors=[alerts_sensor], resources={"services": services})

    def tick(cursor: str | None) -> str | None:
        repository = definitions.get_repository_def()
        context = dg.build_sensor_context(
            instance=instance, cursor=cursor, resources={"services": services}, repository_def=repository
        )
        return repository.get_sensor_def(alerts_sensor.name).evaluate_tick(context).cursor

    cursor = tick(None)
    fragile_job.execute_in_process(instance=instance, tags={"break": "yes"}, raise_on_error=False)
    listener.status = 503
    with pytest.raises(Exception, match="answered 503"):
        tick(cursor)
    listener.status = 200
    cursor = tick(tick(cursor))
    fragile_job.execute_in_process(instance=instance)
    tick(cursor)

    received = [(alert["status"], alert["incident"]) for message in listener.messages for alert in message["alerts"]]
    assert received == [("firing", "job/fragile_job"), ("resolved", "job/fragile_job")]
    assert "/runs/" in listener.messages[0]["text"]


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
