"""Accounts and workspaces that a message may name."""

from __future__ import annotations

import pytest

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings
from ingest_project.platform.azure import DEFAULT_ENDPOINT, AllowedAccount, accounts_of, parse_address
from ingest_project.sources.onelake import allowed_accounts
from ingest_project.sources.registry import SourceContext

WORKSPACE = "3f0a2c1e-58f1-4f7e-9d9b-0a6f5a2b7c11"
ITEM = "c7b1d3e2-0000-4a4a-8b8b-123456789abc"


@pytest.mark.parametrize(
    ("entry", "address", "allowed"),
    [
        ("account.dfs.core.windows.net", "abfss://any@account.dfs.core.windows.net/x", True),
        ("https://Account.blob.core.windows.net/", "https://account.dfs.core.windows.net/any/x", True),
        ("account.dfs.core.windows.net", "https://another.dfs.core.windows.net/any/x", False),
        ("account.dfs.core.windows.net/in", "https://account.dfs.core.windows.net/in/x", True),
        ("account.dfs.core.windows.net/in", "https://account.dfs.core.windows.net/inner/x", False),
        ("account.dfs.core.windows.net/in-*", "https://account.dfs.core.windows.net/in-a/x", True),
        ("onelake.dfs.fabric.microsoft.com/Analytics", "analytics/lake.Lakehouse/Files", True),
        ("onelake.dfs.fabric.microsoft.com/analytics", "others/lake.Lakehouse/Files", False),
        ("onelake.dfs.fabric.microsoft.com/*", "others/lake.Lakehouse/Files", True),
        (f"onelake.dfs.fabric.microsoft.com/{WORKSPACE}", f"{DEFAULT_ENDPOINT}/{WORKSPACE}/{ITEM}/Files", True),
        ("account.dfs.core.windows.net", "analytics/lake.Lakehouse/Files", False),
    ],
)
def test_an_entry_is_an_account_or_a_workspace(entry: str, address: str, *, allowed: bool) -> None:
    assert AllowedAccount.parse(entry).allows(parse_address(address)) is allowed


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "onelake.dfs.fabric.microsoft.com",
        "https://onelake.dfs.fabric.microsoft.com/",
        "evil.example.com",
        "*",
        "*.dfs.core.windows.net",
        "127.0.0.1\\.dfs.core.windows.net",
        "user@account.dfs.core.windows.net",
        "account.dfs.core.windows.net:8443",
        "analytics",
    ],
)
def test_an_invalid_account_is_a_settings_error(entry: str) -> None:
    with pytest.raises(SettingsError, match="INGEST_ONELAKE_ALLOWED_ACCOUNTS"):
        AllowedAccount.parse(entry)
    with pytest.raises(SettingsError):
        allowed_accounts(SourceContext(Settings.model_validate({"onelake": {"allowed_accounts": [entry]}})))


def test_each_location_is_listed_with_its_use_as_store_table_or_source() -> None:
    settings = Settings.model_validate(
        {
            "attachments": {
                "store_url": "store/lake.Lakehouse/Files/in",
                "destinations": {"claims": "abfss://claims@account.dfs.core.windows.net/in", "local": "/data/in"},
                "results_url": f"{DEFAULT_ENDPOINT}/{WORKSPACE}/{ITEM}/Tables/results",
            },
            "user_activity": {"table_url": "s3://bucket/table"},
            "sources": {
                "halls": {"source_config": {"source_type": "onelake", "path": "halls/lake.Lakehouse/Files"}},
                "broken": {"source_config": {"source_type": "onelake", "path": "https://x\\y"}},
            },
        }
    )
    named = allowed_accounts(SourceContext(settings))
    for text, allowed in (
        ("store/other.Lakehouse/Files/x", True),
        ("abfss://claims@account.dfs.core.windows.net/x", True),
        ("abfss://others@account.dfs.core.windows.net/x", False),
        (f"{DEFAULT_ENDPOINT}/{WORKSPACE}/{ITEM}/Files/x", True),
        ("halls/lake.Lakehouse/Files/x", True),
        ("nobodys/lake.Lakehouse/Files/x", False),
    ):
        assert any(account.allows(parse_address(text)) for account in named) is allowed, text


def test_an_endpoint_of_one_s_own_is_listed_and_onelake_s_is_not() -> None:
    assert accounts_of([]) == []
    (own,) = accounts_of([], "https://account.dfs.core.windows.net")
    assert own.allows(parse_address("any/x", "https://account.dfs.core.windows.net"))


def test_a_name_with_a_pattern_s_characters_lists_itself_alone() -> None:
    (named,) = accounts_of([f"{DEFAULT_ENDPOINT}/[ab]*/lake.Lakehouse/Files"])
    assert named.allows(parse_address(f"{DEFAULT_ENDPOINT}/[ab]*/lake.Lakehouse/Files"))
    assert not named.allows(parse_address("ax/lake.Lakehouse/Files"))


@pytest.mark.parametrize(
    "endpoint", ["https://a\\b", "https://account.dfs.core.windows.net/x", "ftp://x", "https://u:p@x", "https://[::1"]
)
def test_an_endpoint_that_is_no_server_is_an_error_that_names_its_setting(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="INGEST_ONELAKE_ENDPOINT") as caught:
        parse_address("any/x", endpoint)
    assert "u:p" not in str(caught.value)
