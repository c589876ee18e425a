"""Having dead attachments tried anew: which of them, who asked, how fast, and what it will come to."""

from __future__ import annotations

import getpass
import os
import socket
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ingest_project.ledger.attachment_record import AttachmentRecord
    from ingest_project.resources import Services


class ReplayResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay did, or would do.

    Args:
        dry_run: whether nothing was changed.
        replayed: attachments that are tried anew, in the order they become due.
        exhausted: those that have been replayed as often as INGEST_MAX_REPLAYS allows; they stay dead.
        per_second: how fast they become due.
        first_due_at: None where none is tried anew; the same for the last one.
        more: whether others were found that were too many for one replay.
    """

    dry_run: bool
    replayed: tuple[str, ...]
    exhausted: tuple[str, ...]
    per_second: float
    first_due_at: datetime | None
    last_due_at: datetime | None
    more: bool = False


def replay(  # noqa: PLR0913 - each is a choice of its own
    services: Services,
    dead: Sequence[AttachmentRecord],
    now: datetime,
    *,
    per_second: float | None = None,
    dry_run: bool = False,
    more: bool = False,
) -> ReplayResult:
    """Have dead attachments tried anew. Doing it again finds them not dead any more, and leaves them alone.

    Args:
        services: the ledger, and how often and how fast is allowed.
        dead: in the order in which they are to be tried.
        now: the first is due.
        per_second: how fast they become due; INGEST_REPLAYS_PER_SECOND by default.
        dry_run: only say what would be done.
        more: whether others were found that are not among these.
    """
    settings = services.settings.attachments
    rate = per_second or settings.replays_per_second
    keys = [record.attachment_key for record in dead]
    if dry_run:
        exhausted = {record.attachment_key for record in dead if record.replays >= settings.max_replays}
        replayed, worn_out = [key for key in keys if key not in exhausted], [key for key in keys if key in exhausted]
    else:
        done = services.attachments.replay(keys, asked_by(), settings.max_replays, rate, now)
        replayed, worn_out = list(done.keys), list(done.exhausted)
    last = now + timedelta(seconds=(len(replayed) - 1) / rate) if replayed else None
    return ReplayResult(
        dry_run=dry_run,
        replayed=tuple(replayed),
        exhausted=tuple(worn_out),
        per_second=rate,
        first_due_at=now if replayed else None,
        last_due_at=last,
        more=more,
    )


def asked_by() -> str:
    """Who asks, for the audit: user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
