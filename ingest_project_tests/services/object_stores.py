"""Object stores of each kind on real servers: a folder, S3 and OneLake. A test that uses one runs with all three."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ingest_project.platform.azure import parse_address
from ingest_project.platform.object_store import open_store
from ingest_project.platform.object_store.s3 import s3_client
from ingest_project.platform.object_store.store import Bucket, ObjectStore, S3Options, location_of
from ingest_project.testing.stores import CHUNK_BYTES
from ingest_project_tests.services.dfs_server import DfsServer


class StoreLocation:
    """An empty location for a store, and what is in it.

    Args:
        url: of the store.
        s3: how to reach it.
        dfs: the server of OneLake, where it is there.
    """

    def __init__(self, url: str, s3: S3Options | None = None, dfs: DfsServer | None = None) -> None:
        self.url = url
        self._s3 = s3
        self._dfs = dfs
        self._options = replace(dfs.options, chunk_bytes=CHUNK_BYTES, concurrency=3) if dfs else None

    def open(self) -> ObjectStore:
        """Return a store at this location."""
        return open_store(self.url, self._s3, self._options)

    def names(self) -> list[str]:
        """Return every object of the store, temporary ones and descriptions too."""
        if self._dfs:
            folder = f"{parse_address(self.url, self._dfs.url).path}/"
            return [path.removeprefix(folder) for path in self._dfs.paths() if path.startswith(folder)]
        location = location_of(self.url)
        if isinstance(location, Bucket):
            listing = s3_client(self._s3 or S3Options()).list_objects_v2(Bucket=location.name, Prefix=location.prefix)
            return sorted(entry["Key"].removeprefix(location.prefix) for entry in listing.get("Contents", []))
        return sorted(str(path.relative_to(location)) for path in location.rglob("*") if path.is_file())


@pytest.fixture(params=["folder", "s3", "onelake"])
def store_location(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLocation:
    """An empty location of each kind."""
    if request.param == "folder":
        return StoreLocation(str(tmp_path / "store"))
    if request.param == "s3":
        return StoreLocation(request.getfixturevalue("s3_url"), request.getfixturevalue("s3_options"))
    return StoreLocation(request.getfixturevalue("dfs_url"), dfs=request.getfixturevalue("dfs"))


@pytest.fixture
def store(store_location: StoreLocation) -> ObjectStore:
    """An empty store of each kind."""
    return store_location.open()
