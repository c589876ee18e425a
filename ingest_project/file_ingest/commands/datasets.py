"""`ingest profile` and `ingest dataset` list, check, try and propose what is declared; and `ingest baselines`.

Those of profiles and datasets work with nothing running: they read files and settings, and store nothing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.console import (
    AsJson,
    Limit,
    add_row,
    ago,
    complain,
    counted,
    print_json,
    report_check,
    say,
    show,
    table,
)
from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.core.yaml_models import yaml_files

MAX_NAME = 40

profile_app = typer.Typer(help="Reader profiles: list, check, try, and propose one for a file.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A file on this machine.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the proposal; made of the file's by default.")]
Profile = Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Reader profile, by name or as a YAML file.")]
Dataset = Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Dataset, by name or as a defs.yaml.")]
Rows = Annotated[int, typer.Option(min=0, max=10_000, help="Most accepted, and most rejected rows to show.")]
Paths = Annotated[list[Path] | None, typer.Argument(metavar="[PATH...]", help="YAML files, or folders of them.")]


@profile_app.command("list")
def list_profiles(*, as_json: AsJson = False) -> None:
    """List the reader profiles, shipped ones and yours, and those that are broken."""
    from ingest_project.readers.profiles import load_profiles  # as in all commands: only what they need

    profiles = load_profiles(load_settings().settings.file_ingest.profiles)
    if as_json:
        known = [
            {"name": one.name, "dataset": one.dataset, "description": one.description} for one in profiles.values()
        ]
        print_json({"profiles": known, "broken": profiles.broken})
        return
    made = table("Profile", "Dataset", "Description")
    for one in profiles.values():
        add_row(made, one.name, one.dataset, one.description)
    show(made)
    for broken in profiles.broken:
        complain(f"Broken: {broken.problem}")


@profile_app.command("show")
def show_profile(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]) -> None:
    """Print a reader profile as it is written."""
    from ingest_project.readers.profiles import SHIPPED_PROFILES, load_profiles, read_profile

    own = load_settings().settings.file_ingest.profiles
    known = load_profiles(own)
    if name not in known:
        raise typer.BadParameter(f"There is no usable reader profile {name!r}. Known: {', '.join(sorted(known))}.")
    for path in reversed([*yaml_files([SHIPPED_PROFILES]), *yaml_files(own)]):
        try:
            found = read_profile(path).name == name
        except SettingsError:
            continue
        if found:
            typer.echo(path.read_text(encoding="utf-8").rstrip())
            return


@profile_app.command("check")
def check_profiles(paths: Paths = None, *, as_json: AsJson = False) -> None:
    """Check reader profiles without any file: those of the settings, or these. Exit code 1 when one is broken."""
    from ingest_project.readers.profiles import load_profiles

    profiles = load_profiles(paths or load_settings().settings.file_ingest.profiles)
    report_check([one.problem for one in profiles.broken], counted(len(profiles), "profile"), as_json=as_json)


@profile_app.command("guess")
def guess(file: File, *, name: Name = None) -> None:
    """Propose a reader profile for a file, as YAML: what each guess rests on, and what a person must answer."""
    from ingest_project.file_ingest.commands.trial import contract_of, excerpt_of, installed_for, look, verdict_on
    from ingest_project.file_ingest.sensor_readings import SensorTypes
    from ingest_project.readers.guessing.proposal import guess_profile
    from ingest_project.readers.profiles import read_profile

    settings = load_settings().settings
    types = SensorTypes.load(settings.file_ingest.sensor_types)
    draft = guess_profile(look(file, settings), file.name, name or name_of(file), types.types)
    contract = contract_of(SENSOR_READINGS, settings)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "profile.yaml")
        written.write_text(draft.text(), encoding="utf-8")
        sample = excerpt_of(file, Path(folder))
        said = [verdict_on(sample, file, read_profile(written), contract), *installed_for(sample, contract)]
    typer.echo(draft.text(said), nl=False)


@profile_app.command("try")
def try_profile(
    file: File, *, profile: Profile = None, dataset: Dataset = None, rows: Rows = 10, as_json: AsJson = False
) -> None:
    """Show which rows of a file would be stored or rejected, and why; store nothing.

    Exit code 1 when the file would be quarantined as a whole.
    """
    from ingest_project.file_ingest.commands.trial import contract_of, profile_of, show_trial, try_file

    settings = load_settings().settings
    contract = contract_of(dataset or SENSOR_READINGS, settings)
    trial = try_file(file, profile_of(profile, contract, settings), contract, rows)
    if as_json:
        print_json(trial)
    else:
        show_trial(trial)
    if trial.refusal:
        raise typer.Exit(1)


def name_of(file: Path) -> str:
    """Return a name for the proposal for a file: its own, without dates and what names cannot hold."""
    from ingest_project.readers.guessing.names import slug

    words = slug(re.sub(r"[0-9]{4}[-_.]?[0-9]{2}(?:[-_.]?[0-9]{2})?", "", file.name.partition(".")[0]))
    return words.lstrip("0123456789_")[:MAX_NAME].strip("_") or "guessed"


dataset_app = typer.Typer(help="Declared datasets: list, check, try, and propose one for a file.", no_args_is_help=True)
dataset_app.command("try")(try_profile)


@dataset_app.command("guess")
def guess_a_dataset(file: File, *, name: Name = None) -> None:
    """Propose the declaration of a dataset for a file, as the content of a `defs.yaml`."""
    from ingest_project.contracts.files import type_inside
    from ingest_project.file_ingest.commands.trial import contract_of, excerpt_of, look, type_of, verdict_on
    from ingest_project.readers.guessing.dataset import guess_dataset

    settings = load_settings().settings
    named = name or name_of(file)
    draft = guess_dataset(look(file, settings), file.name, type_inside(type_of(file)), named)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, named, "defs.yaml")
        written.parent.mkdir()
        written.write_text(draft.text(), encoding="utf-8")
        contract = contract_of(str(written), settings)
        verdict = verdict_on(excerpt_of(file, Path(folder)), file, contract.profiles.named(named), contract)
    typer.echo(draft.text([verdict, f"Store this as {named}/defs.yaml in {settings.declarations.name}."]), nl=False)


@dataset_app.command("list")
def list_datasets(*, as_json: AsJson = False) -> None:
    """List the datasets, the shipped one and the declared ones, and those that are broken."""
    from ingest_project.readers.datasets import load_declarations

    found = load_declarations(load_settings().settings)
    if as_json:
        known = [{"name": one.name, "description": one.description} for one in found.values()]
        print_json({"datasets": known, "broken": found.broken})
        return
    made = table("Dataset", "Stored in", "Reader profile", "Description")
    for one in found.values():
        add_row(made, one.name, one.table or one.target.delta, one.profile, one.description)
    show(made)
    for broken in found.broken:
        complain(f"Broken: {broken.problem}")


@dataset_app.command("check")
def check_datasets(paths: Paths = None, *, as_json: AsJson = False) -> None:
    """Check the declared datasets of the settings, or these. Exit code 1 when one is broken.

    Where a database is configured, they are compared with the tables that exist. Declared streams are checked by
    `ingest streams check`.
    """
    from ingest_project.readers.datasets import check_declarations, load_declarations, read_declaration, require_profile
    from ingest_project.readers.declaration import DatasetDeclaration
    from ingest_project.readers.profiles import load_profiles

    settings = load_settings().settings
    profiles = load_profiles(settings.file_ingest.profiles)

    def read(path: Path) -> DatasetDeclaration | None:
        declaration = read_declaration(path)
        if declaration is not None:
            require_profile(declaration, profiles, path)
        return declaration

    found = check_declarations(
        paths, read, lambda settings: ((loaded := load_declarations(settings)).declared, loaded.broken)
    )
    problems = [*found.problems, *_refused_by_tables(found.usable, settings)]
    # The shipped one is among those of the settings.
    usable = counted(len(found.usable) + (not paths), "dataset")
    report_check(problems, usable, found.others_by("streams"), as_json=as_json)


def _refused_by_tables(declared: Sequence[Any], settings: Settings) -> Sequence[str]:
    if not declared or not settings.warehouse.database_url:
        return []
    from ingest_project.core.errors import TransientError
    from ingest_project.file_ingest.declared import refused_by_tables

    try:
        return [*refused_by_tables(declared, settings)]
    except TransientError as away:
        complain(f"Not compared with the tables that exist: {away}")
        return []


def show_baselines(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Only sources with this text in their name.")] = "",
    *,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """Show for each source of files its last file, next to what was usual in recent weeks."""
    from ingest_project.file_ingest.resources import FileIngestResources
    from ingest_project.file_ingest.warehouse.baselines import number, report_sources, usual_range

    settings = load_settings().settings
    now = datetime.now(UTC)
    reports = report_sources(FileIngestResources(settings).engine, settings, now, search=source, limit=limit)
    if as_json:
        print_json({"sources": [one.as_record() for one in reports]})
        return
    if not reports:
        say(
            "No source is known: no file was ingested in recent weeks."
            if not source
            else f"No source has {source!r} in its name."
        )
        return
    made = table(
        "Source", "Dataset", "Last file", "Ago", "Measure", "Value", "Usual", "Files", "", numbers={"Value", "Files"}
    )
    for one in reports:
        shown: tuple[object, ...] = (one.source, one.dataset, one.file, ago(one.at))
        for judged in one.verdict.judgements:
            usual = usual_range(judged.usual) if judged.usual else "no baseline yet"
            files = judged.usual.files if judged.usual else one.verdict.files
            mark = "not usual" if judged.outside else ""
            add_row(made, *shown, judged.label, number(judged.value), usual, files, mark)
            shown = ("", "", "", "")
    show(made)
