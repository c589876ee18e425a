"""What a driver's exception means: the database is away, somebody else was in the way, or a mistake of ours."""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa

from ingest_project.core.errors import DatabaseUnavailableError, IngestError, TransactionConflictError

# PostgreSQL's codes: serialization_failure, deadlock_detected, lock_not_available.
CONFLICTS = frozenset({"40001", "40P01", "55P03"})
# Classes 08 (connection), 53 (insufficient resources, e.g. too many connections), and the server going away or starting
# up. 3D000 and class 28 (no such database, refused login) mend themselves as little as a wrong host does: an operator
# mends them, and until then everything waits.
UNAVAILABLE_CLASSES = ("08", "53", "28")
UNAVAILABLE = frozenset({"57P01", "57P02", "57P03", "57P05", "58000", "58030", "3D000"})
# Classes of codes for a value that is not taken: malformed, against a rule, beyond a limit of the server's own.
REFUSED_VALUE_CLASSES = ("22", "23", "54")
VALUE_ERRORS = frozenset({"DataError", "IntegrityError", "ProgrammingError"})
# Failures that libpq sees by itself carry no code.
UNAVAILABLE_TEXTS = (
    "could not connect",
    "connection refused",
    "connection to server",
    "could not translate host name",
    "server closed the connection",
    "terminating connection",
    "connection already closed",
    "no connection to the server",
    "connection not open",
    "could not receive data",
    "could not send data",
    "ssl connection has been closed",
    "connection timed out",
    "lost synchronization",
    "invalid sslmode",
    "invalid connection option",
    "invalid dsn",
    "invalid port number",
    "invalid integer value",
)

# libpq gives no codes for what happens while it connects, so these are codes and parts of messages in lower case; then
# how it is told, and what to do. The first that fits is taken.
REFUSALS: tuple[tuple[frozenset[str], tuple[str, ...], str, str], ...] = (
    (
        frozenset(),
        ("invalid sslmode", "invalid connection option", "invalid dsn", "invalid port number", "invalid integer value"),
        "is not named as PostgreSQL's client understands it",
        "Correct DATABASE_URL.",
    ),
    (
        frozenset(),
        ("does not support ssl", "ssl error", "certificate", "sslmode"),
        "was not reached by TLS as it is set",
        "Correct sslmode, sslrootcert or the host name in DATABASE_URL, or the server's certificate.",
    ),
    (
        frozenset({"28000", "28P01"}),
        ("authentication failed", 'role "', "no password supplied", "no pg_hba.conf entry", "not permitted to log in"),
        "refuses this login",
        "Correct user and password (or sslmode, where it wants TLS) in DATABASE_URL, or have the server let them in.",
    ),
    (
        frozenset({"3D000"}),
        ('" does not exist',),
        "does not exist",
        "Create that database on the server, or correct its name in DATABASE_URL.",
    ),
    (
        frozenset(),
        ("could not translate host name",),
        "has a host that is not known here",
        "Correct the host in DATABASE_URL, or the name service of this machine.",
    ),
    (
        frozenset(),
        ("invalid response to ssl negotiation", "expected authentication request"),
        "is no PostgreSQL",
        "Something else answers there: correct host and port in DATABASE_URL.",
    ),
    (
        frozenset({"53300"}),
        ("too many clients", "too many connections", "remaining connection slots"),
        "has no connection left",
        "Close others, or raise max_connections. Tried again by itself.",
    ),
    (
        frozenset({"53100"}),
        ("no space left on device", "disk full"),
        "has no room on its disk",
        "Make room on the server's disk. Tried again by itself.",
    ),
    (
        frozenset({"57P03"}),
        ("starting up", "shutting down", "in recovery mode", "not yet accepting connections"),
        "is starting or stopping",
        "Tried again by itself.",
    ),
    (
        frozenset(),
        ("connection refused",),
        "does not answer",
        "Nothing listens there: start it (ingest dev starts one of its own), or correct host and port in DATABASE_URL.",
    ),
)


def map_error(error: Exception, address: str) -> IngestError | None:
    """Our name for a driver's failure; None when it is a mistake of this code, which must be seen as it is."""
    original = getattr(error, "orig", None) or error
    if isinstance(error, sa.exc.TimeoutError):
        return DatabaseUnavailableError(address, "every pooled connection is in use")
    if isinstance(original, sqlite3.OperationalError):
        return _sqlite_failure(original, address)
    return _postgres_failure(original, address) if _is_driver_error(original) else None


def refuses_values(error: Exception) -> bool:
    """Tell whether a driver's failure blames the values it was given, and neither the tables nor the connection."""
    if isinstance(error, sa.exc.StatementError) and not isinstance(error, sa.exc.DBAPIError):
        return True
    original = getattr(error, "orig", None) or error
    if isinstance(original, sqlite3.Error):
        return isinstance(original, sqlite3.InterfaceError | sqlite3.DataError | sqlite3.IntegrityError)
    code = sqlstate(original)
    # Without a code it is the driver that could not pass a value on.
    return code.startswith(REFUSED_VALUE_CLASSES) if code else type(original).__name__ in VALUE_ERRORS


def is_database_failure(error: BaseException) -> bool:
    """Tell whether a database or its driver raised this."""
    original = getattr(error, "orig", None) or error
    return isinstance(error, sa.exc.SQLAlchemyError | sqlite3.Error) or _is_driver_error(original)


def _postgres_failure(original: BaseException, address: str) -> IngestError | None:
    code = sqlstate(original)
    cause = _first_line(original)
    if code in CONFLICTS:
        return TransactionConflictError(address, cause)
    if code in UNAVAILABLE or code.startswith(UNAVAILABLE_CLASSES) or (not code and _sounds_unavailable(original)):
        return _unavailable(address, code, cause)
    return None


def _unavailable(address: str, code: str, cause: str) -> DatabaseUnavailableError:
    """Tell a database that is away from one that refuses: each is for somebody else to mend."""
    text = cause.lower()
    for codes, phrases, state, remedy in REFUSALS:
        if code in codes or any(phrase in text for phrase in phrases):
            return DatabaseUnavailableError(address, cause, remedy, state)
    return DatabaseUnavailableError(address, cause)


def sqlstate(error: BaseException) -> str:
    """PostgreSQL's five-character code of a psycopg2 or ADBC exception; empty when it carries none."""
    code = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or ""
    # ADBC fills the field with NULs or zeros for failures that did not come from the server.
    code = str(code).strip("\x00 ")
    return "" if code == "00000" else code


def _is_driver_error(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in {"psycopg2", "adbc_driver_manager"}


def _sounds_unavailable(error: BaseException) -> bool:
    text = str(error).lower()
    return any(phrase in text for phrase in UNAVAILABLE_TEXTS)


def _sqlite_failure(error: sqlite3.OperationalError, address: str) -> IngestError | None:
    text = str(error)
    if "locked" in text or "busy" in text:
        return TransactionConflictError(address, text)
    if "disk I/O" in text or "disk is full" in text:
        return DatabaseUnavailableError(
            address, text, "Make room on its disk, and check that the disk is sound.", "cannot write"
        )
    if "unable to open" in text or "readonly" in text:
        remedy = "Check that this user may write the file and its folder, or correct DATABASE_URL."
        return DatabaseUnavailableError(address, text, remedy, "cannot be opened")
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A name with several addresses has a line for each; what a server said tells more than who was not there.
    return next((line for line in lines if "FATAL:" in line), lines[0] if lines else type(error).__name__)
