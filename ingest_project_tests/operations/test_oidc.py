"""Signing in with OpenID Connect, at a provider that may be wrong, broken or hostile."""

from __future__ import annotations

from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import pytest
import requests
from joserfc.jwk import OctKey
from pydantic import SecretStr
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import OidcSettings, Settings, load_settings
from ingest_project.operations.dashboard.auth import Gate
from ingest_project_tests.operations.conftest import serving
from ingest_project_tests.operations.test_access import console
from ingest_project_tests.services.oidc_provider import CLIENT_ID, CLIENT_SECRET, FOREIGN_KEY, OidcProvider

TOKEN = "the-token-of-viewers"  # noqa: S105 - of this test
PAGE = {"Accept": "text/html"}
VERIFIED = {"sub": "person-1", "email": "Ada@Example.com", "email_verified": True}


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    with OidcProvider() as started:
        yield started


@pytest.fixture
def site(provider: OidcProvider) -> Iterator[str]:
    with serving(console(Gate(TOKEN, has_provider=True), Settings(oidc=settings_of(provider)))) as started:
        yield started


def settings_of(provider: OidcProvider) -> OidcSettings:
    """Settings that lead to the provider."""
    return OidcSettings(
        issuer=provider.issuer,
        client_id=CLIENT_ID,
        client_secret=SecretStr(CLIENT_SECRET),
        operators=["ada@example.com", "ops"],
        viewers=["auditors", "grace@example.com"],
    )


def sign_in(person: requests.Session, site: str, path: str = "/") -> requests.Response:
    """Follow the way from a page to the provider and back, as a browser does."""
    form = person.get(site + path, headers=PAGE, timeout=5)
    link = unescape(form.text.partition('<a class="button main" href="')[2].partition('"')[0])
    return person.get(urljoin(form.url, link), headers=PAGE, timeout=5)


def role_of(person: requests.Session, site: str) -> str | None:
    """The role that the pages of this site see."""
    answer = person.get(f"{site}/", timeout=5)
    return f"{answer.json()['name']}: {answer.json()['role']}" if answer.ok else None


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        (VERIFIED, "ada@example.com: operator"),
        (VERIFIED | {"email_verified": "true"}, "ada@example.com: operator"),
        (VERIFIED | {"email": "grace@example.com"}, "grace@example.com: viewer"),
        (VERIFIED | {"email": "eve@example.com", "groups": ["auditors"]}, "eve@example.com: viewer"),
        ({"sub": "person-2", "groups": ["auditors", "ops"]}, "person-2: operator"),
        ({"sub": "person-2", "groups": "ops"}, "person-2: operator"),
    ],
)
def test_a_person_gets_the_role_of_the_list_they_are_in(
    site: str, provider: OidcProvider, claims: dict[str, Any], role: str
) -> None:
    provider.claims = claims
    with requests.Session() as person:
        answer = sign_in(person, site, "/items/file/x?y=1")
        assert answer.status_code == 200
        assert 'content="0;url=../items/file/x?y=1"' in answer.text
        assert role_of(person, site) == role
        csrf_token = person.get(f"{site}/", timeout=5).json()["csrf_token"]
        acted = person.post(f"{site}/act", data={"csrf_token": csrf_token}, timeout=5)
        assert acted.status_code == (200 if "operator" in role else 403)
        person.post(f"{site}/logout", timeout=5)
        assert role_of(person, site) is None


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "person-3"},
        VERIFIED | {"email": "eve@example.com"},
        VERIFIED | {"email_verified": False},
        {"sub": "person-3", "email": "ada@example.com"},
        {"sub": "ada@example.com", "preferred_username": "ada@example.com", "name": "ops"},
        {"sub": "person-3", "groups": ["ada@example.com", "Ops", 7, None]},
        {"sub": "person-3", "groups": {"ops": True}},
    ],
)
def test_a_person_in_neither_list_is_refused_with_that_reason(
    site: str, provider: OidcProvider, claims: dict[str, Any]
) -> None:
    provider.claims = claims
    with requests.Session() as person:
        answer = sign_in(person, site)
        assert answer.status_code == 403
        assert "INGEST_OIDC_OPERATORS" in answer.text
        assert ("has not verified" in answer.text) == ("email" in claims and claims.get("email_verified") is not True)
        assert role_of(person, site) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"nonce": "another"}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"aud": "another"}, "aud"),
        ({"aud": [CLIENT_ID, "another"]}, "azp"),
        ({"azp": "another"}, "azp"),
        ({"iss": "https://another.example"}, "iss"),
        ({"exp": 1}, "exp"),
        ({"exp": None}, "exp"),
        ({"iat": 4_000_000_000}, "iat"),
        ({"nbf": 4_000_000_000}, "nbf"),
        ({"sub": None}, "sub"),
    ],
)
def test_an_id_token_for_another_time_place_or_person_is_refused(
    site: str, provider: OidcProvider, changes: dict[str, Any], named: str
) -> None:
    provider.claims = VERIFIED
    provider.spoil = lambda claims: claims.update(changes)
    with requests.Session() as person:
        answer = sign_in(person, site)
        assert answer.status_code == 403
        assert f"({named})" in answer.text
        assert role_of(person, site) is None


