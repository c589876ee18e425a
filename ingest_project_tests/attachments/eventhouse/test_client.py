"""Every incomplete or wrong answer is an error with a remedy; no token goes to an untrusted host."""

from __future__ import annotations

import time

import pytest
from pydantic import SecretStr

from ingest_project.attachments.eventhouse import (
    AnswerTooLargeError,
    BrokenAnswerError,
    QueryReportedError,
    check_address,
    check_frames,
    check_login,
)
from ingest_project.attachments.eventhouse.client import EventhouseClient
from ingest_project.core.errors import (
    AddressRejectedError,
    EventhouseUnavailableError,
    QueryRejectedError,
    SettingsError,
)
from ingest_project.core.settings import EventhouseSettings
from ingest_project_tests.attachments.eventhouse.samples import TABLE, access_to, row
from ingest_project_tests.services.identity import IdentityServer
from ingest_project_tests.services.kusto_server import Fault, KustoServer
from ingest_project_tests.services.kusto_tables import Database
from ingest_project_tests.services.listener import Listener

ALL_ROWS = f"['{TABLE}']\n| take 10"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault.THROTTLED, "throttled"),
        (Fault.UNAVAILABLE, "503"),
        (Fault.ERROR_AMONG_ROWS, "exceeded the allowed limits"),
        (Fault.ERROR_AT_THE_END, "An internal error occurred"),
        (Fault.CUT_IN_THE_MIDDLE, "ConnectionError|IncompleteRead|ChunkedEncodingError"),
        (Fault.WITHOUT_LAST_FRAME, "cut off"),
        (Fault.NOT_FRAMES, "not a list of frames"),
        (Fault.NOT_JSON, "Sign in, please"),
        (Fault.REDIRECT, "302"),
    ],
)
def test_a_temporary_fault_is_transient_and_the_next_query_works(
    client: EventhouseClient, kusto_server: KustoServer, database: Database, fault: Fault, said: str
) -> None:
    database.ingest(TABLE, row(1), row(2))
    kusto_server.fail_next(fault)

    with pytest.raises(EventhouseUnavailableError, match=said) as caught:
        client.query("events", ALL_ROWS)

    assert kusto_server.address in str(caught.value)
    assert len(str(caught.value)) < 600
    assert len(client.query("events", ALL_ROWS).rows) == 2


def test_an_answer_that_does_not_come_is_given_up_in_time(
    kusto_server: KustoServer, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest_project.attachments.eventhouse.client.NETWORK_SECONDS", 0.5)
    database.ingest(TABLE, row(1))
    kusto_server.fail_next(Fault.SLOW)
    started = time.monotonic()

    with (
        EventhouseClient(access_to(kusto_server, timeout_seconds=1)) as client,
        pytest.raises(EventhouseUnavailableError, match=r"[Tt]imed? ?out"),
    ):
        client.query("events", ALL_ROWS)

    assert time.monotonic() - started < 4


def test_a_cluster_that_is_away_is_transient() -> None:
    access = EventhouseSettings(address="http://127.0.0.1:9", authentication="none", trusted_hosts=["127.0.0.1"])
    with EventhouseClient(access) as client, pytest.raises(EventhouseUnavailableError, match="refused"):
        client.query("events", "T")


@pytest.mark.parametrize(
    ("fault", "said"), [(Fault.FORBIDDEN, "403.*not authorized.*Viewer"), (Fault.UNAUTHORIZED, "401.*Viewer")]
)
def test_a_query_without_permission_fails_permanently(
    client: EventhouseClient, kusto_server: KustoServer, database: Database, fault: Fault, said: str
) -> None:
    database.ingest(TABLE, row(1))
    kusto_server.fail_next(fault)

    with pytest.raises(QueryRejectedError, match=said):
        client.query("events", ALL_ROWS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("['Nowhere']", r"Failed to resolve table.*Nowhere.*Check the query's table"),
        (f"['{TABLE}']\n| sing loudly", "could not be parsed"),
    ],
)
def test_a_query_that_cannot_be_run_is_permanent_and_says_why(
    client: EventhouseClient, database: Database, text: str, said: str
) -> None:
    assert TABLE in database.tables
    with pytest.raises(QueryRejectedError, match=said):
        client.query("events", text)


