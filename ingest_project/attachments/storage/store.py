"""The attachment store: downloaded files under the names their domains give them, in a folder or in OneLake.

A reader never sees a half or empty file under a final name, and putting the same file again leaves the same state.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ingest_project.platform.object_store.files import FileFingerprint


class StoredAttachment(NamedTuple):
    """A file in the store.

    Args:
        path: where it is, for people and results: a file's path or its https:// address.
        sha256: of its content, in hex.
    """

    path: str
    size_bytes: int
    sha256: str


class AttachmentStore(Protocol):
    """Keeps files by name. Safe to use from many threads; memory use does not grow with the file."""

    def put(  # noqa: PLR0913 - each is passed by name
        self,
        local_path: Path,
        destination: str,
        *,
        size_bytes: int,
        sha256: str,
        metadata: Mapping[str, str],
        seal: FileFingerprint | None = None,
    ) -> StoredAttachment:
        """Store a local file, in place of the same attachment's earlier one. The second time changes nothing.

        Args:
            local_path: a finished file that nobody changes meanwhile.
            destination: relative path in the store, parts separated by `/`.
            size_bytes: length the file must have.
            sha256: digest the content must have, in hex.
            metadata: what is kept with it, e.g. trace_id and source_url (its query is left out: signed addresses are
                secrets). Names are ASCII letters, digits and `_`; values may be any text. `attachment_key` is whose
                file this is, see `attachment_names.require_owner`.
            seal: of the local file when the digest was computed. A store that can take the file over as it is need not
                read it again while it has this seal.

        Raises:
            ForbiddenPathError: the destination is no plain relative path, leads out of the store, or is not portable.
            PathTakenError: a file of that name is there that is not this attachment's.
            SourceNotFoundError: there is no such local file.
            SourceChangedError: the local file is not of this length and digest; nothing is stored.
            PermanentError: the store refuses.
            StoreUnavailableError: the store cannot be written at this moment.
        """

    def stat(self, destination: str) -> StoredAttachment | None:
        """What is stored under a name; None when there is nothing.

        Raises:
            ForbiddenPathError, PermanentError, StoreUnavailableError: as `put`.
        """

    def metadata(self, destination: str) -> Mapping[str, str]:
        """What was put with the file, as it was given (a source_url without its query).

        Raises:
            SourceNotFoundError: there is no such file.
        """

    def open(self, destination: str) -> BinaryIO:
        """The bytes, to be read in order; the caller closes it.

        Raises:
            SourceNotFoundError: there is no such file.
            ForbiddenPathError, PermanentError, StoreUnavailableError: as `put`; while reading as well.
        """

    def remove_orphaned(self, older_than: timedelta, below: str = "") -> int:
        """Remove temporary files that uploaders left which were killed, and return how many.

        Args:
            older_than: no upload takes so long.
            below: folder of the store to look in; a large store in OneLake takes a request per 5,000 files.
        """

    def close(self) -> None:
        """Let go of connections and threads."""
