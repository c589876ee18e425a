"""`ingest`: one command, its parts each in a module of this package.

A module of a command has a function `register(app)`; naming the module in COMMANDS is all that it takes to add one.
Errors of ours end with their one message on standard error and an exit code a script can use: 2 for settings and usage,
1 for everything else, 130 when somebody interrupted.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

import typer

from ingest_project.cli.output import printable
from ingest_project.errors import IngestError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = (
    "demo",
    "dev",
    "send",
    "sources",
    "status",
    "files",
    "quarantine",
    "attachments",
    "dlq",
    "topics",
    "activity",
    "crm",
    "trace",
    "retention",
    "config",
    "migrate",
    "monitor",
)
FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def build_app(commands: Sequence[str] = COMMANDS) -> typer.Typer:
    """The command with these of its parts."""
    app = typer.Typer(
        name="ingest",
        help="Files, attachments and events from Kafka into validated tables.",
        no_args_is_help=True,
        add_completion=False,
        # A defect shows as an ordinary traceback, which people can search for and paste.
        pretty_exceptions_enable=False,
    )
    # Without a callback a lone command would become the app itself.
    app.callback()(_no_options)
    for name in commands:
        import_module(f"ingest_project.cli.{name}").register(app)
    return app


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code."""
    try:
        build_app(_needed(arguments))(list(arguments), prog_name="ingest")
    except SettingsError as error:
        return _failed(error, WRONG_USAGE)
    except IngestError as error:
        return _failed(error, FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:  # how Typer ends, usage errors and Ctrl-C included
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _needed(arguments: Sequence[str]) -> Sequence[str]:
    """The part that is asked for; all of them for help and misspelt names.

    To import the others takes longer than most commands do.
    """
    return arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS


def _no_options() -> None:
    """Files, attachments and events from Kafka into validated tables."""


def _failed(error: IngestError, code: int) -> int:
    # The end of a log may belong to it, which has lines of its own.
    for line in str(error).splitlines():
        sys.stderr.write(f"{printable(line)}\n")
    return code


if __name__ == "__main__":
    main()
