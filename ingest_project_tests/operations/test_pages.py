"""Every page of the console in a browser: accessible, in both colour schemes, on a phone, and with parts away."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.resources import files as files_of
from pathlib import Path
from typing import Any
from urllib.parse import quote

import axe_core_python
import pytest
import sqlalchemy as sa
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from ingest_project.core.settings import Settings
from ingest_project.devstack.embedded_kafka import EmbeddedBroker
from ingest_project.file_ingest.tables import files, quarantined_rows, raw_sensor_data
from ingest_project.platform.actions import operator_action_items, operator_actions
from ingest_project.platform.database import open_engine
from ingest_project.platform.kafka.consumer import ConsumerRecord
from ingest_project.platform.kafka.dead_letters import dead_letter
from ingest_project.platform.kafka.producer import ProducerRecord, TopicWriter
from ingest_project_tests.operations.conftest import running
from ingest_project_tests.operations.seeding import busy_hour, file_row, put

pytestmark = [pytest.mark.timeout(600), pytest.mark.long]

KEY = "line_7_2026-11-29.csv~mfrggzdfmztwq2lknnwg23tpoa"
# What moves without an action of the person.
SHIFTS = """
window.shifts = [];
new PerformanceObserver(list => window.shifts.push(...list.getEntries().filter(one => !one.hadRecentInput).map(one =>
  `${one.value}: ${one.sources.map(source => source.node?.id || source.node?.className || source.node?.nodeName)}`)))
  .observe({ type: "layout-shift", buffered: true });
"""
SOME_TOKEN = "the-token-of-viewers"  # noqa: S105 - of this test
# A part that is drawn again has other elements: the list is made each time.
# A field of date and time has a stop for each of its parts.
MOST_PARTS = 8
CONTROLS = """
const all = "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0']";
// What is inside of a closed "details" is laid out, and not visible.
const controls = [...document.querySelectorAll(all)].filter(one => one.checkVisibility({visibilityProperty: true}));
const one = document.activeElement, style = getComputedStyle(one);
const isMarked = style.outlineStyle !== "none" || one.matches("input, select, textarea");
return [controls.length, controls.indexOf(one), isMarked];
"""
AXE = """
const done = arguments[arguments.length - 1];
axe.run(document).then(found => done(found.violations.map(one =>
  `${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map(node => node.html + node.failureSummary).join(" | ")}`)));
