"""Distinguish faults of one item, which fails alone, from faults of a service, for which everything waits.

An item's fault must never delay its neighbours, and an unavailable service must never cost an item an attempt. For a
database driver's exceptions, SQLSTATE (or the exception's class, if libpq fails without a code) decides whether the
database is unavailable, another writer conflicted, or the code has a defect. Texts only select the remedy.
"""

from __future__ import annotations

import errno
import re
import sqlite3

import sqlalchemy as sa

from ingest_project.core.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    IngestError,
    SettingsError,
    StoreUnavailableError,
    TransactionConflictError,
)

# PostgreSQL's codes: serialization_failure, deadlock_detected, lock_not_available.
CONFLICTS = frozenset({"40001", "40P01", "55P03"})
# Classes 08 (connection), 53 (insufficient resources), 28 (refused login) and 57 (operator intervention, server
# timeout), and the codes for a replica, an idle session that timed out, a failing disk and a missing database: an
# operator has to act, and until then everything waits.
UNAVAILABLE = ("08", "53", "28", "57", "25006", "25P03", "25P04", "58000", "58030", "3D000")
# Classes of codes for a rejected value: malformed, violating a constraint, beyond a limit of the server.
REJECTED_VALUES = ("22", "23", "54")
VALUE_ERRORS = frozenset({"DataError", "IntegrityError", "ProgrammingError"})
SQLITE_CONFLICTS = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
SQLITE_DISK_FAILURES = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL})
SQLITE_FILE_FAILURES = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})
REFUSED_LOGIN = (
    r"28000|28p01|authentication failed|role \"|no password supplied|no pg_hba.conf entry|not permitted to log in"
)
# Pattern of codes and texts, state of the database, and remedy; libpq gives no code for failures while it connects. The
# first match counts.
REMEDIES = (
    (
        r"invalid (sslmode|connection option|dsn|port number|integer value|uri query)",
        "has an address that PostgreSQL's client cannot parse",
        "Correct DATABASE_URL.",
    ),
    (
        r"does not support ssl|ssl error|certificate|sslmode",
        "could not be reached with the configured TLS settings",
        "Correct sslmode, sslrootcert or the host name in DATABASE_URL, or the server's certificate.",
    ),
    (
        REFUSED_LOGIN,
        "refuses this login",
        "Correct user and password (or sslmode, where it wants TLS) in DATABASE_URL, or have the server let them in.",
    ),
    (
        r"3d000|\" does not exist",
        "does not exist",
        "Create that database on the server, or correct its name in DATABASE_URL.",
    ),
    (
        r"could not translate host name",
        "has a host name that this machine cannot resolve",
        "Correct the host in DATABASE_URL, or this machine's name resolution.",
    ),
    (
        r"invalid response to ssl negotiation|expected authentication request",
        "is no PostgreSQL",
        "Another program answers at this address: correct host and port in DATABASE_URL.",
    ),
    (
        r"53300|too many clients|too many connections|remaining connection slots",
        "has no connection left",
        "Close others, or raise max_connections. Retried automatically.",
    ),
    (
        r"53100|no space left on device|disk full",
        "has no room on its disk",
        "Make room on the server's disk. Retried automatically.",
    ),
    (
        r"25006",
        "is read-only",
        "Name the primary in DATABASE_URL, or all hosts and target_session_attrs=read-write. Retried automatically.",
    ),
    (
        r"57014",
        "stopped a statement",
        "Raise statement_timeout for this user, and see what holds locks on its tables. Retried automatically.",
    ),
    (
        r"57p03|starting up|shutting down|in recovery mode|not yet accepting connections",
        "is starting or stopping",
        "Retried automatically.",
    ),
    (
        r"connection refused",
        "does not answer",
        "No server listens at this address: start one (ingest dev does), or correct host and port in DATABASE_URL.",
    ),
)
SERVICES = (BrokerUnavailableError, DatabaseUnavailableError, StoreUnavailableError, TransactionConflictError)
# This process or its disk lacks a resource.
SHORTAGES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})
LONGEST_REASON = 2_000
# ADBC's driver puts its own text, and the statement, before the server's message.
BEFORE_MESSAGE = re.compile(
    r"\A[A-Z_]+: \[libpq\] (?:[^\n]*?PGRES_FATAL_ERROR |Failed to execute query '.*?': (?=\S+:  ))", re.DOTALL
)


def map_error(error: Exception, address: str) -> IngestError | None:
    """Return our error for a driver's failure; None for a defect of this code, whose exception must stay visible.

    Args:
        error: exception of SQLAlchemy or a driver.
        address: address of the database, without password.
    """
    original = getattr(error, "orig", None) or error
    if isinstance(error, sa.exc.TimeoutError):
        return DatabaseUnavailableError(address, "every pooled connection is in use")
    if isinstance(original, sqlite3.OperationalError):
        return _map_sqlite_error(original, address)
    return _map_postgres_error(error, original, address) if _is_driver_error(original) else None


def is_refused_login(error: Exception) -> bool:
    """Return True if PostgreSQL refused user or password."""
    return is_database_failure(error) and bool(re.search(REFUSED_LOGIN, f"{sqlstate(error)} {error}".lower()))


