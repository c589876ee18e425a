"""Moments as people type them: a time, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import typer

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AGO = re.compile(r"(\d{1,5})([smhd])")


def moment_of(text: str | None, option: str, now: datetime) -> datetime | None:
    """The moment that is meant; None for none.

    Args:
        text: `2026-01-15`, `2026-01-15T10:30`, with or without an offset (UTC without one), or how long ago: `30m`,
            `2h`, `7d`.
        option: to name in the complaint.
        now: what `ago` counts from.

    Raises:
        typer.BadParameter: it is none of these.
    """
    if text is None:
        return None
    if ago := _AGO.fullmatch(text.strip()):
        return now - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(f"{option} takes a time like 2026-01-15T10:30 or 2h, not {text!r}.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
