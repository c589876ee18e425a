"""The dashboard in a browser: empty, full, on a phone, in the dark, and while parts come and go."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._daemon.types import DaemonHeartbeat
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from ingest_project.core.settings import Settings, current_settings
from ingest_project.devstack.embedded_kafka import EmbeddedBroker
from ingest_project.file_ingest.tables import files
from ingest_project.operations.alerts.incidents import incidents
from ingest_project.platform.database import open_engine
from ingest_project.platform.kafka.offsets import Positions
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project_tests.cli.test_status import save_cursor
from ingest_project_tests.operations.conftest import running
from ingest_project_tests.operations.seeding import busy_hour, file_row, put

# Installing a browser on a clean machine counts as part of the first test.
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

PAGE_SECONDS = 20.0
SENSORS = ("polling_queue_sensor", "file_event_queue_sensor", "attachment_events_sensor", "sales_events_sensor")


class Page:
    """The dashboard in the browser."""

    def __init__(self, driver: webdriver.Chrome, site: str, ingested: int = 0) -> None:
        self.driver = driver
        self.site = site
        self.ingested = ingested

    def open(self, width: int = 1400, *, dark: bool = False) -> None:
        """Open it in a window of that width."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(self.site)
        self.wait_for("live")

    def wait_for(self, text: str) -> None:
        """Until the page shows the text."""
        WebDriverWait(self.driver, PAGE_SECONDS, 0.1).until(lambda _: text in self.text(), f"{text!r} is not shown")

    def text(self) -> str:
        """All that it shows."""
        return str(self.driver.execute_script("return document.body.innerText"))

    def evaluate(self, script: str) -> object:
        """The value of an expression in the page."""
        return self.driver.execute_script(f"return {script}")

    def complaints(self) -> list[str]:
        """What the browser complains of."""
        log: list[dict[str, str]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log]

    def keep(self, name: str) -> None:
        """A picture of the whole page in the folder KEEP_SCREENSHOTS, where that is set."""
        if folder := os.environ.get("KEEP_SCREENSHOTS"):
            box: dict[str, object] = {"x": 0, "y": 0, "scale": 1}
            box |= {"width": self.evaluate("innerWidth"), "height": self.evaluate("document.body.scrollHeight")}
            call = {"clip": box, "captureBeyondViewport": True}
            picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", call)
            (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))


@pytest.fixture
def busy(
    settings_of: Callable[..., Settings],
    postgres_url: str,
    embedded_broker: EmbeddedBroker,
    dagster_instance: DagsterInstance,
    browser: webdriver.Chrome,
) -> Iterator[Page]:
    """The page of a system in full work."""
    now = datetime.now(UTC)
    ingested = busy_hour(open_engine(postgres_url), now)
    settings = settings_of(postgres_url, embedded_broker.bootstrap_servers)
    writer = TopicWriter(settings.kafka)
    for topic, messages in {
        "file-event-queue": 2_310,
        "downloads.pending": 84,
        "polling-queue": 0,
        "sales_events": 0,
    }.items():
        embedded_broker.create_topic(topic, 4)
        writer.send_all(topic, [ProducerRecord(b"{}", str(n).encode()) for n in range(messages)])
    for topic, letters in {"downloads.dlq": 7, "file-event-queue.dlq": 3}.items():
        embedded_broker.create_topic(topic, 1)
        writer.send_all(topic, [ProducerRecord(b"{}") for _ in range(letters)])
    writer.close()
    for sensor in SENSORS:
        save_cursor(dagster_instance, sensor, Positions("", {}).to_cursor(), at=now.timestamp())
    dagster_instance.add_daemon_heartbeat(DaemonHeartbeat(now.timestamp(), "SENSOR", "daemon"))
    for number, status in enumerate((DagsterRunStatus.STARTED, DagsterRunStatus.STARTED, DagsterRunStatus.STARTING)):
        tags = {"ingest/batch": "files" if number else "attachments", "ingest/batch_size": "500"}
        dagster_instance.add_run(DagsterRun(job_name="file_batch", status=status, tags=tags))
    settings = settings.model_copy(update={"dagster": current_settings().dagster, "environment": "production"})
    with running(settings) as site:
        yield Page(browser, site, ingested)


