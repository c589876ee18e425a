"""For every URL that the grammar accepts, all clients contact the same host."""

from __future__ import annotations

import contextlib
import http.client
import socket
import time
from urllib.parse import urlsplit

import pytest
import requests
import urllib3
from botocore.awsrequest import AWSRequest
from botocore.httpsession import URLLib3Session
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest_project.core.errors import AddressRejectedError, ForbiddenPathError, SettingsError
from ingest_project.platform.azure import parse_address
from ingest_project.platform.http import MalformedAddressError, parse_host, parse_url, redacted_url, split_address
from ingest_project.platform.http.host_policy import HostRules
from ingest_project.platform.http.host_policy import parse_address as parse_ip

ODD = (
    "\\/@:%#?[].,;=&|^~`'\"<>{}*+-_ \t\r\n\x00\x7f\x85\xa0\xad"
    "\u200b\u2028\u202e\u3002\uff0e\uff0f\uff1a\uff20\uff3c\u2488\u0130\u017f\u212a"
)
PLAIN = "abcxyzABC0179.-"
HOST_TEXT = st.one_of(
    st.text(alphabet=PLAIN + ODD, max_size=30),
    st.text(alphabet=PLAIN, max_size=30),
    st.text(max_size=20),
    st.from_regex(r"(0x[0-9a-f]{1,8}|[0-9]{1,10})(\.(0x[0-9a-f]{1,4}|[0-9]{1,4})){0,4}\.?", fullmatch=True),
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.builds("{}.example.com".format, st.text(alphabet=PLAIN + ODD, max_size=12)),
    st.builds("127.0.0.1{}example.com".format, st.text(alphabet=ODD, min_size=1, max_size=3)),
)
PORT_TEXT = st.one_of(st.just(""), st.integers(-1, 70_000).map(":{}".format), st.text(alphabet=":0189a ", max_size=4))
REST = st.one_of(st.just(""), st.text(alphabet=PLAIN + ODD, max_size=20).map("/{}".format), st.text(max_size=10))
ADDRESSES = st.builds(
    "{}{}{}{}".format, st.sampled_from(["http://", "https://", "HTTP://"]), HOST_TEXT, PORT_TEXT, REST
)


def hosts_that_clients_contact(url: str) -> set[str]:
    """As each library reads the address that is about to be requested."""
    prepared = requests.Request("GET", url).prepare().url or ""
    pool = urllib3.PoolManager().connection_from_url(url)
    botocore = URLLib3Session()._manager.connection_from_url(AWSRequest("GET", url).prepare().url)  # type: ignore[attr-defined]
    return {
        str(urlsplit(url).hostname),
        str(urlsplit(prepared).hostname),
        str(urllib3.util.parse_url(url).host).strip("[]"),
        pool.host.strip("[]"),
        botocore.host.strip("[]"),
        http.client.HTTPConnection(urlsplit(url).netloc).host,
    }


@settings(deadline=None)
@given(ADDRESSES)
@example("https://127.0.0.1:8080\\.dfs.fabric.microsoft.com/w/i.Lakehouse/Files")
@example("http://example.com:80/\\@127.0.0.1")
@example("http://127.0.0.1#@example.com/")
@example("http://example.com?@127.0.0.1/")
def test_every_client_reads_the_checked_host_from_an_accepted_url(text: str) -> None:
    try:
        address = parse_url(text)
    except AddressRejectedError:
        return
    assert address.url.isascii()
    assert parse_url(address.url) == address
    assert hosts_that_clients_contact(address.url) == {address.host}
    assert (urlsplit(address.url).port or address.port) == address.port
    assert (urllib3.util.parse_url(address.url).port or address.port) == address.port


@settings(deadline=None)
@given(HOST_TEXT)
def test_a_host_is_a_name_or_one_spelling_of_an_address(text: str) -> None:
    try:
        host = parse_host(text)
    except MalformedAddressError:
        return
    assert parse_host(f"[{host}]" if ":" in host else host) == host
    address = parse_ip(host)
    if address is not None:
        assert str(address) == host
        return
    # A name, then, also to the system's resolver, which takes much for a number.
    with pytest.raises(OSError, match="illegal IP address"):
        socket.inet_aton(host)


@settings(deadline=None)
@given(st.one_of(ADDRESSES, st.text(), st.binary().map(lambda data: data.decode("utf-8", "surrogateescape"))))
def test_any_text_is_an_address_or_refused_by_an_error_of_ours(text: str) -> None:
    for read in (HostRules().check, parse_address, redacted_url):
        with contextlib.suppress(AddressRejectedError, ForbiddenPathError, SettingsError):
            read(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://" + "a." * 500_000,
        "https://" + "[" * 1_000_000,
        "https://" + "\u00fc" * 200_000,
        "https://" + "@" * 1_000_000,
        "https://a/" + "%" * 8_000,
        "https://" + "a-" * 100 + "/",
        "9" * 1_000_000,
    ],
)
def test_a_long_text_is_refused_or_read_in_bounded_time(text: str) -> None:
    begun_at = time.thread_time()
    with contextlib.suppress(MalformedAddressError):
        split_address(text, ("https",))
    with contextlib.suppress(AddressRejectedError):
        parse_url(text)
    assert time.thread_time() - begun_at < 5
