"""The frames of a Kusto answer (v2 protocol): whether they are whole, and the errors that they report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


def _errors_of(holder: dict[str, Any]) -> Iterator[ReportedError]:
    bodies = holder.get("OneApiErrors")
    found = [reported_error(body) for body in bodies] if isinstance(bodies, list) else []
    known = [error for error in found if error is not None]
    if known:
        yield from known
    else:
        exceptions = holder.get("Exceptions")
        text = "; ".join(map(str, exceptions)) if isinstance(exceptions, list) else "the query failed, no reason given"
        yield ReportedError("", text)


FIRST_FRAME = "DataSetHeader"
LAST_FRAME = "DataSetCompletion"
TABLE_FRAME = "DataTable"


@dataclass(frozen=True)
class ReportedError:
    """One error as Kusto reports it.

    Args:
        code: e.g. `LimitsExceeded`.
        text: for a person.
        permanent: whether the same query would fail again; None where Kusto does not say.
    """

    code: str
    text: str
    permanent: bool | None = None


class BrokenAnswerError(Exception):
    """An answer that is cut off or not of the v2 protocol."""


class QueryReportedError(Exception):
    """An answer that reports errors."""

    def __init__(self, errors: list[ReportedError]) -> None:
        self.errors = errors
        super().__init__("; ".join(error.text for error in errors))


def check_frames(frames: object) -> None:
    """Check that an answer is whole and without errors.

    Raises:
        QueryReportedError: it carries errors.
        BrokenAnswerError: it is not a whole answer.
    """
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise BrokenAnswerError("the answer is not a list of frames")
    errors = [error for frame in frames for error in _errors_in(frame)]
    if errors:
        raise QueryReportedError(errors)
    kinds = [frame.get("FrameType") for frame in frames]
    if len(kinds) < 2 or kinds[0] != FIRST_FRAME or kinds[-1] != LAST_FRAME:  # noqa: PLR2004 - the first and the last
        raise BrokenAnswerError("the answer is cut off")
    if not all(_is_table(frame) for frame in frames if frame["FrameType"] == TABLE_FRAME):
        raise BrokenAnswerError("a table of the answer is malformed")


def reported_error(body: object) -> ReportedError | None:
    """Return the error in a body of the form `{"error": {...}}`, if it is one."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return None
    text = error.get("@message") or error.get("message") or error.get("code") or "no reason given"
    permanent = error.get("@permanent")
    return ReportedError(str(error.get("code", "")), str(text), permanent if isinstance(permanent, bool) else None)


def _errors_in(frame: dict[str, Any]) -> Iterator[ReportedError]:
    rows = frame.get("Rows")
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            yield from _errors_of(row)
    if frame.get("HasErrors") or frame.get("OneApiErrors"):
        yield from _errors_of(frame)


def _is_table(frame: dict[str, Any]) -> bool:
    columns, rows = frame.get("Columns"), frame.get("Rows")
    return (
        isinstance(columns, list)
        and isinstance(rows, list)
        and all(isinstance(column, dict) and "ColumnName" in column for column in columns)
        and all(isinstance(row, list) and len(row) == len(columns) for row in rows)
    )
