"""Prometheus and its promtool: those on PATH, or Debian's package, unpacked into the cache of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from ingest_project_tests.services.first_use import cache_folder, one_at_a_time

PACKAGE = "prometheus"
SECONDS = 300.0


class Programs(NamedTuple):
    """Where the programs are."""

    prometheus: Path
    promtool: Path


@pytest.fixture(scope="session")
def prometheus() -> Programs:
    """Find or bring Prometheus. Without it the test fails in continuous integration, and is skipped elsewhere."""
    unpacked = cache_folder() / PACKAGE / "usr" / "bin"
    found = _found(f"{os.environ['PATH']}:{unpacked}")
    if found is None:
        with one_at_a_time("apt"):
            found = _found(str(unpacked)) or _unpack(unpacked.parents[1])
    if found:
        return found
    reason = (
        f"No Prometheus here, and apt-get cannot bring Debian's package {PACKAGE}. Put prometheus and promtool on PATH."
    )
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _found(path: str) -> Programs | None:
    programs = [shutil.which(name, path=path) for name in Programs._fields]
    return Programs(*map(Path, programs)) if all(programs) else None  # type: ignore[arg-type]  # none is missing


def _unpack(folder: Path) -> Programs | None:
    """Download the package and unpack it without installing: no service is started, and root is not needed."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        _run(folder, "apt-get", "--quiet", "-oDPkg::Lock::Timeout=60", "update")
    _run(folder, "apt-get", "--quiet", "download", PACKAGE)
    for package in folder.glob(f"{PACKAGE}_*.deb"):
        _run(folder, "dpkg-deb", "--extract", str(package), str(folder))
        package.unlink()
    return _found(str(folder / "usr" / "bin"))


def _run(folder: Path, *command: str) -> None:
    try:
        subprocess.run(command, cwd=folder, capture_output=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        # Without apt-get there is no package, which the caller says.
        return
