"""A log of its own for messages that could not be identified, beside LOG_FILE: one JSON object a line, message and all.

The table is what counts; this is for people and programs that follow files. A line is written before its row is
committed: after a crash it may be there twice, and never be missing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ingest_project.core.logging import get_logger
from ingest_project.core.terminal_text import to_json
from ingest_project.streams.crm.unidentified_store import Unidentified, text_of

logger = get_logger(__name__)


def log_path(log_file: Path | None) -> Path | None:
    """Where it is: `ingest.unidentified.log` for a LOG_FILE `ingest.log`; None where none is set."""
    return None if log_file is None else log_file.with_name(f"{log_file.stem}.unidentified{log_file.suffix or '.log'}")


def append(log_file: Path | None, messages: Sequence[Unidentified], now: datetime) -> None:
    """Write a line for each message. A log that cannot be written is said in the other one, and stops nothing."""
    path = log_path(log_file)
    if path is None or not messages:
        return
    lines = b"".join(_line(message, now) for message in messages)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Runs write side by side: what is appended in one call stays together.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write(lines)
    except OSError as error:
        logger.warning("unidentified_log_not_written", path=str(path), reason=str(error), messages=len(messages))


def _line(message: Unidentified, now: datetime) -> bytes:
    text = text_of(message.payload)
    fields = {
        "timestamp": now,
        "message_id": message.message_id,
        "topic": message.position.topic,
        "partition": message.position.partition,
        "offset": message.position.offset,
        "reason": message.reason,
        # Text where it is text, base64 otherwise.
        **({"message": text} if text is not None else {"message_base64": message.payload}),
    }
    return to_json(fields).encode() + b"\n"
