"""The example package is installed as any other, keeps the contracts, and takes part in the real path of a file."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance

from ingest_project.cli.main import installed_plugins
from ingest_project.core import plugins
from ingest_project_tests.file_ingest.datasets.system import declare, opened, settings_of
from ingest_project_tests.services.kafka import Server

PACKAGE = Path(__file__).parents[2] / "examples" / "ingest_plugin_demo"
RECORDS = """\
# Hall 1
station: A
temperature: 1.50
note: größer

station: B
temperature: warm

station: C
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the package is installed in."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(folder), str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package in this process."""
    monkeypatch.syspath_prepend(str(site))
    plugins.installed.cache_clear()
    yield site
    plugins.installed.cache_clear()


def test_the_package_passes_the_contract_suites(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    command += ["-c", os.devnull, str(PACKAGE / "tests")]
    environ = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.usefixtures("installed")
def test_a_record_file_in_a_tar_archive_becomes_rows_of_a_declared_dataset(
    kafka_server: Server, postgres_url: str, instance: DagsterInstance, tmp_path: Path
) -> None:
    assert [(plugin.name, plugin.problem) for plugin in installed_plugins()] == [("rec", ""), ("tar", "")]
    columns = [
        {"name": "station", "type": "text", "required": True},
        {"name": "temperature", "type": "decimal(6,2)", "required": False},
    ]
    declare(tmp_path, "halls", columns=columns, file_types=["rec"], paths=["*.rec"], max_rejected_share=0.9)
    system = opened(settings_of(kafka_server, postgres_url, tmp_path), instance, tmp_path)
    archive_path = tmp_path / "in" / "day.tar"
    with tarfile.open(archive_path, "w") as archive:
        member = tarfile.TarInfo("hall-1/day.rec")
        member.size = len(RECORDS.encode())
        archive.addfile(member, io.BytesIO(RECORDS.encode()))
    path = f"{archive_path}!hall-1/day.rec"
    system.send_files(path, source_type="tar", source_config={"path": str(archive_path)})
    system.run_due()
    record = system.file("day.rec")
    assert (record.state.value, record.dataset, record.reason) == ("ingested", "halls", None)
    rows = system.rows("SELECT station, temperature::text, rescued_data, line_number FROM halls ORDER BY line_number")
    assert rows == [("A", "1.50", {"note": "größer"}, 1), ("C", None, None, 9)]
    quarantined = system.rows("SELECT line_number, raw_text, reasons FROM quarantined_rows")
    assert [(number, "station: B" in text) for number, text, _ in quarantined] == [(6, True)]
    system.close()
