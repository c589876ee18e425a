"""How Delta tables are reached and maintained, from the settings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ingest_project.core.settings import (
    DeltaSettings,
    OneLakeSettings,
    Settings,
)
from ingest_project.platform.azure.identity import default_credential
from ingest_project.platform.delta.location import AzureCredential, BearerToken, DeltaCredentials
from ingest_project.platform.delta.maintenance import MaintenanceLimits
from ingest_project.platform.object_store.locations import s3_options

if TYPE_CHECKING:
    pass


STORAGE_SCOPE = "https://storage.azure.com/.default"


def delta_credentials(settings: Settings) -> DeltaCredentials:
    """How Delta tables are reached, wherever they are."""
    return DeltaCredentials(s3_options(settings.storage), azure_credential(settings.onelake))


def azure_credential(onelake: OneLakeSettings) -> AzureCredential:
    """A SAS, an account key, or with neither a token of azure-identity's default credential."""
    if onelake.sas_token:
        return AzureCredential(sas=onelake.sas_token.get_secret_value())
    if onelake.account_key:
        return AzureCredential(account_key=onelake.account_key.get_secret_value())
    return AzureCredential(tokens=_storage_token)


def maintenance_limits(delta: DeltaSettings) -> MaintenanceLimits:
    """How much one maintenance of a Delta table may do."""
    return MaintenanceLimits(
        min_small_files=delta.min_small_files,
        target_bytes=delta.target_file_bytes,
        time_limit=timedelta(seconds=delta.time_limit_seconds),
        retention=timedelta(hours=delta.retention_hours),
    )


def _storage_token() -> BearerToken:
    token = default_credential().get_token(STORAGE_SCOPE)
    return BearerToken(token.token, datetime.fromtimestamp(token.expires_on, UTC))
