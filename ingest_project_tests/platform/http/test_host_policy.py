"""Hosts that may be contacted, by name and by address."""

from __future__ import annotations

import pytest

from ingest_project.core.errors import AddressRejectedError, SettingsError
from ingest_project.platform.http import parse_url, redacted_url
from ingest_project.platform.http.host_policy import HostRules, parse_address, why_internal

INTERNAL = (
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::",
    "::1",
    "fe80::1",
    "fec0::1",
    "fc00::1",
    "fd12:3456::1",
    "ff02::1",
    "100::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::8.8.8.8",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2607:f8b0::5efe:10.0.0.1",
    "fe80::5efe:8.8.8.8",
)
PUBLIC = (
    "8.8.8.8",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
)

LOOPBACK_SPELLINGS = (
    "http://127.0.0.1/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://127.0.0.1:8080/",
    "HTTP://127.0.0.1/",
)
# What one resolver reads as 127.0.0.1 and another as a name.
NUMBER_TRICKS = (
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://0X7F.1/",
    "http://0177.0.0.1/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://127.1/",
    "http://127.0.0.1./",
    "http://127.0.0.1.2/",
    "http://127.0.0.256/",
    "http://example.127/",
    "http://example.0x7f/",
    "http://0x/",
    "http://１２７.0.0.1/",  # noqa: RUF001 - that is the point
    "http://127。0。0。1/",
    "http://١٢٧.0.0.1/",
    "http://[::ffff:127.0.0.1]/",
    "http://[0:0:0:0:0:ffff:7f00:1]/",
    "http://[127.0.0.1]/",
    "http://[::1]]/",
)
MALFORMED = (
    "",
    "a.pdf",
    "//example.com/a.pdf",
    "file:///etc/passwd",
    "ftp://example.com/a",
    "gopher://example.com/",
    "javascript://example.com/%0aalert(1)",
    "http://user:password@example.com/",
    "http://example.com@127.0.0.1/",
    "http://127.0.0.1\\@example.com/",
    "http://example.com\\.internal/",
    "http://exa mple.com/",
    "http://example.com\r\nHost: internal/",
    "http://example.com/\r\nX: y",
    "http://exam\tple.com/",
    "http:///a.pdf",
    "http://.example.com/",
    "http://a..b/",
    "http://%31%32%37.0.0.1/",
    "http://[::1%25lo]/",
    "http://[fe80::1%eth0]/",
    "http://[::1/",
    "http://example.com:99999/",
    "http://example.com:0/",
    "http://example.com:80a/",
    "http://" + "a" * 300 + ".com/",
    "http://example.com/" + "a" * 10_000,
    "http://example.com:/",
    "http://example.com:+80/",
    "http://example.com:８０/",  # noqa: RUF001
    "http://example.com:80:80/",
    "http://example.com\\/",
    "http://\\example.com/",
    "http:\\\\example.com/",
    "http:/example.com/",
    "http:example.com",
    "http://127.0.0.1\\.example.com/",
    "http://127.0.0.1%5c.example.com/",
    "http://127.0.0.1%00.example.com/",
    "http://127.0.0.1;.example.com/",
    "http://127.0.0.1,example.com/",
    "http://-example.com/",
    "http://example-.com/",
    "http://exam\u00adple.com/",
    "http://exam\u200bple.com/",
    "http://exam\u202eple.com/",
    "http://example\uff0ecom/",
    "http://example\u2488com/",
    "http://example.com\uff0fpath/",
    "http://\u2100.com/",
    "http://a/\ud800",
    "http://[v1.x]/",
    "http://[::1]x/",
    "http://[::1",
    "http://::1/",
    "http://[[::1]]/",
    "http://*.example.com/",
)


@pytest.mark.parametrize("address", INTERNAL)
def test_an_internal_address_is_known_in_every_form(address: str) -> None:
    parsed = parse_address(address)
    assert parsed is not None
    assert why_internal(parsed)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_not_internal(address: str) -> None:
    parsed = parse_address(address)
    assert parsed is not None
    assert why_internal(parsed) is None