def test_a_busy_system_is_shown_without_findings(busy: Page) -> None:
    busy.complaints()
    busy.open()
    for text in (
        f"{busy.ingested:,}",
        "missing column",
        "2,310",
        "downloads.dlq",
        "Attempt 4",
        "500 files",
        f"{busy.ingested:,} files",
        "opportunities",
        "612 of 1,000 rows",
    ):
        busy.wait_for(text)
    assert busy.evaluate("document.documentElement.scrollWidth <= innerWidth")
    link = busy.evaluate("document.querySelector('#failures tbody tr:nth-child(2) a').href")
    assert "/items/file/plant_" in str(link)
    assert busy.evaluate("document.querySelector('#files svg').getAttribute('aria-label')")
    busy.keep("dashboard")
    busy.open(dark=True)
    busy.wait_for(f"{busy.ingested:,}")
    assert busy.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 20, 27)"
    busy.open(width=390)
    busy.wait_for(f"{busy.ingested:,}")
    assert busy.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it must not scroll sideways"
    assert busy.complaints() == []


def test_behind_each_chart_is_a_table_with_the_same_numbers(busy: Page) -> None:
    busy.open()
    busy.wait_for(f"{busy.ingested:,}")
    busy.evaluate("document.querySelector('#files details').open = true")
    busy.wait_for("From")
    cells = "[...document.querySelectorAll('#files tbody tr')].map(row => Number(row.cells[1].textContent))"
    assert busy.evaluate(f"{cells}.reduce((a, b) => a + b, 0)") == busy.ingested
    assert busy.evaluate("document.querySelectorAll('#files tbody tr').length") == 60


def test_the_window_is_chosen_with_a_button_and_kept(busy: Page) -> None:
    busy.open()
    busy.wait_for(f"{busy.ingested:,}")
    busy.evaluate("document.querySelector('[data-window=\"7d\"]').click()")
    WebDriverWait(busy.driver, PAGE_SECONDS).until(
        lambda _: busy.evaluate("document.querySelectorAll('#files .here').length") == 84
    )
    busy.open()
    WebDriverWait(busy.driver, PAGE_SECONDS).until(
        lambda _: busy.evaluate("document.querySelectorAll('#files .here').length") == 84
    )


def test_an_empty_system_says_so_in_every_panel(
    settings_of: Callable[..., Settings], sqlite_url: str, browser: webdriver.Chrome
) -> None:
    with running(settings_of(sqlite_url)) as site:
        page = Page(browser, site)
        page.open()
        for text in (
            "No file finished in this window",
            "Nothing has failed",
            "Nothing was downloaded",
            "The broker does not answer",
        ):
            page.wait_for(text)
        assert "NaN" not in page.text()
        assert "undefined" not in page.text()


def test_changes_are_shown_without_a_reload_and_a_silent_monitor_is_reported(
    settings_of: Callable[..., Settings], sqlite_url: str, browser: webdriver.Chrome
) -> None:
    with running(settings_of(sqlite_url)) as site:
        page = Page(browser, site)
        page.open()
        page.wait_for("Nothing has failed")
        page.evaluate("window.stayed = true")
        reason = "<img src=x onerror='document.body.remove()'> & no column 'device_id'"
        ended = datetime.now(UTC) + timedelta(seconds=1)
        opened: dict[str, Any] = dict.fromkeys(("incident_id", "condition", "severity", "summary"), "x")
        opened |= {"name": "quarantine/x", "state": "open", "link": "http://monitor.before:8080/", "examples": []}
        opened |= dict.fromkeys(("since", "opened_at", "seen_at"), ended)
        put(open_engine(sqlite_url), incidents, [opened])
        put(open_engine(sqlite_url), files, [file_row("bad.csv~1", "quarantined", ended, reason=reason)])
        page.wait_for(reason)
        # Of a monitor that was at another address: it has no link, and the rest of the page is there.
        page.wait_for("quarantine/x")
        assert page.evaluate("window.stayed") is True
    page.wait_for("the monitor has not answered for")
