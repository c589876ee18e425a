"""A landed file is one version of its source's file, whole, and no larger than files may be."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from ingest_project.contracts.files import FileEvent
from ingest_project.core.errors import LimitExceededError, SourceChangedError, VersionSupersededError
from ingest_project.core.settings import Settings
from ingest_project.file_ingest.file_queue import FileArrival, FileQueue, FileRecord
from ingest_project.file_ingest.raw_files import land
from ingest_project.file_ingest.resources import FileIngestResources
from ingest_project.file_ingest.tables import files
from ingest_project.platform.work_queue.queue import KafkaPosition
from ingest_project.sources import Source, SourceFile
from ingest_project.sources.registry import SourceContext, open_source
from ingest_project_tests.file_ingest.samples import NOW
from ingest_project_tests.services.http_exchange import Answer, HttpServer, Request
from ingest_project_tests.services.listing_server import ListingServer
from ingest_project_tests.services.sftp_server import SftpServer
from ingest_project_tests.sources.backends import FileServerBackend, FolderBackend, LocalBackend, WebBackend

SIZE = 8 * 1024**2


@pytest.fixture(params=["local", "sftp", "nginx"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FolderBackend]:
    folder = tmp_path / "served"
    folder.mkdir()
    match request.param:
        case "local":
            yield LocalBackend(folder)
        case "sftp":
            with SftpServer(folder) as server:
                served = FileServerBackend(folder, server)
                yield served
                served.close()
        case _:
            with ListingServer(folder) as web:
                yield WebBackend(folder, web)


@dataclass
class Interrupted:
    """A source whose file meets with something after its first bytes."""

    source: Source
    happening: Callable[[], object]

    def stat(self, path: str) -> SourceFile:
        """The file at this moment."""
        return self.source.stat(path)

    def canonical_location(self, path: str) -> str:
        """As its source says."""
        return self.source.canonical_location(path)

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Open it; it happens before the caller reads."""
        with self.source.open(path) as stream:
            stream.peek()  # type: ignore[attr-defined]
            self.happening()
            yield stream


def services_of(source: object, folder: Path, **limits: int) -> FileIngestResources:
    class Services(FileIngestResources):
        def open_source(self, _: object) -> Source:
            return cast("Source", source)

    storage = {"landing_url": str(folder / "landing")}
    return Services(Settings.model_validate({"storage": storage, "file_ingest": limits}))


def record_of(file: SourceFile, *, pinned: bool) -> FileRecord:
    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    files.create(engine)
    event = FileEvent(file_path=file.path, file_name=file.name, event_id="e")
    if pinned:
        event = replace(event, size_bytes=file.size_bytes, modified_at=file.modified_at, etag=file.etag)
    kafka_position = KafkaPosition("file-event-queue", 0, 0, "g", NOW)
    queue = FileQueue(engine)
    queue.record([FileArrival("a", "at", event, "canonical", kafka_position, pinned)], NOW)
    record = queue.get("a")
    engine.dispose()
    assert record is not None
    return record


@pytest.mark.parametrize("pinned", [True, False])
def test_a_file_that_is_written_over_while_it_is_read_is_no_mix_of_two_versions(
    backend: FolderBackend, tmp_path: Path, *, pinned: bool
) -> None:
    backend.put("a.csv", b"o" * SIZE)
    source = backend.open()
    listed = source.stat(backend.path("a.csv"))
    place = backend.folder / "a.csv"

    def write_over() -> None:
        with place.open("r+b") as file:
            file.write(b"n" * SIZE)
        moment = place.stat().st_mtime + 60
        os.utime(place, (moment, moment))

    services = services_of(Interrupted(source, write_over), tmp_path)
    with pytest.raises(VersionSupersededError if pinned else SourceChangedError):
        land(record_of(listed, pinned=pinned), services)


def test_a_file_that_is_removed_once_its_bytes_have_come_is_landed(backend: FolderBackend, tmp_path: Path) -> None:
    backend.put("a.csv", b"content")
    source = backend.open()
    listed = source.stat(backend.path("a.csv"))
    services = services_of(Interrupted(source, lambda: backend.remove("a.csv")), tmp_path)
    assert land(record_of(listed, pinned=True), services).landed.size_bytes == len(b"content")


def test_a_file_of_unknown_size_is_read_up_to_the_limit(tmp_path: Path) -> None:
    def compressed(request: Request) -> Answer:
        sent = os.urandom(SIZE) if request.method == "GET" else b""
        return Answer(headers={"Content-Encoding": "gzip"}, body=gzip.compress(sent, 1))

    with HttpServer(compressed) as server:
        settings = {"downloads": {"allowed_internal_hosts": ["127.0.0.1"]}}
        source = open_source({"source_type": "http", "path": ""}, SourceContext(Settings.model_validate(settings)))
        file = SourceFile(f"{server.url}/a.csv", "a.csv", None, None)
        with pytest.raises(LimitExceededError, match=r"3145728 bytes or more; .* \(limit: INGEST_MAX_FILE_BYTES\)"):
            land(record_of(file, pinned=False), services_of(source, tmp_path, max_file_bytes=2 * 1024**2))