"""


@pytest.fixture
def site(settings_of: Callable[..., Settings], postgres_url: str, embedded_broker: EmbeddedBroker) -> Iterator[str]:
    """The console of a busy system, with one file that has everything."""
    now = datetime.now(UTC)
    engine = open_engine(postgres_url)
    busy_hour(engine, now)
    settings = settings_of(postgres_url, embedded_broker.bootstrap_servers)
    embedded_broker.create_topic("file-event-queue", 1)
    writer = TopicWriter(settings.kafka)
    headers = (("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("source", b"plant-7"))
    writer.send_all("file-event-queue", [ProducerRecord(b'{"file_name": "line_7"}', b"line_7", headers)])
    embedded_broker.create_topic("file-event-queue.dlq", 1)
    refused = ConsumerRecord("file-event-queue", 0, 0, None, b"line_7", b"{", ())
    _, letter = dead_letter(
        refused,
        error_class="UnreadableMessageError",
        reason="Not JSON: " + 300 * "x",
        first_failed_at=now,
        last_failed_at=now,
        topic_id="",
    )
    writer.send_all("file-event-queue.dlq", [letter, letter])
    writer.close()
    _put_file(engine, datetime.now(UTC))
    _put_actions(engine, datetime.now(UTC))
    with running(settings) as address:
        yield address


@pytest.fixture
def locked_site(settings_of: Callable[..., Settings]) -> Iterator[str]:
    """A console that asks who somebody is."""
    with running(settings_of(token=SOME_TOKEN)) as address:
        yield address


def _put_file(engine: sa.Engine, now: datetime) -> None:
    known: dict[str, Any] = {
        "batch_id": "files-7",
        "run_id": "0f6d3c1e-7a54-4c5d-9d0e-2f7a8b1c3d5e",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }
    ended = now
    row = file_row(
        KEY,
        "ingested",
        ended,
        **known,
        sha256="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        file_name="line_7_2026-11-29.csv",
        file_path="/data/in/line_7_2026-11-29.csv",
        job_id="hourly_lines",
        size_bytes=48_213,
        etag='"5d41402abc4b2a76b9719d911017c592"',
        rows_accepted=997,
        rows_quarantined=3,
        rule_counts={"value_out_of_range": 2, "timestamp_in_future": 1},
        kafka_offset=0,
        kafka_topic_id="",
        stands=True,
    )
    others = [file_row(f"line_{n}_2026-11-29.csv~{n:026d}", "ingested", ended, **known) for n in range(8, 12)]
    put(engine, files, [row])
    put(engine, files, others)
    readings = [
        {
            "timestamp": ended + timedelta(seconds=n),
            "device_id": f"press-{n % 4}",
            "sensor_type": "temperature",
            "value": 20.0 + n % 9,
            "unit": "C",
            "file_key": KEY,
            "line_number": n + 2,
        }
        for n in range(120)
    ]
    put(engine, raw_sensor_data, readings)
    put(
        engine,
        quarantined_rows,
        [
            {
                "file_key": KEY,
                "line_number": n,
                "raw_text": f"2026-11-29T10:00:0{n}Z,press-{n},temperature,99999,C",
                "reasons": ["value_out_of_range"],
            }
            for n in range(3)
        ],
    )


def _put_actions(engine: sa.Engine, now: datetime) -> None:
    for number, (name, reason) in enumerate(
        (
            ("release-files", "The plant corrected its unit table."),
            ("replay-attachments", "The server of the claims portal answers again."),
            ("reprocess-files", "Profile `legacy` reads the new column."),
        )
    ):
        began = now + timedelta(seconds=1) - timedelta(minutes=20 * number)
        record = {
            "action_id": f"{number:032d}",
            "action": name,
            "who": "anna@example.com",
            "reason": reason,
            "parameters": {"key": KEY},
            "item_limit": 100,
            "started_at": began,
            "finished_at": began + timedelta(seconds=2),
            "outcome": "done",
            "selected": 12,
            "remaining": 0,
            "done": 12,
            "failed": 0,
            "detail": "They are pending again.",
        }
        put(engine, operator_actions, [record])
        if number == 0:
            put(
                engine,
                operator_action_items,
                [{"action_id": record["action_id"], "item_key": KEY, "outcome": "done", "reason": None}],
            )


PAGES = {
    "dashboard": "",
    "search": "search",
    "search-hits": "search?q=plant_0",
    "search-nothing": "search?q=nothing-of-that-name",
    "item": f"items/file/{quote(KEY, safe='~')}",
    "message": "items/message/file-event-queue/0/0",
    "missing": "items/file/nothing",
    "actions": "actions",
    "form": "actions/release-quarantined-files",
    "preview": "actions/release-quarantined-files",
    "audit": "audit",
    "record": f"audit/{0:032d}",
    "dead-letters": "dead-letters",
    "problem": f"audit/{9:032d}",
}
BY_KEYBOARD = ("dashboard", "item", "form", "audit")

# Of the documentation.
PICTURES = ("item", "actions", "audit")


def test_no_page_has_a_barrier_in_light_or_dark_or_on_a_phone(
    site: str, locked_site: str, browser: webdriver.Chrome
) -> None:
    script = (os.environ.get("AXE_CORE") and Path(os.environ["AXE_CORE"]).read_text(encoding="utf-8")) or (
        files_of(axe_core_python) / "axe.min.js"
    ).read_text(encoding="utf-8")
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": SHIFTS})
    problems: list[str] = []
    for name, path in (PAGES | {"login": f"{locked_site}/login"}).items():
        for dark in (False, True):
            for width in (360, 1_400):
                _open(browser, path if "://" in path else f"{site}/{path}", width, dark=dark)
                if name == "preview":
                    browser.find_element(By.CSS_SELECTOR, "main form button[type=submit]").click()
                    shown = WebDriverWait(browser, 20, ignored_exceptions=[WebDriverException])
                    shown.until(lambda window: window.find_element(By.TAG_NAME, "h1").text.endswith(": preview"))
                where = f"{name}, {width} px{', dark' if dark else ''}"
                problems += [f"{where}: it moves by {one}" for one in browser.execute_script("return window.shifts")]
                if browser.execute_script("return document.documentElement.scrollWidth > innerWidth"):
                    problems.append(f"{where}: it scrolls sideways")
                # axe looks at colours and names, which the width does not change.
                if width == 1_400:
                    # The page's own rules forbid any script but its own: this one comes through the debugger.
                    browser.execute_cdp_cmd("Runtime.evaluate", {"expression": script})
                    problems += [f"{where}: {one}" for one in browser.execute_async_script(AXE)]
                if name in PICTURES and width > 360 and not dark:
                    _keep(browser, name)
    assert problems == []


def test_every_control_is_reached_and_used_with_the_keyboard(site: str, browser: webdriver.Chrome) -> None:
    for name in BY_KEYBOARD:
        _open(browser, f"{site}/{PAGES[name]}", 1_400, dark=False)
        number, *_ = browser.execute_script(CONTROLS)
        assert number > 8
        for position in range(number):
            for _ in range(MOST_PARTS):
                ActionChains(browser).send_keys(Keys.TAB).perform()
                _, reached, is_marked = browser.execute_script(CONTROLS)
                if reached != position - 1:
                    break
            assert (reached, is_marked) == (position, True), f"{name}: control {position}"
    _open(browser, f"{site}/", 1_400, dark=False)
    for keys, pressed in ((Keys.ENTER, "24h"), (Keys.SPACE, "1h")):
        button = browser.find_element(By.CSS_SELECTOR, f"[data-window='{pressed}']")
        browser.execute_script("arguments[0].focus()", button)
        ActionChains(browser).send_keys(keys).perform()
        assert button.get_attribute("aria-pressed") == "true"
    # By script: an answer of the server may replace the element at any time, and keeps the focus and what is open.
    browser.execute_script("document.querySelector('summary').focus()")
    ActionChains(browser).send_keys(Keys.SPACE).perform()
    assert browser.execute_script("return document.querySelector('summary').parentElement.open")
    browser.execute_script("document.querySelector('.skip').focus()")
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return document.activeElement.id") == "main"
    search = browser.find_element(By.ID, "search")
    search.send_keys("nothing", Keys.ESCAPE)
    assert search.get_attribute("value") == ""
    search.send_keys(KEY, Keys.ENTER)
    assert "/items/file/" in browser.current_url


def _open(browser: webdriver.Chrome, address: str, width: int, *, dark: bool) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)


def _keep(browser: webdriver.Chrome, name: str) -> None:
    """Take a picture of the upper part for the documentation."""
    if folder := os.environ.get("KEEP_SCREENSHOTS"):
        box = {"x": 0, "y": 0, "scale": 1, "width": 1_385, "height": 900}
        picture = browser.execute_cdp_cmd("Page.captureScreenshot", {"clip": box})
        (Path(folder) / f"{name}.png").write_bytes(base64.b64decode(picture["data"]))
