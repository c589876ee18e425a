"""One store of bytes with three back ends, opened by its address; the landing and quarantine stores over it.

Another package adds a back end by an entry point in the group `ingest_project.stores`; its name is the scheme of its
addresses, its value a `StoreFactory`. The SDK of a remote back end is loaded only where that back end is opened.
"""

from __future__ import annotations

from ingest_project.core import plugins
from ingest_project.core.errors import PermanentError, SettingsError
from ingest_project.core.settings import Settings
from ingest_project.platform.azure.accounts import OneLakeOptions, is_address, onelake_options
from ingest_project.platform.object_store.store import ObjectStore, S3Options, StoreFactory, StoreOptions, s3_options

_ONELAKE = "ingest_project.platform.object_store.onelake:open_onelake"
STORES: plugins.Plugins[StoreFactory] = plugins.plugins(
    plugins.STORES,
    {
        "file": "ingest_project.platform.object_store.folder:open_folder",
        "s3": "ingest_project.platform.object_store.s3:open_s3",
        **dict.fromkeys(("abfs", "abfss", "http", "https"), _ONELAKE),
    },
)


def open_store(
    url: str, s3: S3Options | None = None, onelake: OneLakeOptions | None = None, settings: Settings | None = None
) -> ObjectStore:
    """Return the store at an address. Nothing remote is contacted yet.

    Args:
        url: a folder, `file:///folder`, `s3://bucket/prefix`, any form of `azure.accounts.parse_address`, or an address
            of a scheme that another package brings.
        s3: how to reach S3.
        onelake: how to reach OneLake.
        settings: of this process, for the stores of other packages.

    Raises:
        SettingsError: none of these.
        ForbiddenPathError: a host or level of OneLake that cannot be written.
        StoreUnavailableError: the folder cannot be created.
    """
    try:
        factory = STORES.named(_scheme(url), "scheme of a store")
    except PermanentError as error:
        raise SettingsError(f"{url[:200]} is no store: {error}") from None
    return factory(url, StoreOptions(s3 or S3Options(), onelake or OneLakeOptions(), settings))


def open_configured_store(url: str, settings: Settings) -> ObjectStore:
    """Return the store at an address, reached as the settings say; see `open_store`."""
    return open_store(url, s3_options(settings.storage), onelake_options(settings.onelake), settings)


def _scheme(url: str) -> str:
    if is_address(url):
        return "abfss"
    scheme, separator, _ = url.partition("://")
    return scheme.lower() if separator else "file"