def test_an_id_token_that_the_provider_did_not_sign_is_refused(site: str, provider: OidcProvider) -> None:
    provider.claims = VERIFIED
    shared = OctKey.import_key(CLIENT_SECRET)
    for key, algorithm in ((FOREIGN_KEY, "RS256"), (shared, "HS256"), (None, "none")):
        provider.key, provider.header = key, {"alg": algorithm, "kid": "first"}
        with requests.Session() as person:
            assert sign_in(person, site).status_code == 403
            assert role_of(person, site) is None


def test_the_clocks_may_differ_a_little(site: str, provider: OidcProvider) -> None:
    provider.claims = VERIFIED
    provider.spoil = lambda claims: claims.update(iat=claims["iat"] + 40, nbf=claims["iat"] + 40)
    with requests.Session() as person:
        assert sign_in(person, site).status_code == 200


def test_an_answer_works_once_and_in_the_browser_that_asked(site: str, provider: OidcProvider) -> None:
    provider.claims = VERIFIED
    with requests.Session() as person, requests.Session() as other:
        begun = person.get(f"{site}/oidc/login", allow_redirects=False, timeout=5)
        cookie = begun.headers["Set-Cookie"].lower()
        assert {"httponly", "samesite=lax", "max-age=600"} <= set(cookie.split("; "))
        query = parse_qs(urlsplit(begun.headers["Location"]).query)
        assert query["code_challenge_method"] == ["S256"]
        assert query["redirect_uri"] == [f"{site}/oidc/callback"]
        callback = requests.get(begun.headers["Location"], allow_redirects=False, timeout=5).headers["Location"]
        assert other.get(callback, timeout=5).status_code == 400
        assert person.get(callback, timeout=5).status_code == 400, "it was used, by whoever found it"
    with requests.Session() as person:
        answer = sign_in(person, site)
        assert role_of(person, site)
        assert person.get(answer.url, headers=PAGE, timeout=5).status_code == 400
        assert person.get(f"{site}/oidc/callback?state=x&code=y", timeout=5).status_code == 400
        assert person.get(f"{site}/oidc/callback", timeout=5).status_code == 400


def test_the_provider_confirms_a_person_again_after_a_while_without_a_question(provider: OidcProvider) -> None:
    gate = Gate(TOKEN, has_provider=True)
    with (
        serving(console(gate, Settings(oidc=settings_of(provider)))) as site,
        requests.Session() as person,
        requests.Session() as other,
    ):
        provider.claims = VERIFIED
        sign_in(person, site)
        other.post(f"{site}/login", {"token": TOKEN}, timeout=5)
        csrf_token = person.get(f"{site}/", timeout=5).json()["csrf_token"]
        age(gate)
        acted = person.post(f"{site}/act", data={"csrf_token": csrf_token}, timeout=5)
        assert (acted.status_code, "confirmed again" in acted.text) == (401, True)
        assert role_of(other, site) == "viewer token: viewer", "nobody but the provider's people is asked about"

        provider.claims = VERIFIED | {"email": "grace@example.com"}
        back = person.get(f"{site}/items/file/x", headers=PAGE, timeout=5)
        assert 'content="0;url=../items/file/x"' in back.text
        assert role_of(person, site) == "grace@example.com: viewer"
        assert provider.prompts == ["", "none"]

        age(gate)
        provider.error = "login_required"
        form = person.get(f"{site}/items/file/x", headers=PAGE, timeout=5)
        assert (form.status_code, urlsplit(form.url).path, urlsplit(form.url).query) == (
            200,
            "/login",
            "next=/items/file/x",
        )
        assert role_of(person, site) is None


def test_a_person_removed_from_the_lists_is_signed_out(provider: OidcProvider) -> None:
    gate = Gate(has_provider=True)
    with serving(console(gate, Settings(oidc=settings_of(provider)))) as site, requests.Session() as person:
        provider.claims = VERIFIED
        sign_in(person, site)
        age(gate)
        provider.claims = VERIFIED | {"email": "eve@example.com"}
        assert person.get(f"{site}/", headers=PAGE, timeout=5).status_code == 403
        assert role_of(person, site) is None


def age(gate: Gate) -> None:
    """Let the time pass after which people are confirmed again."""
    for digest, session in gate._sessions.items():
        if session.trusted_until is not None:
            gate._sessions[digest] = session._replace(trusted_until=0.0)