def test_an_answer_over_the_limit_is_distinguished_from_other_errors(
    client: EventhouseClient, kusto_server: KustoServer, database: Database
) -> None:
    database.ingest(TABLE, row(1), row(2))
    kusto_server.page_limit = 1

    with pytest.raises(AnswerTooLargeError):
        client.query("events", ALL_ROWS)


def test_values_are_parameters_and_the_query_sets_limits_of_the_server(
    client: EventhouseClient, kusto_server: KustoServer, database: Database
) -> None:
    database.ingest(TABLE, row(1))
    client.query("events", ALL_ROWS, {"_after": "'; .drop table"})

    (request,) = kusto_server.requests
    assert ".drop" not in request["body"]["csl"]
    assert '"_after": "\'; .drop table"' in request["body"]["properties"]
    for option in ('"servertimeout": "0:00:02"', '"truncationmaxsize": 16777216', '"request_readonly": true'):
        assert option in request["body"]["properties"]
    assert request["headers"]["x-ms-app"] == "ingest-project"
    assert "Authorization" not in request["headers"]


def test_a_token_of_the_default_credential_is_sent_to_a_trusted_cluster(
    kusto_server: KustoServer, database: Database, identity_server: IdentityServer
) -> None:
    database.ingest(TABLE, row(1))
    kusto_server.token = identity_server.token("https://kusto.kusto.windows.net")

    with EventhouseClient(access_to(kusto_server, authentication="default")) as client:
        assert len(client.query("events", ALL_ROWS).rows) == 1
    assert identity_server.resources == ["https://kusto.kusto.windows.net"]


def test_a_failed_sign_in_is_reported_without_secrets(
    kusto_server: KustoServer, database: Database, identity_server: IdentityServer
) -> None:
    database.ingest(TABLE, row(1))
    identity_server.refuses = True

    with (
        EventhouseClient(access_to(kusto_server, authentication="default")) as client,
        pytest.raises(QueryRejectedError, match=r"sign-in failed.*check the credentials") as caught,
    ):
        client.query("events", ALL_ROWS)
    assert identity_server.secret not in str(caught.value)
    assert not any(request["path"] == "/v2/rest/query" for request in kusto_server.requests)


@pytest.mark.parametrize(
    "address",
    [
        "https://evil.example.com",
        "https://kusto.windows.net.evil.example.com",
        "https://evilkusto.windows.net",
        "https://.kusto.windows.net",
        "https://name.kusto.windows.net@evil.example.com",
        "https://user:password@name.kusto.windows.net",
        "https://name.kusto.windows.net/path",
        "https://name.kusto.windows.net?x=1",
        "https://name.kusto.windows.net;Fed=true",
        "http://name.kusto.windows.net",
        "https://name.kusto.windows.net:port",
        "ftp://name.kusto.windows.net",
        "https://127.0.0.1",
        "https://[::1",
        "https://127.0.0.1\\.kusto.windows.net",
        "https://127.0.0.1:8080\\.kusto.windows.net",
        "https://127.0.0.1%5c.kusto.windows.net",
        "https://127.0.0.1\t.kusto.windows.net",
        "https://2130706433",
        "https://name.kusto.windows.net:8443",
        "https://name.kusto.windows.net#x",
        "https://name.kusto.windows.net\u3002evil.example",
        "name.kusto.windows.net",
        "",
    ],
)
def test_an_address_that_is_not_trusted_gets_nothing(address: str) -> None:
    with pytest.raises(SettingsError) as caught:
        EventhouseClient(EventhouseSettings(address=address))
    assert "password" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "used"),
    [
        ("https://name.westeurope.kusto.windows.net", "https://name.westeurope.kusto.windows.net"),
        ("https://Trd-1.Z1.Kusto.Fabric.Microsoft.com/", "https://trd-1.z1.kusto.fabric.microsoft.com"),
        (" https://name.kusto.data.microsoft.com:443 ", "https://name.kusto.data.microsoft.com:443"),
        ("https://name.kusto.usgovcloudapi.net.", "https://name.kusto.usgovcloudapi.net"),
    ],
)
def test_microsoft_s_clouds_are_trusted(address: str, used: str) -> None:
    assert check_address(EventhouseSettings(address=address)) == used


