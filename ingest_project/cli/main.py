"""`ingest`: the command line. It imports only the module of the called command.

An expected error prints one message on standard error and sets an exit code for scripts: 2 for settings and usage, 1
for any other error, 130 after an interrupt.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from ingest_project.core import plugins
from ingest_project.core.console import AsJson, add_row, complain, escape_unencodable, print_json, table
from ingest_project.core.errors import IngestError, SettingsError
from ingest_project.core.local_files import keep_files_private
from ingest_project.core.logging import printable, printable_lines
from ingest_project.core.plugins import InstalledPlugin, Plugins, installed
from ingest_project.core.secrets import SecretReference
from ingest_project.core.settings import Setting, load_settings

# The function, or the app of subcommands, of each command. A capability's own commands are in its folder.
COMMANDS: Mapping[str, str] = {
    "dev": "cli.dev:dev",
    "send": "cli.send:app",
    "sources": "polling.commands:app",
    "status": "cli.operations:status",
    "files": "file_ingest.commands.files:files_app",
    "quarantine": "file_ingest.commands.files:quarantine_app",
    "profile": "file_ingest.commands.datasets:profile_app",
    "dataset": "file_ingest.commands.datasets:dataset_app",
    "baselines": "file_ingest.commands.datasets:show_baselines",
    "attachments": "attachments.commands:attachments_app",
    "dlq": "cli.dead_letters:app",
    "topics": "cli.dead_letters:topics_app",
    "streams": "streams.commands:streams_app",
    "activity": "streams.commands:activity_app",
    "crm": "streams.commands:crm_app",
    "find": "cli.items:find_items",
    "show": "cli.items:show_item",
    "trace": "cli.items:show_trace",
    "action": "cli.actions:app",
    "audit": "cli.actions:audit",
    "alerts": "operations.alerts.commands:alerts_app",
    "retention": "cli.operations:purge",
    "config": "cli.main:show_settings",
    "migrate": "cli.dev:migrate",
    "psql": "cli.dev:psql",
    "monitor": "cli.operations:monitor",
}
# `ingest psql` passes unknown options on to psql.
CONTEXT_SETTINGS: Mapping[str, dict[str, Any]] = {
    "psql": {"ignore_unknown_options": True, "allow_interspersed_args": False}
}
# The mapping of parts for each group of entry points.
PARTS: Mapping[str, str] = {
    plugins.READERS: "readers.reading:READERS",
    plugins.SOURCES: "sources.registry:SOURCES",
    plugins.STORES: "platform.object_store:STORES",
    plugins.DECODERS: "streams.decoders:DECODERS",
    plugins.ALERT_CHANNELS: "operations.alerts:CHANNELS",
}
# Click's class for usage errors: newer versions of Typer ship their own Click.
_UsageProblem: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
# Width of output to a pipe or a file, where a terminal's width does not apply.
PIPE_WIDTH = 200
# A password within an address, where none belongs; of a web address its user as well, who may be a token.
USER_INFO = re.compile(r"(https?://|://(?=[^/\s@]*:))[^/\s]*@")
FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
HELP = """Files, attachments and events from Kafka into validated tables.

`make demo` in a checkout shows it all with sample data.
"""


def build_app(commands: Iterable[str] = COMMANDS) -> typer.Typer:
    """Create the app with these commands."""
    app = typer.Typer(
        name="ingest",
        help=HELP,
        no_args_is_help=True,
        add_completion=False,
        # Show a defect as an ordinary traceback, which people can search for and paste.
        pretty_exceptions_enable=False,
    )
    # Without a callback, a single command would become the app itself.
    app.callback()(_no_options)
    for name in commands:
        module, _, attribute = COMMANDS[name].partition(":")
        command = getattr(import_module(f"ingest_project.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, context_settings=CONTEXT_SETTINGS.get(name))(command)
    return app


def main() -> None:
    """Entry point of the console script."""
    run_process(lambda: run(sys.argv[1:]))


def run_process(command: Callable[[], int]) -> None:
    """Run a command and exit this process with its exit code."""
    keep_files_private()
    escape_unencodable()
    threading.excepthook = _show_defect_of_thread
    code: int | None = None

    def end_at_once() -> None:
        # Exit without cleaning up imported modules, which takes a quarter of a command's time. If output cannot be
        # written, let the interpreter report that and exit normally.
        if code is not None:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    # The first registered function is called last, after threads have ended.
    atexit.register(end_at_once)
    try:
        code = command()
    except Exception as defect:  # noqa: BLE001 - shown as usual, without what acts on a terminal
        _show_defect(defect)
        code = FAILED
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code."""
    # Build all commands only for help and unknown names: importing all of them takes longer than most commands run.
    needed = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    return run_app(lambda: build_app(needed), arguments, "ingest")


