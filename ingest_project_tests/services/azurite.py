"""Azurite, Microsoft's emulator of Azure's blob storage, brought by npm the first time a test asks for it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import requests

from ingest_project.cli.stack.processes import free_port
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
    """Why Azurite cannot run here; None where it can."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    return f"Azurite needs {' and '.join(missing)} on PATH" if missing else None


@functools.cache
def azurite_program() -> Path:
    """The script that node runs, brought by npm into the user's cache the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ingest_project"
    folder = cache / f"azurite-{AZURITE_VERSION}"
    program = Path("node_modules/azurite/dist/src/blob/main.js")
    if (folder / program).is_file():
        return folder / program
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="azurite-") as unfinished:
        (Path(unfinished) / "package.json").write_text(json.dumps({"private": True}))
        npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", f"azurite@{AZURITE_VERSION}"]
        brought = subprocess.run(npm, cwd=unfinished, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if brought.returncode:
            raise RuntimeError(f"npm could not bring Azurite:\n{brought.stdout.decode(errors='replace')[-3_000:]}")
        # Somebody else may have been quicker; theirs is as good.
        with contextlib.suppress(OSError):
            Path(unfinished).rename(folder)
            Path(unfinished).mkdir()
    return folder / program