def refuses_values(error: Exception) -> bool:
    """Return True if a driver's failure is caused by the given values, not by the tables or the connection."""
    if isinstance(error, sa.exc.StatementError) and not isinstance(error, sa.exc.DBAPIError):
        return True
    original = getattr(error, "orig", None) or error
    if isinstance(original, sqlite3.Error):
        return isinstance(original, sqlite3.InterfaceError | sqlite3.DataError | sqlite3.IntegrityError)
    code = sqlstate(error)
    # Without a code, the driver itself could not convert a value.
    return code.startswith(REJECTED_VALUES) if code else type(original).__name__ in VALUE_ERRORS


def is_database_failure(error: BaseException) -> bool:
    """Return True for an exception of a database or its driver."""
    original = getattr(error, "orig", None) or error
    return isinstance(error, sa.exc.SQLAlchemyError | sqlite3.Error) or _is_driver_error(original)


def sqlstate(error: BaseException) -> str:
    """Return PostgreSQL's five-character code of an exception of SQLAlchemy, psycopg2 or ADBC; empty if it has none."""
    original = getattr(error, "orig", None) or error
    code = getattr(original, "pgcode", None) or getattr(original, "sqlstate", None) or ""
    # ADBC fills the field with NULs or zeros for failures that did not come from the server.
    code = str(code).strip("\x00 ")
    return "" if code == "00000" else code


def first_line_of(error: BaseException) -> str:
    """Return the first line of a driver's message: later lines repeat the statement, or give general advice."""
    return _first_line(getattr(error, "orig", None) or error)


def is_item_fault(error: Exception) -> bool:
    """Return True if an item may have caused an error, rather than a service, a setting or this machine.

    An unexpected error counts as the item's: nothing else has changed since the previous item.
    """
    if isinstance(error, (*SERVICES, SettingsError)):
        return False
    if isinstance(error, IngestError):
        return True
    if is_database_failure(error):
        return map_error(error, "") is None and refuses_values(error)
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        return False
    return not type(error).__module__.startswith(("dagster_postgres", "grpc"))


def error_class_of(error: BaseException) -> str:
    """Return the name under which a failure is stored and counted."""
    return error.error_class if isinstance(error, IngestError) else type(error).__name__


def traceback_of(error: BaseException) -> BaseException | None:
    """Return the error to log with its traceback; None for our own errors and for a database's, which quote rows."""
    return None if isinstance(error, IngestError) or is_database_failure(error) else error


def reason_of(error: BaseException) -> str:
    """Return an error as one line that any database and header accepts; foreign errors also get their class."""
    text = str(getattr(error, "orig", None) or error).strip()
    # The lines after the first quote the whole row.
    text = text.partition("\n")[0] if is_database_failure(error) else " ".join(text.split())
    if not isinstance(error, IngestError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        text = f"It cannot be processed: {text}"
    return storable(text[:LONGEST_REASON])


def storable(text: str) -> str:
    """Replace characters that UTF-8 or PostgreSQL cannot store (lone surrogates, NUL) with U+FFFD."""
    return text.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_driver_error(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in {"psycopg2", "adbc_driver_manager"}


def _map_postgres_error(error: Exception, original: BaseException, address: str) -> IngestError | None:
    code, cause = sqlstate(error), first_line_of(error)
    if code in CONFLICTS:
        return TransactionConflictError(address, cause)
    if code.startswith(UNAVAILABLE) if code else _is_connection_failure(error, original):
        text = f"{code} {cause}".lower()
        state_and_remedy = next((found for pattern, *found in REMEDIES if re.search(pattern, text)), ())
        return DatabaseUnavailableError(address, cause, *reversed(state_and_remedy))
    return None


def _is_connection_failure(error: Exception, original: BaseException) -> bool:
    """Return True for a failure without a code that occurred while connecting or on a broken connection."""
    if isinstance(error, sa.exc.DBAPIError) and (error.connection_invalidated or error.statement is None):
        return True
    return type(original).__name__ == "OperationalError"


def _map_sqlite_error(error: sqlite3.OperationalError, address: str) -> IngestError | None:
    cause = str(error)
    # The lowest byte is the primary code, e.g. SQLITE_IOERR of SQLITE_IOERR_WRITE.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in SQLITE_CONFLICTS:
        return TransactionConflictError(address, cause)
    if code in SQLITE_DISK_FAILURES:
        remedy = "Make room on its disk, and check that the disk is sound."
        return DatabaseUnavailableError(address, cause, remedy, "cannot write")
    if code in SQLITE_FILE_FAILURES:
        remedy = "Check that this user may write the file and its folder, or correct DATABASE_URL."
        return DatabaseUnavailableError(address, cause, remedy, "cannot be opened")
    return None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in BEFORE_MESSAGE.sub("", str(error), 1).splitlines() if line.strip()]
    # A host with several addresses has a line for each; the server's own message is more useful than those about
    # addresses that did not answer.
    return next((line for line in lines if "FATAL:" in line), lines[0] if lines else type(error).__name__)
