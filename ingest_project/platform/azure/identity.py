"""The identity of this process. Imports azure-identity in 0.3 s; a SAS or a key does not need it."""

from __future__ import annotations

from functools import cache

from azure.identity import DefaultAzureCredential


@cache
def default_credential() -> DefaultAzureCredential:
    """Return the credential of this process, which caches its tokens."""
    return DefaultAzureCredential()
