"""Attachments to store, and how to."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from ingest_project.attachments.storage.store import AttachmentStore, StoredAttachment

CHUNK = 64 * 1024
CONTENTS = {
    "empty": b"",
    "small": b"%PDF-1.7 small",
    "one chunk": os.urandom(CHUNK),
    "large": os.urandom(5 * CHUNK + 17),
}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(
    store: AttachmentStore, tmp_path: Path, content: bytes, name: str = "claims/2026/t1/a.pdf", **metadata: str
) -> StoredAttachment:
    """Store some bytes by way of a local file of their own."""
    local = tmp_path / f"download-{digest(content)[:8]}-{time.monotonic_ns()}"
    local.write_bytes(content)
    return store.put(
        local, name, size_bytes=len(content), sha256=digest(content), metadata=metadata or {"trace_id": "trace-1"}
    )


def read(store: AttachmentStore, name: str = "claims/2026/t1/a.pdf") -> bytes:
    with store.open(name) as stream:
        return stream.read()
