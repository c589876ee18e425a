"""A headless browser window on the Dagster UI: open a page, wait for what it shows, take its picture.

What a page shows is found by its visible text. Class names and the order of elements change with every release of
Dagster; what a person reads there seldom does.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from selenium import webdriver
from selenium.common.exceptions import (
    ElementNotInteractableException,
    NoSuchElementException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from ingest_project_tests.browser.programs import BrowserPrograms

PAGE_SECONDS = 40.0
POLL_SECONDS = 0.2
END_SECONDS = 10.0
PAGE_WIDTH, PAGE_HEIGHT = 1500, 1000
SHOWN_OF_A_PAGE = 1_500
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-dev-shm-usage",  # containers have 64 MB there
    "--disable-gpu",
    "--disable-quic",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-prefers-reduced-motion",
    "--lang=en-US",
)
# What a click on a link of the UI does: it is one application, whose scripts take a processor seconds to load.
FOLLOW = """
history.pushState({}, '', arguments[0]);
window.dispatchEvent(new PopStateEvent('popstate', {state: {}}));
"""
RETRIED = (ElementNotInteractableException, NoSuchElementException, StaleElementReferenceException)


class Window:
    """One window.

    Args:
        driver: the browser.
        site: address of the Dagster UI.
        pictures: folder for what `keep` takes.
        kept_pictures: a second folder for them, for those that are part of the documentation.
    """

    def __init__(self, driver: webdriver.Chrome, site: str, pictures: Path, kept_pictures: Path | None) -> None:
        self._driver = driver
        self._site = site
        self._folders = [pictures, *([kept_pictures] if kept_pictures else [])]

    def open(self, path: str) -> None:
        """Go to a page of the UI: the first by its address, the others as the links of the UI do."""
        if self._driver.current_url.startswith(self._site):
            self._driver.execute_script(FOLLOW, path)
        else:
            self._driver.get(self._site + path)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first place where the page's visible text has the pattern (`^` and `$` match at lines, `.` everything).

        Lines are stripped, and none of them is empty.

        Raises:
            AssertionError: it did not show within PAGE_SECONDS; says what the page showed instead.
        """
        wanted = re.compile(pattern, re.MULTILINE | re.DOTALL)
        try:
            return self._waiting().until(lambda _driver: wanted.search(self._text()) or False)
        except TimeoutException:
            shown = self._text()[:SHOWN_OF_A_PAGE]
            raise AssertionError(
                f"{self._driver.current_url} does not show {pattern!r} within {PAGE_SECONDS:.0f} s, but:\n{shown}\n"
                f"Its picture: {self._take_picture(self._folders[0] / 'failed.png')}"
            ) from None

    def click(self, xpath: str) -> None:
        """Click the first visible element of these, as soon as there is one."""

        def clicked(_driver: webdriver.Chrome) -> bool:
            self._visible(xpath)[0].click()
            return True

        self._waiting().until(clicked, f"nothing to click at {xpath}")

    def click_partition(self, key: str) -> None:
        """Choose a partition in a list, where long keys have an ellipsis in their middle."""
        self.click(f"//*[contains(text(), '{key[-6:]}')]")

    def tone_of(self, text: str) -> str:
        """`green`, `red` or `other`: the colour in which the last element with exactly this text is written."""

        def colour(_driver: webdriver.Chrome) -> str:
            return self._visible(f"//*[normalize-space(text())='{text}']")[-1].value_of_css_property("color")

        red, green, blue = (int(part) for part in re.findall(r"\d+", self._waiting().until(colour))[:3])
        if green > max(red, blue):
            return "green"
        return "red" if red > max(green, blue) else "other"

    def keep(self, name: str, height: int = PAGE_HEIGHT) -> None:
        """Take a picture of the page's upper part, as high as that many pixels, for the documentation too."""
        for folder in self._folders:
            self._take_picture(folder / f"{name}.png", height)

    def _take_picture(self, path: Path, height: int = PAGE_HEIGHT) -> Path:
        # A pointer that rests on a name makes a tooltip appear.
        self._driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": 1, "y": 1})
        clip = {"x": 0, "y": 0, "width": PAGE_WIDTH, "height": height, "scale": 1}
        picture = self._driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture["data"]))
        return path

    def _text(self) -> str:
        # The driver's own `text` asks for each element in turn, and takes seconds.
        shown = self._driver.execute_script("return document.body ? document.body.innerText : ''")
        return re.sub(r"\s*\n\s*", "\n", str(shown).replace("\t", " "))

    def _visible(self, xpath: str) -> list[WebElement]:
        visible = [element for element in self._driver.find_elements(By.XPATH, xpath) if element.is_displayed()]
        if not visible:
            raise NoSuchElementException(f"nothing visible at {xpath}")
        return visible

    def _waiting(self) -> WebDriverWait[webdriver.Chrome]:
        return WebDriverWait(self._driver, PAGE_SECONDS, POLL_SECONDS, ignored_exceptions=RETRIED)


@contextmanager
def open_browser(programs: BrowserPrograms, folder: Path) -> Iterator[webdriver.Chrome]:
    """A browser that keeps everything it writes in the folder; every process of it is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs.chromium)
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    service = Service(
        str(programs.driver), log_output=str(folder / "chromedriver.log"), env=dict(_environment_in(folder))
    )
    driver = webdriver.Chrome(options=options, service=service)
    try:
        size = {"width": PAGE_WIDTH, "height": PAGE_HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield driver
    finally:
        processes = _with_descendants(service.process.pid)
        driver.quit()
        for process in psutil.wait_procs(processes, END_SECONDS)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _with_descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _environment_in(folder: Path) -> Mapping[str, str]:
    """With every place for settings, caches and temporary files in the folder."""
    home = str(folder)
    places = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")
    return {**os.environ, **dict.fromkeys(places, home)}
