"""Programs of Debian's packages for tests: taken out of the package, not installed, so that no service starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from ingest_project_tests.services.first_use import cache_folder, one_at_a_time

SECONDS = 300.0
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")


def debian_program(name: str, package: str) -> Path:
    """Return the path of a program: the one of this machine, or out of the package; skip the test without either.

    Args:
        name: file name of the program.
        package: that has it; its libraries must be on this machine.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS])
    if found := shutil.which(name, path=path):
        return Path(found)
    folder = cache_folder() / "debian" / package
    with one_at_a_time("apt"):
        if not folder.exists():
            _bring(package, folder)
    return next(path for path in folder.rglob(name) if path.is_file() and os.access(path, os.X_OK))


def _bring(package: str, folder: Path) -> None:
    """Download a package and unpack it."""
    if shutil.which("apt-get") is None:
        pytest.skip(f"needs {package}: install it, or run on Debian")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        if _ran(["apt-get", "--quiet", "download", package], unfinished) is not None:
            # A machine that is new has no list of packages yet.
            _ran(["apt-get", "--quiet", "update"], unfinished)
            if problem := _ran(["apt-get", "--quiet", "download", package], unfinished):
                pytest.skip(f"needs {package}, which cannot be downloaded: {problem}")
        (archive,) = Path(unfinished).glob("*.deb")
        content = Path(unfinished) / "content"
        if problem := _ran(["dpkg-deb", "--extract", str(archive), str(content)], unfinished):
            pytest.skip(f"needs {package}, which cannot be unpacked: {problem}")
        content.rename(folder)


def _ran(command: list[str], folder: str) -> str | None:
    """Run a command; return its last words where it failed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    return None if done.returncode == 0 else " ".join(done.stderr.split()[-30:]) or f"exit code {done.returncode}"
