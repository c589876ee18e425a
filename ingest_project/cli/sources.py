"""`ingest sources`: the sources that are configured by name, and what can be seen in one of them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from ingest_project.core.console import AsJson, add_row, complain, counted, counts, print_json, say, stdout, table
from ingest_project.core.errors import IngestError, TransientError
from ingest_project.core.settings import ConfiguredSource, load_settings
from ingest_project.operations.resources import SystemResources
from ingest_project.sources.protocol import Skipped, Source, SourceFile
from ingest_project.sources.selection import count_reason, files_further_down

app = typer.Typer(help="Sources that are configured by name.", no_args_is_help=True)

SHOWN_FILES = 10
# Listing goes on for ever where a source is huge; what is wrong with it shows at its beginning.
MOST_ENTRIES = 10_000
READ_BYTES = 64 * 1024


def register(to: typer.Typer) -> None:
    """Add the commands."""
    to.add_typer(app, name="sources")


class SourceSample(msgspec.Struct, kw_only=True):
    """What was seen in a source.

    Args:
        files: that would be announced, as far as was listed.
        complete: whether everything was listed.
        skipped: reason to number.
        first: the first few files.
        read_bytes: of the first file, read to try that too; None where there is no file.
        error: what went wrong.
        permanent: whether trying again cannot help.
    """

    source: str
    location: str
    files: int = 0
    complete: bool = False
    skipped: dict[str, int] = {}
    first: list[dict[str, Any]] = []
    read_bytes: int | None = None
    error: str | None = None
    permanent: bool | None = None


@app.command("list")
def list_sources(*, as_json: AsJson = False) -> None:
    """Every configured source."""
    sources = load_settings().settings.sources
    if as_json:
        print_json({name: source.model_dump() for name, source in sources.items()})
        return
    if not sources:
        say("No source is configured. Add one under 'sources' in config.yaml, or set INGEST_SOURCES.")
        return
    shown = table("source", "type", "path", "files", "every", numbers={"every"})
    for name, source in sources.items():
        every = f"{source.every_seconds:g} s" if source.every_seconds else "when asked"
        config = source.source_config
        add_row(shown, name, config["source_type"], config.get("path", ""), source.file_pattern, every)
    stdout().print(shown)


@app.command("test")
def try_source(
    name: Annotated[str, typer.Argument(help="As in the settings; `ingest sources list` names them.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Try a source: list it, read the first file, and say what was seen. Nothing is announced."""
    settings = load_settings().settings
    if name not in settings.sources:
        known = ", ".join(settings.sources) or "none"
        raise typer.BadParameter(f"{name!r} is not configured. Configured are: {known}.")
    seen = look(name, settings.sources[name], SystemResources(settings))
    if as_json:
        print_json(seen)
    else:
        _show(seen)
    if seen.error:
        raise typer.Exit(1)


def look(name: str, configured: ConfiguredSource, services: SystemResources) -> SourceSample:
    """What a source shows; a failure is part of it."""
    seen = SourceSample(source=name, location="")
    try:
        source = services.open_source(configured.source_config)
        seen.location = source.location
        source.require_allowed(str(configured.source_config.get("path", "")))
        _list(source, configured.file_pattern, seen)
    except IngestError as error:
        seen.error, seen.permanent = str(error), not isinstance(error, TransientError)
    return seen


def _list(source: Source, pattern: str, seen: SourceSample) -> None:
    skipped: dict[str, int] = {}
    for number, entry in enumerate(source.list_files(pattern)):
        if number >= MOST_ENTRIES:
            break
        if isinstance(entry, Skipped):
            count_reason(skipped, entry.reason)
        else:
            seen.files += 1
            if len(seen.first) < SHOWN_FILES:
                seen.first.append(_described(entry))
            if seen.read_bytes is None:
                with source.open(entry.path) as stream:
                    seen.read_bytes = len(stream.read(READ_BYTES))
    else:
        seen.complete = True
    if not seen.files:
        skipped |= files_further_down(source, pattern)
    seen.skipped = skipped


def _described(file: SourceFile) -> dict[str, Any]:
    modified_at = file.modified_at
    return {"path": file.path, "size_bytes": file.size_bytes, "modified_at": modified_at, "etag": file.etag}


def _show(seen: SourceSample) -> None:
    say(f"{seen.source}: {seen.location}")
    if seen.first:
        files = table("file", "bytes", "changed", numbers={"bytes"})
        for file in seen.first:
            add_row(files, file["path"], file["size_bytes"], file["modified_at"])
        stdout().print(files)
    more = "" if seen.complete or seen.error else f" in its first {MOST_ENTRIES:,} entries"
    say(f"{counted(seen.files, 'file')} to ingest{more}.")
    if seen.skipped:
        say(f"Skipped: {counts(seen.skipped)}")
    if seen.read_bytes is not None:
        say("The first file can be read.")
    if seen.error:
        remedy = "Trying again cannot help." if seen.permanent else "It may work later."
        complain(f"It cannot be used: {seen.error} {remedy}")
