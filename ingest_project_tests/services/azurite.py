"""Azurite, Microsoft's emulator of Azure's blob storage, installed by npm the first time a test needs it."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import requests

from ingest_project.devstack import free_port
from ingest_project_tests.services.first_use import cache_folder, one_at_a_time
from ingest_project_tests.services.kafka import wait_until

AZURITE_VERSION = "3.35.0"
ACCOUNT = "devstoreaccount1"
# The key that Azurite is known for; it opens nothing else.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Azurite:
    """One server with an empty folder of its own; ended by its process id."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="azurite-")
        port = free_port()
        self.server_url = f"http://127.0.0.1:{port}"
        self.endpoint_url = f"{self.server_url}/{ACCOUNT}"
        program = ["node", str(azurite_program()), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
        where = ["--location", self._folder.name, "--skipApiVersionCheck", "--disableTelemetry"]
        self._process = subprocess.Popen([*program, *where], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(self._answers, 30)
        except TimeoutError:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server with everything in it."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def _answers(self) -> bool:
        try:
            return bool(requests.get(self.endpoint_url, timeout=1).status_code)
        except requests.ConnectionError:
            return False


def why_not_azurite() -> str | None:
    """Return why Azurite cannot run here; None if it can."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    return f"Azurite needs {' and '.join(missing)} on PATH" if missing else None


@functools.cache
def azurite_program() -> Path:
    """Return the script for node; npm downloads it to the user's cache the first time."""
    folder = cache_folder() / f"azurite-{AZURITE_VERSION}"
    program = Path("node_modules/azurite/dist/src/blob/main.js")
    with one_at_a_time("npm"):
        if not (folder / program).is_file():
            _bring_azurite(folder)
    return folder / program


def _bring_azurite(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="azurite-") as made:
        unfinished = Path(made) / "azurite"
        unfinished.mkdir()
        (unfinished / "package.json").write_text(json.dumps({"private": True}))
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"azurite@{AZURITE_VERSION}"]
        brought = subprocess.run(npm, cwd=unfinished, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if brought.returncode:
            raise RuntimeError(f"npm could not bring Azurite:\n{brought.stdout.decode(errors='replace')[-3_000:]}")
        # A folder without the program is the rest of an earlier try.
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
