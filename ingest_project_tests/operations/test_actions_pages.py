"""Actions in the browser: a form, a preview that changes nothing, one action for any number of clicks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path

import pytest
import requests
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from ingest_project.core.settings import Settings
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations import SystemResources
from ingest_project.operations.actions import ACTIONS
from ingest_project.platform.actions import action_records
from ingest_project_tests.cli.known_files import arrive, finish
from ingest_project_tests.operations.conftest import running

BAD, WORSE, MARKUP = "bad.csv~3", "worse.csv~4", "<b>.csv~5"
REASON = "missing_column: There is no column 'value'."
NAME = "release-quarantined-files"
SECONDS = 120


class Console:
    """The console as a browser without JavaScript uses it."""

    def __init__(self, site: str) -> None:
        self.site = site

    def get(self, path: str) -> requests.Response:
        """Open a page."""
        return requests.get(self.site + path, headers={"Accept": "text/html"}, timeout=SECONDS)

    def fields(self, page: str) -> dict[str, str]:
        """The hidden fields of the form that acts."""
        (form,) = re.findall(r'<form class="card act".*?</form>', page, re.DOTALL)
        hidden = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', form)
        texts = re.findall(r'<textarea name="([^"]+)" hidden>([^<]*)</textarea>', form)
        return {name: unescape(value) for name, value in [*hidden, *texts]}

    def send(
        self, name: str, fields: dict[str, str], files: dict[str, tuple[str, bytes]] | None = None
    ) -> requests.Response:
        """Send a form; where it leads to is not followed."""
        address = f"{self.site}/actions/{name}"
        headers = {"Accept": "text/html", "Origin": self.site}
        return requests.post(address, fields, files=files, headers=headers, timeout=SECONDS, allow_redirects=False)


@pytest.fixture
def services(settings_of: Callable[..., Settings], postgres_url: str) -> Iterator[SystemResources]:
    opened = SystemResources(settings_of(postgres_url))
    arrive(opened, BAD, WORSE, MARKUP)
    for key in (BAD, WORSE, MARKUP):
        finish(opened, key, FileState.QUARANTINED, reason=REASON)
    yield opened
    opened.warehouse.close()
    opened.engine.dispose()


@pytest.fixture
def console(services: SystemResources) -> Iterator[Console]:
    with running(services.settings) as site:
        yield Console(site)


def test_files_are_released_by_a_preview_and_one_of_two_clicks(console: Console, services: SystemResources) -> None:
    assert all(action.title in console.get("/actions").text for action in ACTIONS.values())
    form = console.get(f"/actions/{NAME}?key={BAD}")
    assert BAD in form.text
    given = console.fields(form.text) | {"reason_text": "missing_column", "since": "2026-01-15T10:30", "limit": "2"}
    preview = console.send(NAME, given)
    assert preview.status_code == 200
    assert "2 of 3 matching would be acted on" in preview.text
    assert "1 more match beyond the limit of 2" in preview.text
    assert "2026-01-15 10:30:00Z" in unescape(preview.text)
    assert action_records(services.engine) == ()
    final = console.fields(preview.text) | {"reason": "the source is fixed"}
    clicks = [console.send(NAME, final) for _ in range(2)]
    assert [click.status_code for click in clicks] == [303, 303]
    assert clicks[0].headers["Location"] == clicks[1].headers["Location"] == f"../audit/{final['action_id']}"
    (record,) = action_records(services.engine)
    assert (record.who, record.reason, record.done, record.remaining) == ("local user", "the source is fixed", 2, 1)
    assert sorted(one.state for one in services.files.get_many([BAD, WORSE, MARKUP])) == [
        FileState.PENDING,
        FileState.PENDING,
        FileState.QUARANTINED,
    ]
    shown = console.get(f"/audit/{final['action_id']}").text
    assert "the source is fixed" in shown
    assert "/items/file/" in shown
    listed = console.get(f"/audit?action={NAME}&who=local").text
    assert f"audit/{final['action_id']}" in listed
    assert "No action is on record" in console.get("/audit?who=bob").text
    assert console.get("/audit?before=nonsense").status_code == 200
    assert console.get(f"/audit/{'f' * 32}").status_code == 404


def test_an_invalid_form_shows_its_errors_and_changes_nothing(console: Console, services: SystemResources) -> None:
    token = console.fields(console.get(f"/actions/{NAME}").text)
    for given, said in (
        ({"since": "yesterday"}, "is no time"),
        ({"limit": "many"}, "The limit is a whole number"),
        ({"limit": "1e3"}, "The limit is a whole number"),
        ({"limit": "-1"}, "The limit is a whole number"),
        ({"limit": "\u0661\u0660"}, "The limit is a whole number"),
        ({"limit": "0"}, "The limit must be between"),
        ({"step": "perform", "action_id": "x"}, "begin again with the preview"),
        ({"step": "perform", "action_id": "a" * 32}, "Enter a reason"),
        ({"step": "perform", "action_id": "a" * 32, "reason": "\ufeff \x00\u200b"}, "Enter a reason"),
        ({"new_profile": "<script>"}, "no usable reader profile"),
    ):
        answer = console.send(NAME, token | given)
        assert (answer.status_code, said in answer.text) == (400, True), answer.text
        assert "<script>" not in answer.text
    preview = console.send(NAME, token)
    assert "<b>.csv" not in preview.text
    # What was entered is kept for the next attempt, of the same action.
    final = console.fields(preview.text)
    answer = console.send(NAME, final | {"reason": "because " * 200})
    assert (answer.status_code, "The reason has more than" in answer.text) == (400, True)
    assert console.fields(answer.text) == final
    assert "because because" in answer.text
    assert console.send(NAME, final | {"action_id": "../" * 9}).status_code == 400
    assert console.get("/actions/no-such-action").status_code == 404
    assert requests.get(f"{console.site}/actions/{NAME}", {"step": "perform"}, timeout=SECONDS).status_code == 200
    assert action_records(services.engine) == ()
    assert {one.state for one in services.files.list()} == {FileState.QUARANTINED}


def test_a_corrected_file_is_uploaded_with_the_preview_and_used_by_the_action(
    console: Console, services: SystemResources
) -> None:
    name = "upload-corrected-file"
    fields = console.fields(console.get(f"/actions/{name}?key={BAD}").text) | {"key": BAD}
    refused = console.send(name, fields, files={"file": ("../../fixed.xlsx", b"x")})
    assert (refused.status_code, "type csv, not xlsx" in refused.text) == (400, True)
    assert [*Path(services.settings.state_dir, "uploads").iterdir()] == []
    content = b"timestamp,device_id,sensor_type,value\n"
    preview = console.send(name, fields, files={"file": ("../../fixed.csv", content)})
    assert "1 of 1 matching" in preview.text
    kept = [path for path in Path(services.settings.state_dir, "uploads").rglob("*") if path.is_file()]
    assert "fixed.csv" in {path.name for path in kept}
    final = console.fields(preview.text) | {"reason": "a column was missing"}
    assert [console.send(name, final).status_code for _ in range(2)] == [303, 303]
    (record,) = action_records(services.engine)
    assert (record.outcome, record.parameters["file"]) == ("done", "fixed.csv")
    (new,) = (one for one in services.files.list() if one.corrects == BAD)
    with services.landing.local_path(new.uploaded_sha256 or "") as path:
        assert path.read_bytes() == content
    assert not Path(services.settings.state_dir, "uploads", final["action_id"]).exists()
    again = console.send(name, fields, files={"file": ("fixed.csv", content)})
    assert "0 of 1 matching" in again.text
    assert "the same bytes were uploaded for it before" in again.text
    empty = console.send(name, fields, files={"file": ("fixed.csv", b"")})
    assert (empty.status_code, "fixed.csv is empty" in empty.text) == (400, True)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_person_releases_a_file_and_uploads_a_corrected_one_in_a_browser(
    console: Console, services: SystemResources, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    def act(name: str, field: str, value: str, reason: str) -> str:
        browser.get(f"{console.site}/actions/{name}?key={BAD}")
        browser.find_element(By.NAME, field).send_keys(value)
        browser.find_element(By.CSS_SELECTOR, ".act button").click()
        assert BAD in appears("examples").text
        browser.find_element(By.NAME, "reason").send_keys(reason)
        browser.find_element(By.CSS_SELECTOR, ".act button").click()
        appears("t-items")
        return browser.find_element(By.TAG_NAME, "main").text

    def appears(name: str) -> WebElement:
        WebDriverWait(browser, SECONDS).until(lambda _: browser.find_elements(By.ID, name), browser.page_source)
        return browser.find_element(By.ID, name)

    fixed = tmp_path / "fixed.csv"
    fixed.write_text("timestamp,device_id,sensor_type,value\n")
    shown = act("upload-corrected-file", "file", str(fixed), "a column was missing")
    assert "The corrected version is" in shown
    shown = act(NAME, "reason_text", "missing_column", "the source is fixed")
    assert "the source is fixed" in shown
    assert services.files.get_many([BAD])[0].state is FileState.PENDING
    log: list[dict[str, str]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    assert log == []


def test_a_folder_that_cannot_be_written_or_a_file_that_is_gone_is_a_clear_message(
    console: Console, services: SystemResources
) -> None:
    folder = services.settings.state_dir / "uploads"
    folder.parent.mkdir(parents=True, exist_ok=True)
    # As root, no mode keeps this process from writing; a file in the place of the folder does.
    folder.write_bytes(b"")
    name = "upload-corrected-file"
    fields = console.fields(console.get(f"/actions/{name}?key={BAD}").text) | {"key": BAD}
    answer = console.send(name, fields, {"file": ("right.csv", b"device_id\n")})
    assert answer.status_code == 503
    assert f"The monitor cannot use {folder}" in unescape(answer.text)
