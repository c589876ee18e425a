"""OneLake addresses, and the locations that may be written."""

from __future__ import annotations

import pytest

from ingest_project.core.errors import ForbiddenPathError, SettingsError
from ingest_project.platform.azure import (
    DEFAULT_ENDPOINT,
    OneLakeAddress,
    is_address,
    parse_address,
    require_folder,
    require_writable,
)

WORKSPACE = "3f0a2c1e-58f1-4f7e-9d9b-0a6f5a2b7c11"
ITEM = "c7b1d3e2-0000-4a4a-8b8b-123456789abc"
BY_NAME = OneLakeAddress(DEFAULT_ENDPOINT, "analytics", "lake.Lakehouse/Files/in")


@pytest.mark.parametrize(
    "text",
    [
        "https://onelake.dfs.fabric.microsoft.com/analytics/lake.Lakehouse/Files/in",
        "https://onelake.dfs.fabric.microsoft.com/analytics/lake.Lakehouse/Files/in/",
        "https://OneLake.blob.fabric.microsoft.com/analytics/lake.Lakehouse/Files/in",
        "abfss://analytics@onelake.dfs.fabric.microsoft.com/lake.Lakehouse/Files/in",
        "analytics/lake.Lakehouse/Files/in",
    ],
)
def test_every_form_of_an_address_names_the_same_location(text: str) -> None:
    assert parse_address(text) == BY_NAME
    assert is_address(text)


def test_an_address_by_two_guids_needs_no_item_type() -> None:
    address = parse_address(f"{DEFAULT_ENDPOINT}/{WORKSPACE}/{ITEM}/Files/in")
    assert (address.file_system, address.path) == (WORKSPACE, f"{ITEM}/Files/in")
    assert address.is_fabric
    assert is_address(f"{WORKSPACE}/{ITEM}/Files/in")


def test_names_with_spaces_and_other_scripts_are_percent_encoded_in_addresses_and_plain_in_paths() -> None:
    address = parse_address("abfss://My%20Team@onelake.dfs.fabric.microsoft.com/lake.Lakehouse/Files/Größe")
    assert (address.file_system, address.path) == ("My Team", "lake.Lakehouse/Files/Größe")
    assert parse_address(address.url) == address


def test_the_rules_of_fabric_do_not_apply_to_other_accounts() -> None:
    address = parse_address("abfss://container@account.dfs.core.windows.net/in")
    assert address == OneLakeAddress("https://account.dfs.core.windows.net", "container", "in")
    assert not address.is_fabric
    require_writable(address)
    require_folder(parse_address("https://account.dfs.core.windows.net/container"))


def test_the_configured_endpoint_is_trusted_and_may_be_plain_http() -> None:
    endpoint = "http://127.0.0.1:8123"
    assert parse_address("abfss://analytics@127.0.0.1:8123/x", endpoint).account_url == endpoint
    assert parse_address("analytics/lake.Lakehouse/Files", endpoint).url == f"{endpoint}/analytics/lake.Lakehouse/Files"


@pytest.mark.parametrize(
    "text",
    [
        "https://onelake.dfs.fabric.microsoft.com.evil.example/analytics/lake.Lakehouse/Files",
        "https://evil.example/analytics/lake.Lakehouse/Files",
        "https://evilonelake.dfs.example/analytics/lake.Lakehouse/Files",
        "http://account.dfs.core.windows.net/container/x",
        "https://127.0.0.1/analytics/x",
        "https://account.dfs.core.windows.net:8443@evil.example/container/x",
    ],
)
def test_no_credential_is_sent_to_a_host_that_is_not_trusted(text: str) -> None:
    with pytest.raises((ForbiddenPathError, SettingsError)):
        parse_address(text)


@pytest.mark.parametrize(
    "path", ["../other", "a/../../b", "a//b", "a/./b", "a\\b", "a\x00b", "a\nb", "x" * 1100, "\ud800"]
)
def test_a_path_that_is_not_plain_is_refused(path: str) -> None:
    with pytest.raises(ForbiddenPathError):
        BY_NAME.child(path)


def test_a_percent_encoded_parent_is_refused_as_well() -> None:
    with pytest.raises(ForbiddenPathError):
        parse_address(f"{DEFAULT_ENDPOINT}/analytics/lake.Lakehouse/Files/%2e%2e/%2e%2e/x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://onelake.dfs.fabric.microsoft.com",
        "s3://bucket/x",
        "abfss://onelake.dfs.fabric.microsoft.com/x",
        "https://onelake.dfs.fabric.microsoft.com/analytics/lake/Files",
        f"https://onelake.dfs.fabric.microsoft.com/{WORKSPACE}/lake.Lakehouse/Files",
    ],
)
def test_an_invalid_address_is_refused_with_an_example_or_the_reason(text: str) -> None:
    with pytest.raises(SettingsError, match=r"Example|GUID"):
        parse_address(text)


def test_an_address_with_a_signature_is_refused_without_repeating_it() -> None:
    with pytest.raises(SettingsError) as refused:
        parse_address("https://account.dfs.core.windows.net/container/x?sv=2024&sig=c2VjcmV0")
    assert "c2VjcmV0" not in str(refused.value)


@pytest.mark.parametrize("path", ["", "lake.Lakehouse", "lake.Lakehouse/Files", "lake.Lakehouse/New"])
def test_workspaces_items_and_their_first_level_are_not_written(path: str) -> None:
    with pytest.raises(ForbiddenPathError, match="Fabric"):
        require_writable(OneLakeAddress(DEFAULT_ENDPOINT, "analytics", path))


def test_a_store_cannot_stand_above_the_first_level_of_an_item() -> None:
    with pytest.raises(ForbiddenPathError, match="first level"):
        require_folder(parse_address("analytics/lake.Lakehouse"))
    require_folder(parse_address("analytics/lake.Lakehouse/Files"))


@pytest.mark.parametrize("text", ["downloads", "./a/b", "/data/lake.Lakehouse/Files", "data/in", "s3://bucket/x"])
def test_a_local_folder_is_not_an_address(text: str) -> None:
    assert not is_address(text)