def test_too_many_sign_ins_from_one_client_are_rate_limited(site: str) -> None:
    with requests.Session() as person:
        begun = 0
        while (answer := person.get(f"{site}/oidc/login", allow_redirects=False, timeout=5)).status_code == 303:
            begun += 1
    assert begun >= 30
    assert (answer.status_code, int(answer.headers["Retry-After"]) <= 2) == (429, True)


def test_text_from_the_provider_is_escaped(site: str, provider: OidcProvider) -> None:
    provider.error = "<b>access_denied</b>"
    with requests.Session() as person:
        answer = sign_in(person, site)
    assert answer.status_code == 403
    assert "&lt;b&gt;access_denied" in answer.text


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://another.example"},
        {"token_endpoint": "http://192.0.2.1/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": None},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
)
def test_a_provider_that_answers_wrongly_is_named(
    site: str, provider: OidcProvider, metadata: dict[str, object]
) -> None:
    provider.claims, provider.metadata = VERIFIED, metadata
    with requests.Session() as person:
        answer = sign_in(person, site)
        assert answer.status_code == 502
        assert urlsplit(provider.issuer).netloc in answer.text
        assert role_of(person, site) is None


def test_while_the_provider_is_away_it_is_named_and_the_token_still_works(site: str, provider: OidcProvider) -> None:
    provider.__exit__()
    with requests.Session() as person:
        answer = sign_in(person, site)
        assert answer.status_code == 502
        assert "does not answer" in answer.text
        assert person.post(f"{site}/login", data={"token": TOKEN}, timeout=5).ok
        assert role_of(person, site) == "viewer token: viewer"


def test_claims_missing_from_the_id_token_are_fetched_for_the_same_person(site: str, provider: OidcProvider) -> None:
    provider.userinfo = VERIFIED
    for claims, role in (
        ({"sub": "person-1"}, "ada@example.com: operator"),
        ({"sub": "person-9"}, None),
        ({"sub": "person-1", "email": "grace@example.com"}, None),
    ):
        provider.claims = claims
        with requests.Session() as person:
            sign_in(person, site)
            assert role_of(person, site) == role


def test_a_provider_that_takes_the_secret_in_the_form_only_gets_it_there(site: str, provider: OidcProvider) -> None:
    provider.claims = VERIFIED
    provider.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    with requests.Session() as person:
        assert sign_in(person, site).status_code == 200


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"INGEST_OIDC_CLIENT_ID": ""}, "INGEST_OIDC_CLIENT_ID"),
        ({"INGEST_OIDC_OPERATORS": ""}, "INGEST_OIDC_VIEWERS"),
        ({"INGEST_OIDC_ISSUER": "http://provider.example"}, "INGEST_OIDC_ISSUER"),
        ({"INGEST_OIDC_SCOPES": "email"}, "INGEST_OIDC_SCOPES"),
        ({"INGEST_OIDC_REDIRECT_URL": "/oidc/callback"}, "INGEST_OIDC_REDIRECT_URL"),
    ],
)
def test_settings_that_admit_nobody_or_everybody_are_refused(
    variables: dict[str, str], named: str, tmp_path: Path
) -> None:
    complete = {
        "INGEST_OIDC_ISSUER": "https://provider.example",
        "INGEST_OIDC_CLIENT_ID": CLIENT_ID,
        "INGEST_OIDC_OPERATORS": "ada@example.com,ops",
    }
    assert load_settings(complete, tmp_path).settings.oidc.operators == ["ada@example.com", "ops"]
    with pytest.raises(SettingsError, match=named):
        load_settings(complete | variables, tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_browser_keeps_the_person_signed_in_over_links_from_other_sites(browser: webdriver.Chrome) -> None:
    def wait_for(text: str) -> None:
        shown = lambda _: text in browser.page_source  # noqa: E731 - one line
        WebDriverWait(browser, 20, 0.1).until(shown, f"{text} is not shown: {browser.current_url}")

    # For a browser, the two names of this machine are two sites.
    with OidcProvider(name="localhost") as provider:
        provider.claims = VERIFIED
        with serving(console(Gate(has_provider=True), Settings(oidc=settings_of(provider)))) as site:
            browser.get(f"{site}/items/file/x?y=1")
            browser.find_element(By.CSS_SELECTOR, "a.button.main").click()
            wait_for("ada@example.com")
            assert browser.current_url == f"{site}/items/file/x?y=1"
            provider.link = f"{site}/items/file/z"
            browser.get(f"{provider.issuer}/mail")
            browser.find_element(By.TAG_NAME, "a").click()
            wait_for("ada@example.com")
            assert browser.current_url == provider.link
