"""`ingest profile`: list, check and try reader profiles, and propose one for a file.

All of them work with nothing running: they read files and settings, and store nothing.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.core.console import (
    AsJson,
    add_row,
    complain,
    counted,
    print_json,
    report_check,
    show,
    table,
)
from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import load_settings
from ingest_project.core.yaml_models import yaml_files

MAX_NAME = 40

profile_app = typer.Typer(help="Reader profiles: list, check, try, and propose one for a file.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A file on this machine.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the proposal; made of the file's by default.")]
Profile = Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Reader profile, by name or as a YAML file.")]
Dataset = Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Dataset, by name or as a defs.yaml.")]
Rows = Annotated[int, typer.Option(min=0, help="Most accepted, and most rejected rows to show.")]
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
    from ingest_project.file_ingest.commands.trial import contract_of, excerpt_of, installed_for, type_of, verdict_on
    from ingest_project.file_ingest.sensor_readings import SensorTypes
    from ingest_project.readers.guessing.proposal import guess_profile, look_at
    from ingest_project.readers.layout import ReadLimits
    from ingest_project.readers.profiles import read_profile

    settings = load_settings().settings
    types = SensorTypes.load(settings.file_ingest.sensor_types)
    draft = guess_profile(
        look_at(file, type_of(file), ReadLimits.from_settings(settings.file_ingest)),
        file.name,
        name or name_of(file),
        types.types,
    )
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
    """Show what of a file would be stored and what would be rejected, and why; store nothing.

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
