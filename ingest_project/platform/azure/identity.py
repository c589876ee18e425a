"""The identity of this process. Loads azure-identity, which takes 0.3 s: a SAS or a key does without it."""

from __future__ import annotations

from functools import cache

from azure.identity import DefaultAzureCredential


@cache
def default_credential() -> DefaultAzureCredential:
    """Return the credential of this process, which keeps the tokens it got."""
    return DefaultAzureCredential()
