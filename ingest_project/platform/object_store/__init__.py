"""One store of bytes with three back ends, opened by its address; the landing and quarantine stores over it.

The SDK of a remote back end is loaded only where that back end is opened.
"""

from __future__ import annotations

from ingest_project.core.settings import Settings
from ingest_project.platform.azure import OneLakeOptions, is_address, onelake_options, parse_address
from ingest_project.platform.object_store.folder import FolderStore
from ingest_project.platform.object_store.store import Bucket, ObjectStore, S3Options, location_of, s3_options


def open_store(url: str, s3: S3Options | None = None, onelake: OneLakeOptions | None = None) -> ObjectStore:
    """Return the store at an address. Nothing remote is contacted yet.

    Args:
        url: a folder, `file:///folder`, `s3://bucket/prefix`, or any form of `azure.accounts.parse_address`.
        s3: how to reach S3.
        onelake: how to reach OneLake.

    Raises:
        SettingsError: none of these.
        ForbiddenPathError: a host or level of OneLake that cannot be written.
        StoreUnavailableError: the folder cannot be created.
    """
    if is_address(url):
        from ingest_project.platform.object_store.onelake import OneLakeStore  # noqa: PLC0415 - loads the Azure SDK

        options = onelake or OneLakeOptions()
        return OneLakeStore(parse_address(url, options.endpoint), options)
    location = location_of(url)
    if isinstance(location, Bucket):
        from ingest_project.platform.object_store.s3 import S3Store, s3_client  # noqa: PLC0415 - loads boto3

        return S3Store(s3_client(s3 or S3Options()), location)
    return FolderStore(location)


def open_configured_store(url: str, settings: Settings) -> ObjectStore:
    """Return the store at an address, reached as the settings say; see `open_store`."""
    return open_store(url, s3_options(settings.storage), onelake_options(settings.onelake))