@pytest.mark.parametrize("url", LOOPBACK_SPELLINGS)
def test_no_spelling_of_an_internal_address_is_let_through(url: str) -> None:
    with pytest.raises(AddressRejectedError, match="INGEST_ALLOWED_INTERNAL_HOSTS would allow it"):
        HostRules().check(url)


@pytest.mark.parametrize("url", [*MALFORMED, *NUMBER_TRICKS])
def test_urls_that_parsers_read_differently_are_refused(url: str) -> None:
    with pytest.raises(AddressRejectedError):
        HostRules().check(url)


def test_an_address_is_parsed_into_its_canonical_spelling() -> None:
    address = parse_url(" HTTPS://Bücher.Example.:443/straße/a b.pdf?sig=a%2Bb#top ")
    assert address.url == "https://xn--bcher-kva.example/stra%C3%9Fe/a%20b.pdf?sig=a%2Bb"
    assert address.origin == "https://xn--bcher-kva.example"
    assert parse_url("http://[2606:4700::1111]:8080").url == "http://[2606:4700::1111]:8080/"


@pytest.mark.parametrize(
    ("pattern", "url", "let_through"),
    [
        ("example.com", "https://example.com/", True),
        ("example.com", "https://a.example.com/", False),
        ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("*.example.com", "https://badexample.com/", False),
        ("*.example.com", "https://example.com.evil.net/", False),
        ("EXAMPLE.com:8443", "https://example.com:8443/", True),
        ("example.com:8443", "https://example.com/", False),
        ("bücher.example", "https://xn--bcher-kva.example/", True),
        ("8.8.8.0/24", "http://8.8.8.8/", True),
        ("8.8.8.0/24", "http://8.8.9.8/", False),
        ("[2606:4700::]:443", "https://[2606:4700::]/", True),
        ("*", "https://anything.net/", True),
    ],
)
def test_an_allow_list_lets_only_its_own_hosts_through(pattern: str, url: str, *, let_through: bool) -> None:
    rules = HostRules(allowed=[pattern])
    if let_through:
        rules.check(url)
    else:
        with pytest.raises(AddressRejectedError, match="INGEST_ALLOWED_HOSTS would allow it"):
            rules.check(url)


def test_a_denied_host_stays_denied_whatever_allows_it() -> None:
    rules = HostRules(allowed=["*"], denied=["*.evil.net", "10.0.0.0/8"], internal=["10.0.0.0/8"])
    for url in ("https://a.evil.net/", "http://10.1.2.3/", "http://[64:ff9b::a01:203]/"):
        with pytest.raises(AddressRejectedError, match="INGEST_DENIED_HOSTS"):
            rules.check(url)


def test_an_internal_host_is_allowed_by_name_network_and_port_only() -> None:
    rules = HostRules(internal=["127.0.0.1:8080", "192.168.7.0/24", "fd00::/8"])
    for url in ("http://127.0.0.1:8080/", "http://192.168.7.9/", "http://[fd00::7]/"):
        rules.check(url)
    for url in ("http://127.0.0.1:8081/", "http://192.168.8.9/", "http://[fc00::7]/"):
        with pytest.raises(AddressRejectedError):
            rules.check(url)


@pytest.mark.parametrize(
    "pattern", ["", "a b", "http://example.com", "example.com:port", "a.*.com", "example.com:70000"]
)
def test_a_malformed_pattern_is_an_error_of_the_settings(pattern: str) -> None:
    with pytest.raises(SettingsError):
        HostRules(allowed=[pattern])


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("https://example.com/a.pdf?sig=secret#f", "https://example.com/a.pdf?…"),
        ("https://user:secret@example.com/a.pdf", "https://example.com/a.pdf"),
        ("https://user:secret@example.com?x", "https://example.com?…"),
        ("https://a/\x1b[31m\n", "https://a/\ufffd[31m\ufffd"),
    ],
)
def test_a_printed_address_carries_no_secret_and_no_control_character(url: str, printed: str) -> None:
    assert redacted_url(url) == printed