def test_a_setting_trusts_further_hosts() -> None:
    trusted = ["*.private.example.com", "localhost"]
    for address in ("https://a.private.example.com", "http://localhost:8080", "http://b.private.example.com"):
        assert check_address(EventhouseSettings(address=address, trusted_hosts=trusted)) == address
    with pytest.raises(SettingsError, match="INGEST_EVENTHOUSE_TRUSTED_HOSTS"):
        check_address(EventhouseSettings(address="https://private.example.com", trusted_hosts=trusted))


def test_a_wildcard_does_not_allow_a_token_for_every_host() -> None:
    with pytest.raises(SettingsError, match="not trusted"):
        check_address(EventhouseSettings(address="https://evil.example.com", trusted_hosts=["*"]))


def test_a_request_for_another_host_is_not_sent(kusto_server: KustoServer, database: Database) -> None:
    database.ingest(TABLE, row(1))
    with EventhouseClient(access_to(kusto_server)) as client, Listener() as listener:
        client.query("events", ALL_ROWS)
        connected = client._open_client()
        connected._query_endpoint = f"http://127.0.0.1:{listener.port}/v2/rest/query"
        with pytest.raises(AddressRejectedError, match="not the one that this client is for"):
            client.query("events", ALL_ROWS)
        assert listener.connections == 0


@pytest.mark.parametrize(
    "authority",
    [
        "https://login.evil.example.com",
        "http://login.microsoftonline.com",
        "https://login.microsoftonline.com.evil.example.com",
        "https://127.0.0.1\\.login.microsoftonline.com",
        "https://login.microsoftonline.com@evil.example.com",
        "",
    ],
)
def test_an_application_s_secret_is_shown_to_microsoft_s_sign_in_alone(authority: str) -> None:
    access = EventhouseSettings(address="https://name.kusto.windows.net")
    with pytest.raises(SettingsError, match="sign in"):
        check_login(authority, access)
    assert check_login("https://login.microsoftonline.com/", access) == "https://login.microsoftonline.com"
    trusted = EventhouseSettings(address="https://name.kusto.windows.net", trusted_hosts=["login.private.example.com"])
    assert check_login("https://login.private.example.com", trusted) == "https://login.private.example.com"


def test_credentials_that_do_not_fit_together_are_refused_before_anything_is_sent() -> None:
    address = "https://name.kusto.windows.net"
    with pytest.raises(SettingsError, match="client secret"):
        EventhouseClient(
            EventhouseSettings(address=address, authentication="application", tenant_id="t", client_id="c")
        )
    with pytest.raises(SettingsError, match="only plain http"):
        EventhouseClient(EventhouseSettings(address=address, authentication="none"))


def test_secrets_do_not_print() -> None:
    access = EventhouseSettings(address="https://name.kusto.windows.net", client_secret=SecretStr("hush"))
    assert "hush" not in repr(access)


HEADER, END = {"FrameType": "DataSetHeader"}, {"FrameType": "DataSetCompletion"}


@pytest.mark.parametrize(
    "frames",
    [
        None,
        [],
        {},
        "text",
        [1],
        [HEADER],
        [END],
        [{}, END],
        [HEADER, {"FrameType": "DataTable"}, END],
        [HEADER, {"FrameType": "DataTable", "Columns": [{"ColumnName": "a"}], "Rows": [[1, 2]]}, END],
        [HEADER, {"FrameType": "DataTable", "Columns": [7], "Rows": []}, END],
        [HEADER, {"FrameType": "DataTable", "Columns": [], "Rows": ["text"]}, END],
    ],
)
def test_frames_of_another_shape_are_a_broken_answer(frames: object) -> None:
    with pytest.raises(BrokenAnswerError):
        check_frames(frames)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        ({"HasErrors": True}, "no reason given"),
        (
            {"OneApiErrors": [{"error": {"code": "A", "@message": "first"}}, {"error": {"message": "second"}}]},
            "first; second",
        ),
        ({"OneApiErrors": "odd"}, "no reason given"),
        ({"Rows": [{"Exceptions": ["too much", "far too much"]}]}, "too much; far too much"),
        ({"Rows": [{"OneApiErrors": [{"error": {"code": "LimitsExceeded"}}, {"odd": 1}, 2]}]}, "LimitsExceeded"),
    ],
)
def test_errors_are_found_wherever_an_answer_carries_them(frame: dict[str, object], said: str) -> None:
    with pytest.raises(QueryReportedError, match=said):
        check_frames([HEADER, frame, END])
