"""Structured logs: one JSON object per line (or text for a person), with the current item bound to every line.

`bound(...)` adds fields such as job_id, trace_id, run_id and partition_key to every line logged inside its block, from
any module and thread that runs in its context.

`printable` makes untrusted text (file names, reasons, raw rows, exceptions) safe for a terminal, in tables, logs and
JSON. A character that is not printable (C0 and C1 controls, DEL, bidirectional and other format characters, lone
surrogates, unassigned code points) becomes an escape: it could move the cursor, change colours, reverse the text or
forge a line.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import msgspec
import stamina.instrumentation
import structlog

from ingest_project.core.local_files import make_private_folder
from ingest_project.core.settings import LoggingSettings

# Variable that tells child processes which settings have already been logged.
_IGNORED = "_INGEST_SETTINGS_IGNORED"
_OWN_LOGGER = "ingest_project"
# Disable stamina's log of retries: it uses structlog's defaults, which print on stdout, where commands print results.
stamina.instrumentation.set_on_retry_hooks([])
# Only characters other than printable ASCII are checked one by one.
_DOUBTFUL = re.compile(r"[^\x20-\x7e]")
_DOUBTFUL_IN_JSON = re.compile(r"[^\n\x20-\x7e]")


def configure_logging(settings: LoggingSettings) -> None:
    """Send this project's log to stderr, and to LOG_FILE if it is set. A repeated call replaces the configuration."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    on_screen = logging.StreamHandler(sys.stderr)
    on_screen.setFormatter(_formatter(shared, as_json=settings.format == "json"))
    logger = logging.getLogger(_OWN_LOGGER)
    for handler in logger.handlers:
        handler.close()
    logger.handlers = [on_screen]
    logger.setLevel(settings.level)
    logger.propagate = False
    if settings.file:
        try:
            in_file = _LogFile(settings.file)
        except OSError as error:
            get_logger(__name__).warning(*_LogFile.failure(settings.file, error))
            return
        # Log files are for programs: always JSON.
        in_file.setFormatter(_formatter(shared, as_json=True))
        logger.addHandler(in_file)


class _LogFile(WatchedFileHandler):
    """A log file that programs may rotate, and whose failures never reach the caller that logs.

    Args:
        path: path of the file, whose folder is created; several processes may append lines.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fails = False
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    @staticmethod
    def failure(path: Path, error: OSError) -> tuple[str]:
        """Return the event that reports a failure."""
        return (f"LOG_FILE {path} is not written: {error.strerror or error}. The log continues on standard error.",)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; report a full disk or a missing folder once on standard error."""
        line = self.format(record) + self.terminator
        try:
            if self.stream is None:
                self.stream = self._open()
            self.reopenIfNeeded()
            self.stream.write(line)
            self.flush()
        except OSError as error:
            self._purge()
            if not self._fails:
                sys.stderr.write(f"{printable(self.failure(Path(self.baseFilename), error)[0])}\n")
            self._fails = True
        else:
            self._fails = False

    def close(self) -> None:
        """Close the file; buffered lines that cannot be written are lost."""
        self._purge()
        super().close()

    def _open(self) -> TextIOWrapper:
        make_private_folder(Path(self.baseFilename).parent)
        return super()._open()

    def _purge(self) -> None:
        stream, self.stream = self.stream, None
        # Closing the stream tries to write the buffer once more.
        with suppress(OSError):
            if stream is not None:
                stream.close()


def log_ignored(names: Sequence[str]) -> None:
    """Log the names, not the values, of settings of a replaced service that have no effect here.

    Child processes, such as runs, do not repeat the line.
    """
    if names and os.environ.get(_IGNORED) != (shown := ",".join(names)):
        os.environ[_IGNORED] = shown
        get_logger(__name__).info("settings_ignored", names=list(names), see="docs/migrating.md")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module, given its `__name__`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


@contextmanager
def bound(**fields: Any) -> Iterator[None]:  # noqa: ANN401 - any value that JSON can show
    """Add these fields to every line logged inside the block, except None values."""
    with structlog.contextvars.bound_contextvars(
        **{name: value for name, value in fields.items() if value is not None}
    ):
        yield


def printable(value: object) -> str:
    """Return the text on one line, with an escape for every unprintable character."""
    return _DOUBTFUL.sub(lambda found: _escaped(found[0]), str(value))


def printable_lines(text: str) -> str:
    """Return the text with printable characters only, but keep its line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    """Return the same JSON with JSON escapes for unprintable characters.

    Args:
        text: JSON, in which such characters occur only in strings.
    """
    return _DOUBTFUL_IN_JSON.sub(lambda found: _json_escaped(found[0]), text)


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return any value, including structs, times and enums, as printable JSON; NaN and infinity become null."""
    plain = _finite(msgspec.to_builtins(value, str_keys=True, enc_hook=str))
    return printable_json(json.dumps(plain, ensure_ascii=False, indent=indent))


def _formatter(shared: list[structlog.typing.Processor], *, as_json: bool) -> logging.Formatter:
    renderers: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer(_dump)]
        if as_json
        else [_printable_values, structlog.dev.ConsoleRenderer(colors=False)]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers]
    )


def _dump(event: Any, **options: Any) -> str:  # noqa: ANN401 - what structlog hands over
    return printable_json(json.dumps(event, ensure_ascii=False, **options))


def _printable_values(
    _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Make every value safe for a terminal, and indent tracebacks, whose lines could look like log events."""
    for name, value in event.items():
        if name in {"exception", "stack"}:
            event[name] = "\n".join(f"    {printable(line)}" for line in str(value).split("\n"))
        elif not isinstance(value, bool | int | float | None):
            event[name] = printable(value)
    return event


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _json_escaped(character: str) -> str:
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index] << 8 | units[index + 1]:04x}" for index in range(0, len(units), 2))


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can show
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Defaults until `configure_logging` is called, if ever: structlog's own would print the values of variables, which may
# be secrets, with each traceback, and need a second of CPU time for it.
if not structlog.is_configured():
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _printable_values,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        # Log to stderr: stdout is for the result of a command, which may be JSON.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )
