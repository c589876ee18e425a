"""`ingest action` and `ingest audit`: act on many items in one call, and show who did what and why.

The options of `ingest action run NAME` are the action's parameters; the browser shows them as a form.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import sqlalchemy as sa
import typer
from typer.core import TyperGroup

from ingest_project.core.console import (
    AsJson,
    add_row,
    complain,
    print_json,
    shortened,
    show,
    show_facts,
    show_list,
    table,
)
from ingest_project.core.settings import load_settings
from ingest_project.operations import SystemResources
from ingest_project.operations.actions import ACTIONS, action_named, actions_by_capability
from ingest_project.platform.actions import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    Action,
    ActionRecord,
    ActionRefusedError,
    ActionRequest,
    Parameter,
    action_record,
    action_records,
    items_of_action,
    login_name,
    perform_command,
    settle_interrupted,
)

MAX_SHOWN_REASON = 120

app = typer.Typer(help="Act on many items in one call, with a preview, a limit and a record.", no_args_is_help=True)

Limit = Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Maximum number of items to act on.")]
Reason = Annotated[str, typer.Option(help="Reason for the record; required except for a dry run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show how many items match, and which; change nothing.")]


class _Actions(TyperGroup):
    """The commands of all actions; an unknown name proposes the nearest one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - Typer brings its own Click
        """Find the command of an action."""
        try:
            if args and not args[0].startswith("-"):
                action_named(args[0])
        except ActionRefusedError as error:
            raise typer.BadParameter(f"{error} `ingest action list` lists them.") from error
        return super().resolve_command(ctx, args)


run_app = typer.Typer(cls=_Actions, help="Perform an action; `ingest action list` lists them.", no_args_is_help=True)


@app.command("list")
def list_actions(*, as_json: AsJson = False) -> None:
    """List every action by capability."""
    grouped = actions_by_capability()
    if as_json:
        print_json({"actions": [_as_record(name, action) for name, group in grouped.items() for action in group]})
        return
    made = table("Capability", "Action", "What it does")
    for name, group in grouped.items():
        for action in group:
            add_row(made, name, action.name, action.title)
    show(made)


def command_of(action: Action[SystemResources]) -> Callable[..., None]:
    """Return the command of an action, with one option for each of its parameters and the common options."""

    def command(*, limit: int, reason: str, dry_run: bool, as_json: bool, **given: Any) -> None:  # noqa: ANN401 - options
        values = {name: "\n".join(value) if isinstance(value, list) else value or "" for name, value in given.items()}
        request = ActionRequest(parameters=values, limit=limit, reason=reason, who=login_name(), dry_run=dry_run)
        perform_command(SystemResources(load_settings().settings), action, request, as_json=as_json)

    own = [_option(parameter) for parameter in action.parameters]
    common = [
        _keyword("limit", Limit, DEFAULT_LIMIT),
        _keyword("reason", Reason, ""),
        _keyword("dry_run", DryRun, default=False),
        _keyword("as_json", AsJson, default=False),
    ]
    signature = inspect.Signature([*own, *common])
    # Typer reads the options from these.
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in signature.parameters.values()}
    return command


def audit(
    action_id: Annotated[str | None, typer.Argument(metavar="ID", help="Show this record and its items.")] = None,
    *,
    action: Annotated[str | None, typer.Option(help="Show only records of the action with this name.")] = None,
    who: Annotated[str | None, typer.Option(help="Only actions of people with this in their name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MAX_LIMIT, help="Maximum number of records or items.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the records of operators' actions, newest first, or show one. Exit code 1 if it does not exist."""
    services = SystemResources(load_settings().settings)
    settle_interrupted(services, ACTIONS)
    engine = services.engine
    if action_id is None:
        _list_records(action_records(engine, action=action, who=who, limit=limit + 1), limit, as_json=as_json)
    else:
        _show_record(engine, action_id, limit, as_json=as_json)


def _list_records(found: Sequence[ActionRecord], limit: int, *, as_json: bool) -> None:
    if as_json:
        print_json({"records": found[:limit], "more": len(found) > limit})
        return
    made = table("Id", "Started", "Who", "Action", "Outcome", "Done", "Failed", "Reason", numbers=["Done", "Failed"])
    for one in found[:limit]:
        values = (one.action, one.outcome, one.done, one.failed, shortened(one.reason, MAX_SHOWN_REASON))
        add_row(made, one.action_id, one.started_at, one.who, *values)
    show_list(made, "records", more=len(found) > limit)


def _show_record(engine: sa.Engine, action_id: str, limit: int, *, as_json: bool) -> None:
    record = action_record(engine, action_id)
    if record is None:
        complain(f"There is no record {action_id}.")
        raise typer.Exit(1)
    items = items_of_action(engine, action_id, limit)
    if as_json:
        print_json({"record": record, "items": items})
        return
    show_facts(
        [
            ("Action", record.action),
            ("Who", record.who),
            ("Reason", record.reason),
            ("Parameters", ", ".join(f"{name} = {value}" for name, value in record.parameters.items())),
            ("Started", record.started_at),
            ("Finished", record.finished_at),
            ("Outcome", record.outcome),
            ("Selected", record.selected),
            ("Beyond the limit", record.remaining or None),
            ("Done", record.done),
            ("Failed", record.failed),
            ("Detail", record.detail),
        ]
    )
    made = table("Item", "Outcome", "Reason")
    for item in items:
        add_row(made, item.item_key, item.outcome or "unknown", item.reason or "")
    if items:
        show(made, "Items")


def _keyword(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option(parameter: Parameter) -> inspect.Parameter:
    metavar = {"time": "TIME", "file": "PATH"}.get(parameter.kind)
    meaning = parameter.meaning
    if parameter.kind == "time":
        meaning += " ISO 8601, UTC if without a zone: 2026-01-15T10:30; or an age: 2h."
    if parameter.kind == "lines":
        meaning += " Repeatable."
    kind: Any = list[str] if parameter.kind == "lines" else str
    if parameter.choices:
        kind = Literal[parameter.choices]
    option = typer.Option(f"--{parameter.name.replace('_', '-')}", help=meaning, metavar=metavar)
    if parameter.required:
        return _keyword(parameter.name, Annotated[kind, option], inspect.Parameter.empty)
    return _keyword(parameter.name, Annotated[kind | None, option], None)


def _as_record(capability: str, action: Action[SystemResources]) -> dict[str, object]:
    parameters = [one._asdict() for one in action.parameters]
    meaning = {"title": action.title, "meaning": action.meaning, "noun": action.noun}
    return {"capability": capability, "name": action.name, **meaning, "parameters": parameters}


for _action in ACTIONS.values():
    _help = f"{_action.title}. {_action.meaning}"
    run_app.command(_action.name, help=_help, short_help=_action.title)(command_of(_action))
app.add_typer(run_app, name="run")
