"""The reader and the source keep the contracts."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest_project.core.settings import Settings
from ingest_project.readers.reading import READERS, Reader
from ingest_project.sources import Source
from ingest_project.sources.registry import SourceContext, open_source
from ingest_project.testing.readers import ReaderContract, Rows
from ingest_project.testing.sources import SourceBackend, SourceContract


class TestRecReader(ReaderContract):
    """Record files."""

    @pytest.fixture
    def reader(self) -> Reader:
        """The reader, found by its entry point."""
        return READERS["rec"]

    @pytest.fixture
    def write(self) -> Callable[[Path, Rows], None]:
        """Write a record for each row."""

        def written(path: Path, rows: Rows) -> None:
            records = ("".join(f"{name}: {text}\n" for name, text in row.items()) for row in rows)
            path.write_text("\n".join(records), encoding="utf-8")

        return written


class TarBackend(SourceBackend):
    """An archive that is written again with each change."""

    has_folders = False
    outside = "/etc/other.tar!a.csv"

    def __init__(self, folder: Path) -> None:
        self._folder, self._archive = folder, folder / "day.tar"
        self._files: dict[str, bytes] = {}
        self._write()

    def open(self, below: str = "") -> Source:
        """Return the source by its name, as a job does."""
        settings = Settings.model_validate({"polling": {"local_roots": [str(self._folder)]}})
        config = {"source_type": "tar", "path": str(self._archive), "folder": below}
        return open_source(config, SourceContext(settings))

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""
        self._files[name] = content
        self._write()

    def remove(self, name: str) -> None:
        """Remove a file."""
        del self._files[name]
        self._write()

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return f"{self._archive}!{name}"

    def _write(self) -> None:
        with tarfile.open(self._archive, "w") as archive:
            for name, content in self._files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mtime = len(content), int(time.time())
                archive.addfile(member, io.BytesIO(content))


class TestTarSource(SourceContract):
    """Tar archives."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> SourceBackend:
        """An empty archive."""
        return TarBackend(tmp_path)
