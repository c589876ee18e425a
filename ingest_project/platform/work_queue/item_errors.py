"""Distinguish faults of one item, which fails alone, from faults of a service, which everything waits for.

An item's fault must never delay its neighbours, and a service that is away must never cost an item an attempt.
"""

from __future__ import annotations

import errno

from ingest_project.core.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    IngestError,
    SettingsError,
    StoreUnavailableError,
    TransactionConflictError,
)
from ingest_project.platform.database.errors import is_database_failure, map_error, refuses_values

SERVICES = (BrokerUnavailableError, DatabaseUnavailableError, StoreUnavailableError, TransactionConflictError)
# This process or its disk lacks a resource.
SHORTAGES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})
LONGEST_REASON = 2_000


def is_item_fault(error: Exception) -> bool:
    """Test whether an item may have caused an error, and not a service, a setting or this machine.

    An unexpected error is the item's: nothing else has changed since the item before it.
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
    """Return the error to log with its traceback; None for ours, and for a database's, which quote rows."""
    return None if isinstance(error, IngestError) or is_database_failure(error) else error


def reason_of(error: BaseException) -> str:
    """Return one line that any database and any header accepts; errors that are not ours also get their class."""
    text = str(getattr(error, "orig", None) or error).strip()
    # The lines after the first quote the whole row.
    text = text.partition("\n")[0] if is_database_failure(error) else " ".join(text.split())
    if not isinstance(error, IngestError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
        text = f"It cannot be processed: {text}"
    return storable(text[:LONGEST_REASON])


def storable(text: str) -> str:
    """Replace what neither UTF-8 nor PostgreSQL can hold (lone surrogates, NUL) by U+FFFD."""
    return text.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
