"""What an FTP server's refusal means for the job: its three digits say little, the text beside them often more."""

from __future__ import annotations

import ftplib
import re
import ssl

from ingest_project.core.errors import (
    ForbiddenPathError,
    IngestError,
    PermanentError,
    SourceAccessDeniedError,
    SourceNotFoundError,
    SourceUnreachableError,
)

PRINTED_LENGTH = 200
NOT_UNDERSTOOD = frozenset({"500", "501", "502", "504"})
FILE_UNAVAILABLE = "550"
CLOSING = "421"
NOT_LOGGED_IN = frozenset({"530", "532"})

_LATER = re.compile(
    r"too many|maximum|connection limit|try (again )?later|try again|temporar|busy|in use|lock", re.IGNORECASE
)
_NOT_ALLOWED = re.compile(r"permission|denied|not allowed|not permitted|privilege|access|forbidden", re.IGNORECASE)
_NO_FILE = re.compile(r"not a (plain|regular|normal) file|is a director|not retrievable|not a file", re.IGNORECASE)


def code_of(reply: object) -> str:
    """The three digits of a reply."""
    return str(reply)[:3]


def failure_of(error: Exception, location: str) -> IngestError:
    """What a failed command means.

    Args:
        error: of ftplib, of the socket or of TLS.
        location: of the server, folder or file that it was about.
    """
    if isinstance(error, IngestError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return SourceAccessDeniedError(
            location,
            f"its certificate is not trusted ({error.verify_message}). Name the authority that signed it in "
            "INGEST_SOURCE_CA_FILE",
        )
    if isinstance(error, ftplib.error_perm):
        return _refusal(_printable(error), location)
    return SourceUnreachableError(location, _printable(error))


def login_failure(error: Exception, location: str) -> IngestError:
    """What a failure between the greeting and the end of the login means."""
    if isinstance(error, ftplib.error_perm):
        text = _printable(error)
        if _LATER.search(text):
            return SourceUnreachableError(location, text)
        if code_of(text) in NOT_LOGGED_IN:
            return SourceAccessDeniedError(location, f"the server refuses the user or the password ({text})")
        return SourceAccessDeniedError(location, f"the server refuses the login ({text})")
    return failure_of(error, location)


def _refusal(text: str, location: str) -> IngestError:
    if _LATER.search(text):
        return SourceUnreachableError(location, text)
    if _NO_FILE.search(text):
        return ForbiddenPathError(location, f"it is not a regular file ({text}).")
    if code_of(text) in NOT_LOGGED_IN or _NOT_ALLOWED.search(text):
        return SourceAccessDeniedError(location, f"the server does not allow it ({text})")
    if code_of(text) == FILE_UNAVAILABLE:
        return SourceNotFoundError(location)
    return PermanentError(f"{location} cannot be read: the server answers {text}.")


def _printable(error: Exception) -> str:
    # Control replies are read as latin-1, so that every byte has a character.
    text = str(error).encode("latin-1", "replace").decode("utf-8", "replace") or type(error).__name__
    return "".join(char if char.isprintable() else " " for char in text[:PRINTED_LENGTH]).rstrip(" .")
