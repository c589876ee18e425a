"""What a driver's exception means: the database is away, somebody else was in the way, or a mistake of ours."""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa

from ingest_project.errors import DatabaseUnavailable, IngestError, TransactionConflict

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
)


def failure_of(error: Exception, address: str) -> IngestError | None:
    """Our name for a driver's failure; None when it is a mistake of this code, which must be seen as it is."""
    original = getattr(error, "orig", None) or error
    if isinstance(error, sa.exc.TimeoutError):
        return DatabaseUnavailable(address, "every pooled connection is in use")
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
        return TransactionConflict(address, cause)
    if code in UNAVAILABLE or code.startswith(UNAVAILABLE_CLASSES) or (not code and _sounds_unavailable(original)):
        return DatabaseUnavailable(address, cause)
    return None


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
        return TransactionConflict(address, text)
    if "unable to open" in text or "disk I/O" in text or "disk is full" in text or "readonly" in text:
        return DatabaseUnavailable(address, text)
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
