"""Structured logs: one JSON object a line (or text for a person), with what is being worked on bound to every line.

`bound(...)` adds fields such as job_id, trace_id, run_id and partition_key to everything logged inside it, from any
module and thread that runs within its context.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ingest_project.settings import LoggingSettings

_OWN_LOGGER = "ingest_project"


def configure_logging(settings: LoggingSettings) -> None:
    """Send this project's log to stderr, and to LOG_FILE where one is set. Calling it again replaces the set-up."""
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
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(_formatter(shared, as_json=settings.format == "json"))
    if settings.file:
        handlers.append(logging.FileHandler(settings.file, encoding="utf-8", delay=True))
        # A file is read by programs, whatever a person prefers on the screen.
        handlers[1].setFormatter(_formatter(shared, as_json=True))
    logger = logging.getLogger(_OWN_LOGGER)
    logger.handlers = handlers
    logger.setLevel(settings.level)
    logger.propagate = False


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one module, called with its `__name__`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


@contextmanager
def bound(**fields: Any) -> Iterator[None]:  # noqa: ANN401 - any value that JSON can show
    """Add these fields to every line logged inside; fields that are None are left out."""
    with structlog.contextvars.bound_contextvars(
        **{name: value for name, value in fields.items() if value is not None}
    ):
        yield


def _formatter(shared: list[structlog.typing.Processor], *, as_json: bool) -> logging.Formatter:
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
