"""Open the attachment store at an address: a folder or OneLake."""

from __future__ import annotations

from ingest_project.attachments.storage.store import AttachmentStore
from ingest_project.core.errors import SettingsError
from ingest_project.platform.azure.address import is_address, parse_address
from ingest_project.platform.azure.identity import OneLakeOptions
from ingest_project.platform.object_store.locations import Bucket, location_of


def open_attachment_store(url: str, options: OneLakeOptions | None = None, *, sync: bool = False) -> AttachmentStore:
    """The attachment store at a folder or an address in OneLake; nothing is connected to yet.

    Args:
        url: a folder, `file:///folder`, or any form of `onelake.address.parse_address`.
        options: how to reach OneLake.
        sync: wait until each local file is on the disk itself, see `attachment_folder`.

    Raises:
        SettingsError: none of these.
        ForbiddenPathError: a host or level of OneLake that cannot be written.
    """
    if is_address(url):
        from ingest_project.attachments.storage.onelake import OneLakeAttachments  # noqa: PLC0415 - one of the two is used

        options = options or OneLakeOptions()
        return OneLakeAttachments(parse_address(url, options.endpoint), options)
    from ingest_project.attachments.storage.folder import FolderAttachments  # noqa: PLC0415

    place = location_of(url)
    if isinstance(place, Bucket):
        raise SettingsError(f"{url}: attachments are kept in a folder or in OneLake.")
    return FolderAttachments(place, sync=sync)
