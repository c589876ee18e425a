"""`ingest quarantine`: what was refused and why, and the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from ingest_project.cli.files import FilePage, Key, Limit, Rows, listed, page_of, show_quarantined_rows
from ingest_project.cli.key_lookup import find_file
from ingest_project.core.console import (
    AsJson,
    add_row,
    ago,
    complain,
    counted,
    counts,
    print_json,
    say,
    shortened,
    show_facts,
    show_list,
    stdout,
    table,
)
from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.file_queue import FileQueue, FileRecord
from ingest_project.file_ingest.tables import FileState
from ingest_project.operations.resources import SystemResources

app = typer.Typer(help="Files that were refused: why, and the way back.", no_args_is_help=True)

MAX_SHOWN_REASON = 120
KEYS_PER_QUESTION = 1_000


class Release(msgspec.Struct, frozen=True):
    """What a release did.

    Args:
        released: keys of the files that will be ingested again.
        unchanged: keys of those that are not finished, with their state: they will be ingested anyway.
    """

    released: tuple[str, ...]
    unchanged: dict[str, FileState]


def register(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(app, name="quarantine")


@app.command("list")
def list_quarantined(
    *,
    search: Annotated[
        str | None, typer.Option(help="Only files with this text in key, path, job id, trace id or reason.")
    ] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List the files that were refused whole, the last first."""
    found = listed(SystemResources(load_settings().settings), FileState.QUARANTINED, search, limit)
    if as_json:
        print_json(found)
        return
    made = table("Key", "Refused", "Broken rules", "Reason")
    for record in found.files:
        reason = shortened(record.reason or "", MAX_SHOWN_REASON)
        add_row(
            made,
            record.file_key,
            ago(record.finished_at or record.updated_at),
            counts(record.rule_counts or {}),
            reason,
        )
    show_list(made, "files", more=found.more)


@app.command("show")
def show_quarantined(key: Key, *, rows: Rows = 20, as_json: AsJson = False) -> None:
    """Show why a file, or some of its rows, were refused. Exit code 1 when nothing of it was."""
    services = SystemResources(load_settings().settings)
    page = page_of(find_file(services.files, key), services, rows)
    refused = page.file.state is FileState.QUARANTINED or bool(page.quarantined_rows)
    if as_json:
        print_json(page)
    elif refused:
        _show(page)
    else:
        complain(f"Nothing of {page.file.file_key} is in quarantine: it is {page.file.state}.")
    if not refused:
        raise typer.Exit(1)


@app.command("release")
def release(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY...", help="Keys of files, or the beginnings of them.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Every file that was refused whole.")] = False,
    profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="Read them by this reader profile from now on.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ingest files again, after the source, the settings or the reader profile were mended, or by another profile.

    Any finished file can be named, also one of which only some rows were refused. Exit code 1 when one of them is not
    finished. It leaves the quarantine once it has been accepted. Read by another profile it has another key, and
    replaces what the former profile made of it as soon as it is accepted.
    """
    if bool(keys) == everything:
        raise typer.BadParameter("Name the files, or say --all.")
    settings = load_settings().settings
    if profile is not None:
        _require_profile(profile, settings)
    ledger = SystemResources(settings).files
    # Every key is looked up before anything changes: a misspelt one changes nothing.
    chosen = [find_file(ledger, key) for key in keys] if keys else list(quarantined(ledger))
    done = _release(ledger, chosen) if profile is None else _announce_again(ledger, chosen, profile)
    if as_json:
        print_json(done)
    else:
        _tell(done)
    if done.unchanged:
        raise typer.Exit(1)


def quarantined(ledger: FileQueue) -> Iterator[FileRecord]:
    """Every file that was refused whole."""
    offset = 0
    while found := ledger.list(state=FileState.QUARANTINED, limit=KEYS_PER_QUESTION, offset=offset):
        yield from found
        offset += len(found)


def _release(ledger: FileQueue, chosen: Sequence[FileRecord]) -> Release:
    released = ledger.reopen([record.file_key for record in chosen], datetime.now(UTC))
    states = {record.file_key: record.state for record in chosen}
    return Release(released, {key: state for key, state in states.items() if key not in set(released)})


def _announce_again(ledger: FileQueue, chosen: Sequence[FileRecord], profile: str) -> Release:
    released, unchanged = [], {}
    for record in chosen:
        key = ledger.announce_again(record, profile, datetime.now(UTC)) if record.state.finished else None
        if key is None:
            unchanged[record.file_key] = record.state
        else:
            released.append(key)
    return Release(tuple(released), unchanged)


def _require_profile(name: str, settings: Settings) -> None:
    """Refuse a profile that would refuse every file."""
    from ingest_project.readers.profiles import load_profiles  # noqa: PLC0415 - the other commands need none

    known = load_profiles(settings.file_ingest.profiles)
    if name not in known:
        raise typer.BadParameter(f"There is no usable reader profile {name!r}. Known: {', '.join(sorted(known))}.")


def _tell(done: Release) -> None:
    for key in done.released:
        say(f"{key} will be ingested again.")
    for key, state in done.unchanged.items():
        complain(f"{key} is {state}: it is on its way already.")
    if not done.released and not done.unchanged:
        say("Nothing is in quarantine.")
    else:
        say(f"{counted(len(done.released), 'file')} released. `ingest status` shows how far they are.")


def _show(page: FilePage) -> None:
    record = page.file
    whole = record.state is FileState.QUARANTINED
    say(record.file_key, style="bold")
    pairs = [
        ("Refused", "the whole file" if whole else f"{record.rows_quarantined:,} of {record.rows_read:,} rows"),
        ("Reason", record.reason),
        ("Broken rules", counts(record.rule_counts or {})),
        ("When", record.finished_at),
        ("Source", record.location),
        ("Reader profile", record.profile),
        ("Its bytes", page.quarantine.location if page.quarantine else page.landed_at),
        *(("Not known", problem) for problem in page.problems),
    ]
    show_facts(pairs)
    show_quarantined_rows(page)
    stdout().print()
    say(f"Once that is mended: ingest quarantine release {record.file_key}")
