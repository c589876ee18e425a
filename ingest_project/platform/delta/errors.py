"""What delta-rs raises, told as errors of ours: on one line, and without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ingest_project.core.errors import (
    SchemaConflictError,
    StoreUnavailableError,
    TransactionConflictError,
    TransientError,
)
from ingest_project.platform.delta.location import DeltaLocation

LONGEST_REASON = 500
# A name that a file system or an object store does not take: that of a partition's folder, made of a row's value.
REFUSED_NAMES = ("file name too long", "os error 36", "key too long", "keytoolong", "invalid argument", "os error 22")
NO_SPACE = ("no space left", "os error 28", "quota", "os error 122")
TERMINAL_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# A signed address is as good as a password.
SIGNATURE = re.compile(r"(?i)(\b(?:sig|x-amz-signature|x-amz-credential|x-amz-security-token)=)[^&\s\"']+")


def reason_of(error: BaseException) -> str:
    """One line of what happened: delta-rs draws a tree of causes, and adds the stack of its own calls.

    A long one is cut in the middle, where paths are: what the system said is at its end.
    """
    text = TERMINAL_COLOURS.sub("", str(error)).split("\n   0: ")[0].split("\nPreview of ")[0].replace("↳", "<-")
    text = SIGNATURE.sub(r"\1***", " ".join(text.split()))
    half = LONGEST_REASON // 2
    return text if len(text) <= LONGEST_REASON else f"{text[:half]} … {text[-half:]}"


def may_be_a_rows_fault(error: Exception) -> bool:
    """Tell an error that a row may have caused from one of the store, its disk, the schema or another writer.

    Of a store that is away this cannot always be told: ask it for a commit without that row before believing it.
    """
    if isinstance(error, StoreUnavailableError):
        cause = error.__cause__
        text = str(cause).lower()
        if isinstance(cause, OSError):
            return any(sign in text for sign in REFUSED_NAMES)
        return not any(sign in text for sign in NO_SPACE)
    return not isinstance(error, TransientError | SchemaConflictError | MemoryError)


@contextmanager
def delta_errors(place: DeltaLocation) -> Iterator[None]:
    """Tell a failure of delta-rs or of what it writes to as one of ours.

    Raises:
        TransactionConflictError: another writer was in the way.
        StoreUnavailableError: not reached, refused, full, or not a Delta table.
    """
    from deltalake.exceptions import CommitFailedError, DeltaError  # noqa: PLC0415 - heavy, and loaded already here

    try:
        yield
    except CommitFailedError as error:
        raise TransactionConflictError(place.url, reason_of(error)) from error
    except (DeltaError, OSError) as error:
        raise StoreUnavailableError(place.url, reason_of(error)) from error
