"""Chromium and its driver: those on PATH, or Debian's packages, which are installed where that is possible."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ingest_project_tests.services.first_use import one_at_a_time

PACKAGES = ("chromium", "chromium-driver")
BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome")
INSTALL_SECONDS = 300.0
LOCK_SECONDS = 60
REMEDY = f"Install {' and '.join(PACKAGES)}, or put chromium and chromedriver on PATH."


class BrowserMissingError(Exception):
    """There is no browser here, and it cannot be installed; the message says why and what to do."""


@dataclass(frozen=True)
class BrowserPrograms:
    """Where the browser and the program that drives it are."""

    chromium: Path
    driver: Path


def browser_programs(say: Callable[[str], None]) -> BrowserPrograms:
    """Find both programs, or install them first.

    Args:
        say: is told, in one sentence, when packages are installed on this machine.

    Raises:
        BrowserMissingError: they are not here and cannot be installed.
    """
    if found := _on_path():
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BrowserMissingError(f"No Chromium for the browser test, and only root with apt-get installs it. {REMEDY}")
    # apt-get waits for the lock of its packages, and not for that of its lists.
    with one_at_a_time("apt"):
        if found := _on_path():
            return found
        say(f"Installing Debian's packages {' and '.join(PACKAGES)} for the browser test ...")
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *PACKAGES)
    if found := _on_path():
        return found
    raise BrowserMissingError(f"The packages {', '.join(PACKAGES)} are installed but bring no programs. {REMEDY}")


def _on_path() -> BrowserPrograms | None:
    chromium = next(filter(None, map(shutil.which, BROWSER_NAMES)), None)
    driver = shutil.which("chromedriver")
    return BrowserPrograms(Path(chromium), Path(driver)) if chromium and driver else None


def _apt_get(*arguments: str) -> None:
    command: Sequence[str] = ("apt-get", "--quiet", f"-oDPkg::Lock::Timeout={LOCK_SECONDS}", *arguments)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BrowserMissingError(
            f"apt-get {arguments[0]} took longer than {INSTALL_SECONDS:.0f} s. {REMEDY}"
        ) from error
    if done.returncode != 0:
        last_words = " ".join(done.stderr.split()[-30:])
        raise BrowserMissingError(f"apt-get {arguments[0]} failed ({last_words}). {REMEDY}")
