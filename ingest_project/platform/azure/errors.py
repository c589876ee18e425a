"""What the Azure SDK raises, told in the project's own terms.

Whether trying again can help is decided here, once. The SDK's own exceptions quote the address they asked for, and with
it a SAS signature: they are neither repeated in a message nor chained, so that no log can show one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from ingest_project.core.errors import IngestError, PermanentError, SourceNotFoundError, StoreUnavailableError

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError, HttpResponseError

TRANSIENT_STATUSES = frozenset({408, 412, 425, 429})
SERVER_ERRORS = 500
NOT_FOUND = 404
NO_FILE_SYSTEM = frozenset({"FilesystemNotFound", "ContainerNotFound", "WorkspaceNotFound"})
LONGEST_CAUSE = 200
# A service that asks for more is asked again after so long, like any host.
LONGEST_PAUSE_SECONDS = 3_600.0
REMEDIES = {
    400: "Check the address.",
    401: "Check the credential: it is not accepted.",
    403: "Check the credential and its rights on this place.",
    409: "Something else of this name is in the way.",
}


class StoreRejectedError(PermanentError):
    """OneLake understood and said no; the same request will be refused again.

    Args:
        address: of the file or folder, without secrets.
        status: HTTP status; None when no credential could be had.
        code: the service's own name for the reason, e.g. `AuthorizationFailure`.
    """

    def __init__(self, address: str, status: int | None, code: str, remedy: str = "") -> None:
        self.address = address
        self.status = status
        self.code = code
        said = f"{status} {code}".strip() if status else code
        super().__init__(f"{address} was refused: {said}. {remedy or REMEDIES.get(status or 0, '')}".rstrip())


class StoreThrottledError(StoreUnavailableError):
    """OneLake asks us to come back later.

    Args:
        address: of the file or folder, without secrets.
        cause: what was said.
        retry_after: how long it asked us to wait; None when it did not say.
    """

    def __init__(self, address: str, cause: object, retry_after: timedelta | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(address, cause)


@contextmanager
def onelake_errors(address: str) -> Iterator[None]:
    """Tell a failure of the Azure SDK inside the block as one of ours.

    Args:
        address: of the file or folder, for the message; without secrets.

    Raises:
        SourceNotFoundError: there is no such file or folder (its `location` is the address), or no such workspace.
        StoreRejectedError: 400, 401, 403, 409 or no credential: trying again cannot help.
        StoreThrottledError: 429 or 503; carries what `Retry-After` said.
        StoreUnavailableError: not reached, cut off, timed out, changed meanwhile, or any other server error.
    """
    from azure.core.exceptions import AzureError  # noqa: PLC0415 - takes 0.2 s, and local stores do without

    try:
        yield
    except AzureError as error:
        raise map_error(error, address) from None


def map_error(error: AzureError, address: str) -> IngestError:
    """What an exception of the SDK means; see `onelake_errors`."""
    from azure.core.exceptions import ClientAuthenticationError, HttpResponseError  # noqa: PLC0415 - see above

    if isinstance(error, HttpResponseError) and error.status_code:
        return _map_answer(error, error.status_code, address)
    if isinstance(error, ClientAuthenticationError):
        return StoreRejectedError(
            address, None, "no token could be had", "Sign in, or set a SAS or an account key for this store."
        )
    return StoreUnavailableError(address, f"{type(error).__name__}: {_without_secrets(str(error))}")


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The wait that an answer asks for, in either unit Azure uses; None when it says nothing usable."""
    for name, unit in (("retry-after-ms", 1000), ("x-ms-retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return max(float(headers[name]) / unit, 0.0)
        except (KeyError, ValueError):
            continue
    return None


def _map_answer(error: HttpResponseError, status: int, address: str) -> IngestError:
    # The SDK's enumeration of codes prints as its member's name; the service's own word is the value.
    named = getattr(error, "error_code", None)
    code = str(getattr(named, "value", named) or error.reason or "")
    if status == NOT_FOUND:
        return SourceNotFoundError(f"The workspace or file system of {address}" if code in NO_FILE_SYSTEM else address)
    if status not in TRANSIENT_STATUSES and status < SERVER_ERRORS:
        return StoreRejectedError(address, status, code)
    cause = f"{status} {code}".strip()
    headers: Mapping[str, str] = getattr(error.response, "headers", {})
    if status in {429, 503}:
        seconds = retry_after_seconds(headers)
        asked_for = None if seconds is None else timedelta(seconds=min(seconds, LONGEST_PAUSE_SECONDS))
        return StoreThrottledError(address, cause, asked_for)
    return StoreUnavailableError(address, cause)


def _without_secrets(text: str) -> str:
    """The first line without any query of an address."""
    line = next(iter(text.splitlines()), "")
    return re.sub(r"\?[^\s'\"<>)]*|\bsig=[^&\s]*", "", line)[:LONGEST_CAUSE]