def run_app(build: Callable[[], typer.Typer], arguments: Sequence[str], name: str) -> int:
    """Run one command line of an app, print an expected error as one message, and return the exit code.

    Args:
        build: creates the app; its errors are reported like those of a command.
        arguments: arguments without the program's name.
        name: name of the program, for its help.
    """
    try:
        _require_text(arguments)
        return _exit_code(build, arguments, name)
    except SettingsError as error:
        return _failed(error, WRONG_USAGE)
    except IngestError as error:
        return _failed(error, FAILED)
    except _UsageProblem as problem:
        return _misused(problem)


def show_settings(*, as_json: AsJson = False) -> None:
    """Show every effective setting with its origin, and installed plug-ins; secrets are masked."""
    loaded = load_settings()
    settings = list(loaded.each())
    if loaded.ignored:
        complain(f"Ignored, as they have no meaning here (docs/migrating.md): {', '.join(loaded.ignored)}.")
    if as_json:
        print_json([_as_record(setting) for setting in settings])
    else:
        console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        console.print(_settings_table(settings))
        if found := installed_plugins():
            console.print(_plugins_table(found))


def installed_plugins() -> list[InstalledPlugin]:
    """Return all parts of other packages, each with its problem, if any."""
    found: list[InstalledPlugin] = []
    for group, address in PARTS.items():
        # Do not import a kind without plug-ins.
        if installed(group):
            module, _, name = address.partition(":")
            parts: Plugins[Any] = getattr(import_module(f"ingest_project.{module}"), name)
            found += parts.plugins()
    return found


def _require_text(arguments: Sequence[str]) -> None:
    """Require UTF-8 of every argument that names no file: no database and no message takes another text."""
    for argument in arguments:
        if argument.encode(errors="replace") != os.fsencode(argument) and not os.path.lexists(argument):
            raise typer.BadParameter(f"{argument!r} is not UTF-8.")


def _exit_code(build: Callable[[], typer.Typer], arguments: Sequence[str], name: str) -> int:
    try:
        ended = build()(list(arguments), prog_name=name, standalone_mode=False)
    except KeyboardInterrupt:
        return INTERRUPTED
    except typer.Abort:
        return FAILED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    # A command returns nothing; one that ends early returns its exit code.
    return ended if isinstance(ended, int) else 0


def _no_options() -> None:
    """Files, attachments and events from Kafka into validated tables."""


def _misused(problem: Any) -> int:  # noqa: ANN401 - of Typer's own Click, which has no public name
    # Without arguments, Click has already printed the help.
    if type(problem).__name__ != "NoArgsIsHelpError":
        # The message repeats arguments, which may contain control characters; one about choices has several lines.
        message = " ".join(problem.format_message().replace("Value error, ", "").split())
        end = "" if message.endswith((".", "?")) else "."
        context = getattr(problem, "ctx", None)
        complain(f"{message}{end}" + (f" See: {context.command_path} --help" if context else ""))
    return int(problem.exit_code)


def _show_defect(defect: BaseException) -> None:
    sys.stderr.write(printable_lines("".join(traceback.format_exception(defect))))


def _show_defect_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and args.exc_type is not SystemExit:
        _show_defect(args.exc_value)


def _failed(error: IngestError, code: int) -> int:
    # An error may include the last lines of a log.
    for line in str(error).splitlines():
        sys.stderr.write(f"{printable(line)}\n")
    return code


def _settings_table(settings: list[Setting]) -> Table:
    made = table("Setting", "Value", "From", "Environment variable", "Meaning")
    for setting in settings:
        variables = " or ".join(setting.env_names)
        origin = f"{setting.origin}: {setting.reference}" if setting.reference else setting.origin.value
        add_row(made, setting.path, _text(setting.value), origin, variables, setting.description)
    return made


def _plugins_table(found: list[InstalledPlugin]) -> Table:
    made = table("Plug-in", "Name", "Package", "State")
    for plugin in found:
        state = f"not used: {plugin.problem}" if plugin.problem else "ready"
        add_row(made, plugin.group.rpartition(".")[2], plugin.name, plugin.package, state)
    return made


def _as_record(setting: Setting) -> dict[str, object]:
    plain = isinstance(setting.value, bool | int | float) or setting.value is None
    return {
        "setting": setting.path,
        "value": setting.value if plain else _text(setting.value),
        "origin": setting.origin.value,
        "reference": setting.reference,
        "environment_variables": list(setting.env_names),
        "description": setting.description,
    }


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return "********" if isinstance(value, SecretReference) or value.get_secret_value() else ""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return USER_INFO.sub(r"\1***@", text)


if __name__ == "__main__":
    main()
