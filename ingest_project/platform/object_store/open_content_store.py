"""Open the content store at an address: a folder or an S3 bucket."""

from __future__ import annotations

from ingest_project.platform.object_store.content_store import LandingStore
from ingest_project.platform.object_store.locations import Bucket, S3Options, location_of, s3_client


def open_landing(url: str, s3: S3Options | None = None, *, sync: bool = False) -> LandingStore:
    """The landing store at a folder or `s3://bucket/prefix`.

    Args:
        url: the setting `storage.landing_url`.
        s3: how to reach S3.
        sync: wait until each local file is on the disk itself. Without it a power cut may lose the last seconds; a file
            lost that way is noticed by its size and landed again when it is ingested again.

    Raises:
        SettingsError: the URL is neither of the two.
    """
    place = location_of(url)
    if isinstance(place, Bucket):
        from ingest_project.platform.object_store.content_s3 import S3Landing  # noqa: PLC0415 - one of the two is used

        return S3Landing(s3_client(s3 or S3Options()), place)
    from ingest_project.platform.object_store.content_folder import FolderLanding  # noqa: PLC0415

    return FolderLanding(place, sync=sync)
