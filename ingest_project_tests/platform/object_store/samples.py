"""Contents to store, and how to."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from ingest_project.core.local_files import LocalFile
from ingest_project.platform.object_store.store import MayReplace, ObjectStore, StoredObject
from ingest_project_tests.services.object_stores import CHUNK_BYTES

NAME = "claims/2026/t1/a.pdf"
CONTENTS = {
    "empty": b"",
    "small": b"%PDF-1.7 small",
    "one chunk": os.urandom(CHUNK_BYTES),
    "large": os.urandom(5 * CHUNK_BYTES + 17),
}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def local_file(folder: Path, content: bytes) -> LocalFile:
    """Write a file of its own with some bytes."""
    path = folder / f"download-{digest(content)[:8]}-{time.monotonic_ns()}"
    path.write_bytes(content)
    return LocalFile(path, len(content), digest(content))


def put(  # noqa: PLR0913 - as the store itself
    store: ObjectStore,
    folder: Path,
    content: bytes,
    name: str = NAME,
    *,
    metadata: Mapping[str, str] | None = None,
    may_replace: MayReplace | None = None,
) -> StoredObject:
    """Store some bytes by way of a local file of their own."""
    return store.put(name, local_file(folder, content), metadata=metadata, may_replace=may_replace)


def read(store: ObjectStore, name: str = NAME) -> bytes:
    """Return the bytes of an object."""
    with store.local_path(name) as path:
        return path.read_bytes()
