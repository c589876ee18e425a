"""This host's identity in Azure: environment variables, a workload or managed identity, or the Azure CLI."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential


@cache
def default_credential() -> TokenCredential:
    """One for the process: it keeps the tokens it got."""
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415 - takes 0.3 s, and a SAS or key does without

    return DefaultAzureCredential()
