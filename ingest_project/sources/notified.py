"""The source of an object that a store's notification names.

A notification names neither credentials nor an endpoint, and anyone may have sent it. Its object is read as the
settings read its bucket or container: by the configured source there, by stored credentials that list it, or by the
settings' own identity. Each source itself refuses an object that no setting allows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from msgspec.structs import replace

from ingest_project.contracts.files import FileEvent
from ingest_project.core.errors import PermanentError
from ingest_project.core.settings import ConfiguredSource
from ingest_project.sources.registry import SourceContext, open_source

# Parts of an address up to the bucket, or up to the container of an account.
ROOT_PARTS = {"s3": 3, "onelake": 4}


class _Match(NamedTuple):
    """A configured source that may read a file; `covers` is the length of its folder, or 0 for a file outside of it."""

    covers: int
    name: str
    source: ConfiguredSource


def with_source(event: FileEvent, context: SourceContext) -> FileEvent:
    """Return a notification's event with the `source_config` that reads its file.

    A file in the folder of a configured source also gets that source's name as its job, and its metadata.
    """
    found = max(_configured(event, context), key=lambda match: match.covers, default=None)
    if found is None:
        root = "/".join(event.file_path.split("/")[: ROOT_PARTS[event.source_type]])
        name = next(_credentials(event, root, context), None)
        return replace(event, source_config={"path": root} if name is None else {"path": root, "credentials": name})
    event = replace(event, source_config={**found.source.source_config})
    if not found.covers:
        return event
    return replace(event, job_id=found.name, metadata={**found.source.metadata, **event.metadata})


def _configured(event: FileEvent, context: SourceContext) -> Iterator[_Match]:
    """Yield the configured sources of the file's bucket or container."""
    for name, configured in context.settings.sources.items():
        if configured.source_config["source_type"] != event.source_type:
            continue
        # A source that cannot be used fails when it is listed; it does not stop all others.
        with suppress(PermanentError):
            source = open_source(configured.source_config, context)
            source.require_allowed(event.file_path)
            folder = f"{source.location.rstrip('/')}/"
            is_inside = source.canonical_location(event.file_path).startswith(folder)
            yield _Match(len(folder) if is_inside else 0, name, configured)


def _credentials(event: FileEvent, root: str, context: SourceContext) -> Iterator[str]:
    """Yield the names of the stored credentials that list the file's bucket or account."""
    for name, credential in context.credentials.items():
        if not (credential.buckets if event.source_type == "s3" else credential.hosts):
            continue
        with suppress(PermanentError):
            config = {"source_type": event.source_type, "path": root, "credentials": name}
            open_source(config, context).require_allowed(event.file_path)
            yield name
