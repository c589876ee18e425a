"""Sign-in with OpenID Connect: authorization code with PKCE, and a verified ID token that determines the role.

The provider is contacted only while a person signs in, and its addresses and keys are requested each time, so that
changed keys take effect immediately. A person gets the role of the list with their verified mail address or one of
their groups; an operator needs no entry in the other list. A person in neither list is refused.

This module also has the sign-in pages, for tokens and for the provider.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlsplit

import msgspec
import requests
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ingest_project.core.logging import get_logger, printable
from ingest_project.core.settings import Settings
from ingest_project.core.settings.platform import OidcSettings
from ingest_project.operations.dashboard.auth import (
    COOKIE,
    MAX_RETURN_CHARACTERS,
    SESSION_SECONDS,
    Gate,
    Role,
    Viewer,
    address_of,
    cookie_of,
    is_https,
    set_cookie,
    too_many,
)
from ingest_project.operations.dashboard.limits import ActionLimits, network_of
from ingest_project.operations.dashboard.rendering import render, root_of
from ingest_project.platform.http import is_loopback

logger = get_logger(__name__)

# Only public-key algorithms: with `none`, or a shared secret and a public client, anyone could sign a token.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
# Allowed difference between the clocks of the provider and of this host.
LEEWAY_SECONDS = 60
SIGN_IN_SECONDS = 600
MAX_SIGN_INS = 1_000
TIMEOUT_SECONDS = 10.0
MAX_ANSWER_BYTES = 1024**2
MAX_NAME_CHARACTERS = 200
ABANDONED = "This sign-in has expired, was used before or began in another browser. Sign in again."


class SignIn(NamedTuple):
    """A sign-in in progress.

    Args:
        browser: value of the cookie in the browser.
        redirect_url: address to which the provider redirects back.
        to: address on this site that the person wanted to see.
        ends: monotonic time of its expiry.
        silent: True if the provider must not prompt the person.
    """

    browser: str
    verifier: str
    nonce: str
    redirect_url: str
    to: str
    ends: float
    silent: bool = False


class Provider:
    """The configured provider, and the sign-ins in progress.

    Args:
        settings: settings with the issuer.
    """

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._begun: OrderedDict[str, SignIn] = OrderedDict()

    @property
    def host(self) -> str:
        """Return the provider's host, for people."""
        return urlsplit(self._settings.issuer).netloc

    def begin(self, redirect_url: str, to: str, *, silent: bool = False) -> tuple[str, str]:
        """Begin a sign-in.

        Args:
            redirect_url: address of this site to which the provider redirects back.
            to: address on this site that the person wants to see.
            silent: confirm a person who has signed in before without prompting them.

        Returns:
            the value of the cookie that ties the sign-in to the browser, and the provider's address for the person.

        Raises:
            HTTPException: 502: the provider's answer is invalid or missing.
        """
        from authlib.integrations.requests_client import OAuth2Session  # only where people sign in

        now = time.monotonic()
        while self._begun and (len(self._begun) >= MAX_SIGN_INS or next(iter(self._begun.values())).ends <= now):
            self._begun.popitem(last=False)
        browser, state, verifier, nonce = (secrets.token_urlsafe(48) for _ in range(4))
        with OAuth2Session(**self._identity()) as client:
            address, _ = client.create_authorization_url(
                self._endpoint(self._metadata(client), "authorization_endpoint"),
                state=state,
                code_verifier=verifier,
                nonce=nonce,
                redirect_uri=redirect_url,
                **({"prompt": "none"} if silent else {}),
            )
        self._begun[state] = SignIn(browser, verifier, nonce, redirect_url, to, now + SIGN_IN_SECONDS, silent)
        return browser, str(address)

    def finish(self, browser: str, answer: dict[str, str]) -> tuple[Viewer | None, str]:
        """Finish a sign-in, which is possible only once.

        Args:
            browser: value of the browser's cookie.
            answer: parameters of the provider's redirect.

        Returns:
            the person, and the address that they wanted to see; no person if the provider refused a silent sign-in.

        Raises:
            HTTPException: 400: this browser has no such sign-in; 403: the person is not admitted; 502: the provider's
                answer is invalid or missing.
        """
        begun = self._begun.pop(answer.get("state", ""), None)
        if not begun or begun.ends <= time.monotonic() or not _equal(browser, begun.browser):
            raise HTTPException(400, ABANDONED)
        if answer.get("iss", self._settings.issuer) != self._settings.issuer:
            raise HTTPException(400, "The answer comes from another provider.")
        if "code" not in answer:
            if begun.silent:
                logger.info("monitor_session_not_renewed", provider=self.host, error=answer.get("error"))
                return None, begun.to
            reason = answer.get("error_description") or answer.get("error") or "no reason given"
            raise HTTPException(403, f"{self.host} did not sign you in: {printable(reason[:MAX_NAME_CHARACTERS])}.")
        claims = self._claims(begun, answer["code"])
        viewer = self._viewer(claims)
        logger.info("monitor_signed_in", person=viewer.name, role=viewer.role.value)
        return viewer, begun.to

    def _claims(self, begun: SignIn, code: str) -> dict[str, Any]:
        """Exchange the code; return the claims of the verified ID token and of the user-info endpoint."""
        from authlib.integrations.requests_client import OAuth2Session  # only where people sign in

        with OAuth2Session(**self._identity()) as client:
            metadata = self._metadata(client)
            known = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
            if self._settings.client_secret and "client_secret_basic" not in known:
                client.token_endpoint_auth_method = "client_secret_post"  # noqa: S105 - the name of a method
            form = {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": begun.redirect_url,
                "client_id": self._settings.client_id,
                "code_verifier": begun.verifier,
            }
            auth = client.client_auth(client.token_endpoint_auth_method)
            token = self._request_json(client, "POST", self._endpoint(metadata, "token_endpoint"), data=form, auth=auth)
            keys = self._request_json(client, "GET", self._endpoint(metadata, "jwks_uri"))
            claims = self._verified(str(token.get("id_token", "")), keys, begun.nonce)
            if "userinfo_endpoint" in metadata and not {"email", self._settings.groups_claim} <= claims.keys():
                bearer = {"Authorization": f"Bearer {token.get('access_token', '')}"}
                more = self._request_json(client, "GET", self._endpoint(metadata, "userinfo_endpoint"), headers=bearer)
                if more.get("sub") == claims["sub"]:
                    # Take a mail address and its verification from the same source.
                    own = {"email", "email_verified"} if "email" in claims else set()
                    claims = {name: value for name, value in more.items() if name not in own} | claims
        return claims

    def _verified(self, id_token: str, keys: dict[str, Any], nonce: str) -> dict[str, Any]:
        from joserfc import errors, jwt  # only where people sign in
        from joserfc.jwk import KeySet

        issuer, client_id = self._settings.issuer, self._settings.client_id
        expected = jwt.JWTClaimsRegistry(
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            sub={"essential": True},
            aud={"essential": True, "value": client_id},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True, "value": nonce},
            azp={"value": client_id},
        )
        try:
            claims = jwt.decode(id_token, KeySet.import_key_set(keys), algorithms=ALGORITHMS).claims  # type: ignore[arg-type] # checked there
            expected.validate(claims)
            if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and "azp" not in claims:
                raise errors.MissingClaimError("azp")
        except (errors.JoseError, ValueError, TypeError, KeyError, AttributeError) as error:
            # The error names the claim; the token itself is secret.
            logger.warning("monitor_sign_in_refused", provider=self.host, error=f"{type(error).__name__}: {error}")
            raise HTTPException(403, f"The ID token of {self.host} is not valid: {_reason(error)}.") from None
        return claims

    def _viewer(self, claims: dict[str, Any]) -> Viewer:
        who = set(_identities(claims, self._settings.groups_claim))
        mail = next((one for one in sorted(who) if "@" in one), "")
        name = printable((mail or str(claims["sub"]))[:MAX_NAME_CHARACTERS])
        for role, admitted in ((Role.OPERATOR, self._settings.operators), (Role.VIEWER, self._settings.viewers)):
            if who & {_folded(one) for one in admitted}:
                return Viewer(name, role)
        logger.warning("monitor_sign_in_refused", provider=self.host, person=name, error="in neither list")
        unverified = "email" in claims and not mail
        hint = " The provider has not verified your mail address." if unverified else ""
        raise HTTPException(
            403,
            f"{name} has signed in and may see nothing here: neither INGEST_OIDC_OPERATORS nor INGEST_OIDC_VIEWERS "
            f"names this person or a group of theirs.{hint}",
        )

    def _identity(self) -> dict[str, str | None]:
        secret = self._settings.client_secret
        return {
            "client_id": self._settings.client_id,
            "client_secret": secret.get_secret_value() if secret else None,
            "scope": self._settings.scopes,
            "code_challenge_method": "S256",
        }

    def _metadata(self, client: requests.Session) -> dict[str, Any]:
        issuer = self._settings.issuer
        found = self._request_json(client, "GET", f"{issuer.rstrip('/')}/.well-known/openid-configuration")
        if found.get("issuer") != issuer:
            raise self._unavailable(
                f"it calls itself {str(found.get('issuer'))[:MAX_NAME_CHARACTERS]!r}, not {issuer!r}"
            )
        return found

    def _endpoint(self, metadata: dict[str, Any], name: str) -> str:
        address = str(metadata.get(name, ""))
        parts = urlsplit(address)
        if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
            raise self._unavailable(f"its {name} is not an https address")
        return address

    def _request_json(self, client: requests.Session, method: str, address: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - of requests
        """Send one request; return the JSON object in its answer.

        Raises:
            HTTPException: 502: the answer is not a JSON object, or is missing.
        """
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"} | options.pop("headers", {})
        options |= {"timeout": TIMEOUT_SECONDS, "stream": True, "allow_redirects": False, "withhold_token": True}
        try:
            with client.request(method, address, headers=headers, **options) as answer:
                content = _bounded(answer)
        except (requests.RequestException, TimeoutError) as error:
            raise self._unavailable(type(error).__name__) from error
        try:
            found = msgspec.json.decode(content, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            found = {}
        if answer.status_code != 200 or not found:  # noqa: PLR2004 - OK
            code = found.get("error")
            detail = f": {code[:MAX_NAME_CHARACTERS]}" if isinstance(code, str) else ""
            raise self._unavailable(f"HTTP {answer.status_code} of {urlsplit(address).path}{detail}")
        return found

    def _unavailable(self, reason: str) -> HTTPException:
        logger.warning("monitor_provider_failed", provider=self.host, error=reason)
        return HTTPException(
            502, f"The sign-in provider {self.host} does not answer as it should ({printable(reason)})."
        )


def _bounded(answer: requests.Response) -> bytes:
    content, ends = bytearray(), time.monotonic() + TIMEOUT_SECONDS
    for piece in answer.iter_content(65_536):
        content += piece
        if len(content) > MAX_ANSWER_BYTES or time.monotonic() > ends:
            raise TimeoutError
    return bytes(content)


def _identities(claims: dict[str, Any], groups_claim: str) -> Iterator[str]:
    """Yield a person's verified mail address and their groups, except groups that look like an address."""
    mail, verified = claims.get("email"), claims.get("email_verified")
    # Some providers send the text instead of the boolean.
    if isinstance(mail, str) and "@" in mail and (verified is True or verified == "true"):
        yield _folded(mail)
    groups = claims.get(groups_claim)
    for group in groups if isinstance(groups, list) else [groups]:
        if isinstance(group, str) and "@" not in group:
            yield _folded(group)


def _folded(entry: str) -> str:
    """Return a mail address in lower case, and a group unchanged."""
    return entry.casefold() if "@" in entry else entry


def _reason(error: Exception) -> str:
    claim = getattr(error, "claim", None)
    words = type(error).__name__.removesuffix("Error")
    return f"{words} ({claim})" if claim else words


def _equal(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode())


SIGN_IN_COOKIE = "ingest_sign_in"
CALLBACK = "oidc/callback"
MAX_ANSWER_CHARACTERS = 8_192
# Limit of sign-ins from one address: each contacts the provider, and may displace an older one.
SIGN_INS_PER_MINUTE = 30


class SignInPages:
    """Handlers of the sign-in routes.

    Args:
        settings: settings with the provider, if any.
        gate: creates sessions.
    """

    def __init__(self, settings: Settings, gate: Gate) -> None:
        self._gate = gate
        self._provider = Provider(settings.oidc) if settings.oidc.issuer else None
        self._redirect_url = settings.oidc.redirect_url
        self._begun = ActionLimits(SIGN_INS_PER_MINUTE)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/login", self.form, methods=["GET"]),
            Route("/login", self.login, methods=["POST"]),
            Route("/logout", self.logout, methods=["POST"]),
            Route("/oidc/login", self.begin, methods=["GET"]),
            Route("/oidc/callback", self.finish, methods=["GET"]),
        ]

    async def form(self, request: Request) -> Response:
        """Return the form for the token, with a link to the provider."""
        if self._gate.is_stale(cookie_of(request)):
            return RedirectResponse(f"oidc/login{_next(_wanted(request))}", 303)
        if not self._gate.is_locked or self._gate.session_of(cookie_of(request)):
            return RedirectResponse(_address(request, _wanted(request)), 303)
        return self._form(request)

    async def login(self, request: Request) -> Response:
        """Check the token, and set a session cookie."""
        form = parse_qs((await request.body()).decode("utf-8", "replace"))
        viewer = self._gate.try_token(form.get("token", [""])[0].strip(), address_of(request.scope))
        if viewer is None:
            return self._form(request, 401)
        answer = RedirectResponse(_address(request, _wanted(request)), 303)
        self._start_session(request, answer, viewer)
        return answer

    async def logout(self, request: Request) -> Response:
        """End the session and delete its cookie."""
        self._gate.end_session(cookie_of(request))
        answer = RedirectResponse(f"{root_of(request.scope)}login", 303)
        set_cookie(request, answer, "", 0)
        return answer

    async def begin(self, request: Request) -> Response:
        """Redirect the browser to the provider, without a prompt if a session only has to be confirmed."""
        if self._provider is None:
            raise HTTPException(404, "No provider is configured; see INGEST_OIDC_ISSUER.")
        if seconds := self._begun.take(network_of(address_of(request.scope))):
            raise too_many(seconds, "Too many sign-ins have begun.")
        redirect_url = self._redirect_url or _own_address(request)
        known = cookie_of(request)
        if silent := self._gate.is_stale(known):
            # The stale session admits no requests. Ending it makes a refusal lead to the form instead of here again.
            self._gate.end_session(known)
        cookie, address = await run_in_threadpool(self._provider.begin, redirect_url, _wanted(request), silent=silent)
        answer = RedirectResponse(address, 303)
        set_cookie(request, answer, cookie, SIGN_IN_SECONDS, SIGN_IN_COOKIE)
        return answer

    async def finish(self, request: Request) -> Response:
        """Process the provider's answer, and set a session cookie."""
        if self._provider is None or len(request.url.query) > MAX_ANSWER_CHARACTERS:
            raise HTTPException(400, "This is no answer of a provider.")
        cookie = cookie_of(request, SIGN_IN_COOKIE)
        viewer, wanted = await run_in_threadpool(self._provider.finish, cookie, dict(request.query_params))
        if viewer is None:
            return RedirectResponse(f"{root_of(request.scope)}login{_next(wanted)}", 303)
        # The browser would treat a redirect as coming from the provider, and would not send the new cookie.
        answer = render(request, "opening.html", to=_address(request, wanted))
        self._start_session(request, answer, viewer, by_provider=True)
        set_cookie(request, answer, "", 0, SIGN_IN_COOKIE)
        return answer

    def _form(self, request: Request, status: int = 200) -> Response:
        return render(
            request,
            "login.html",
            status,
            refused=status != 200,  # noqa: PLR2004 - OK
            takes_tokens=self._gate.takes_tokens,
            provider=self._provider.host if self._provider else "",
            next=_next(_wanted(request)),
        )

    def _start_session(self, request: Request, answer: Response, viewer: Viewer, *, by_provider: bool = False) -> None:
        """Give the browser a new session; end its previous one, which an attacker may have planted."""
        self._gate.end_session(cookie_of(request))
        cookie = self._gate.new_session(viewer, by_provider=by_provider)
        set_cookie(request, answer, cookie, SESSION_SECONDS, COOKIE)


def _wanted(request: Request) -> str:
    """Return the address on this site to show after the sign-in; empty for the first page."""
    wanted = request.query_params.get("next", "")[:MAX_RETURN_CHARACTERS]
    return wanted if wanted.startswith("/") and wanted.isprintable() and "\\" not in wanted else ""


def _next(wanted: str) -> str:
    """Return the query that leads to a page of this site after the sign-in."""
    return f"?next={quote(wanted)}" if wanted else ""


def _address(request: Request, wanted: str) -> str:
    """Return the relative address of a page, which cannot lead to another site."""
    root = root_of(request.scope)
    return f"{root}{quote(wanted.lstrip('/'), safe=_ADDRESS)}"


# All characters allowed in an address, including those of encoded parts.
_ADDRESS = "/?&=%:@!$'()*+,;~-._"


def _own_address(request: Request) -> str:
    scheme = "https" if is_https(request) else "http"
    host = request.headers.get("x-forwarded-host") or request.headers.get("host", "")
    return f"{scheme}://{host}/{CALLBACK}"
