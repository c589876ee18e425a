"""`ingest sources`: list the sources that are configured by name, and try one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer

from ingest_project.contracts.files import FileEvent
from ingest_project.core.console import AsJson, add_row, complain, counted, counts, print_json, say, stdout, table
from ingest_project.core.errors import IngestError, TransientError
from ingest_project.core.settings import ConfiguredSource, Settings, load_settings
from ingest_project.platform.http import without_query
from ingest_project.sources import Skipped, Source, SourceFile, count_reason, files_further_down, only_accepted

app = typer.Typer(help="Sources that are configured by name.", no_args_is_help=True)

SHOWN_FILES = 10
# A huge source takes hours to list; its faults show in the first entries.
MAX_ENTRIES = 10_000
READ_BYTES = 64 * 1024


class SourceSample(msgspec.Struct, kw_only=True):
    """Result of trying a source.

    Args:
        files: that would be published, of those that were listed.
        complete: everything was listed.
        skipped: reason to number.
        first: the first few files.
        read_bytes: of the first file, read to try that too; None where there is no file.
        error: the failure.
        permanent: a retry cannot help.
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
    """List every configured source."""
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
    """Try a source: list it, read the first file, and show the result. Nothing is published."""
    settings = load_settings().settings
    if name not in settings.sources:
        known = ", ".join(settings.sources) or "none"
        raise typer.BadParameter(f"{name!r} is not configured. Configured are: {known}.")
    sample = take_sample(name, settings.sources[name], settings)
    if as_json:
        print_json(sample)
    else:
        _show(sample)
    if sample.error:
        raise typer.Exit(1)


def take_sample(name: str, configured: ConfiguredSource, settings: Settings) -> SourceSample:
    """List a source and read its first file; a failure is part of the result."""
    from ingest_project.sources.resources import SourceResources  # imports Polars

    services, sample = SourceResources(settings), SourceSample(source=name, location="")
    try:
        source = services.open_listed(configured.source_config)
        sample.location = source.location
        source.require_allowed(str(configured.source_config.get("path", "")))
        datasets = services.datasets

        def refusal_of(file: SourceFile) -> str:
            return datasets.refusal_of(
                FileEvent(file_path=file.path, file_name=file.name, metadata=configured.metadata)
            )

        _list(source, configured.file_pattern, sample, refusal_of)
    except IngestError as error:
        sample.error, sample.permanent = str(error), not isinstance(error, TransientError)
    return sample


def _list(source: Source, pattern: str, sample: SourceSample, refusal_of: Callable[[SourceFile], str]) -> None:
    skipped: dict[str, int] = {}
    for number, entry in enumerate(only_accepted(source.list_files(pattern), refusal_of)):
        if number >= MAX_ENTRIES:
            break
        if isinstance(entry, Skipped):
            count_reason(skipped, entry.reason)
        else:
            sample.files += 1
            if len(sample.first) < SHOWN_FILES:
                sample.first.append(_described(entry))
            if sample.read_bytes is None:
                with source.open(entry.path) as stream:
                    sample.read_bytes = len(stream.read(READ_BYTES))
    else:
        sample.complete = True
    if not sample.files:
        skipped |= files_further_down(source, pattern)
    sample.skipped = skipped


def _described(file: SourceFile) -> dict[str, Any]:
    path, modified_at = without_query(file.path), file.modified_at
    return {"path": path, "size_bytes": file.size_bytes, "modified_at": modified_at, "etag": file.etag}


def _show(sample: SourceSample) -> None:
    say(f"{sample.source}: {sample.location}")
    if sample.first:
        files = table("file", "bytes", "changed", numbers={"bytes"})
        for file in sample.first:
            add_row(files, file["path"], file["size_bytes"], file["modified_at"])
        stdout().print(files)
    more = "" if sample.complete or sample.error else f" in its first {MAX_ENTRIES:,} entries"
    say(f"{counted(sample.files, 'file')} to ingest{more}.")
    if sample.skipped:
        say(f"Skipped: {counts(sample.skipped)}")
    if sample.read_bytes is not None:
        say("The first file can be read.")
    if sample.error:
        remedy = "Trying again cannot help." if sample.permanent else "It may work later."
        complain(f"It cannot be used: {sample.error} {remedy}")
