"""`ingest profile` and `ingest dataset`: list, check and try declarations, and propose one for a file.

All of them work with nothing running: they read files and settings, and store nothing.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ingest_project.core.console import (
    AsJson,
    add_row,
    complain,
    counted,
    counts,
    print_json,
    say,
    shortened,
    show,
    show_facts,
    table,
)
from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.file_ingest.sensor_readings import SensorTypes
from ingest_project.file_ingest.trial import Trial, file_type_of, try_file
from ingest_project.readers.guess_names import slug
from ingest_project.readers.guess_yaml import Draft
from ingest_project.readers.guessing import guess_profile, look_at
from ingest_project.readers.layout import ReadLimits
from ingest_project.readers.profiles import SHIPPED_PROFILES, ReaderProfile, load_profiles, read_profile

MAX_SHOWN_TEXT = 160
YAML_ENDINGS = (".yaml", ".yml")

profile_app = typer.Typer(
    help="Reader profiles: list, check and try them, propose one for a file.", no_args_is_help=True
)

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A file on this machine.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Name of the proposal; the file's name by default.")]
Profile = Annotated[str | None, typer.Option(metavar="NAME|PATH", help="Reader profile, by name or as a YAML file.")]
Rows = Annotated[int, typer.Option(min=0, help="Most accepted and most rejected rows to show.")]


def register_profile(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(profile_app, name="profile")


@profile_app.command("list")
def list_profiles(*, as_json: AsJson = False) -> None:
    """List the reader profiles, shipped ones and yours."""
    profiles = load_profiles(load_settings().settings.file_ingest.profiles)
    if as_json:
        print_json(
            {
                "profiles": [{"name": one.name, "description": one.description} for one in profiles.values()],
                "broken": [{"name": one.name, "problem": one.problem} for one in profiles.broken],
            }
        )
        return
    made = table("Profile", "Dataset", "Description")
    for one in profiles.values():
        add_row(made, one.name, one.dataset, one.description)
    show(made)
    for broken in profiles.broken:
        complain(f"Broken: {broken.problem}")


@profile_app.command("show")
def show_profile(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]) -> None:
    """Print the YAML of a reader profile."""
    typer.echo(_file_of(name, load_settings().settings).read_text(encoding="utf-8").rstrip())


@profile_app.command("guess")
def guess(file: File, *, name: Name = None) -> None:
    """Propose a reader profile for a file, as YAML: each guess says what it rests on, and what a person must answer."""
    settings = load_settings().settings
    types = SensorTypes.load(settings.file_ingest.sensor_types)
    draft = guess_profile(
        look_at(file, file_type_of(file), ReadLimits.from_settings(settings.file_ingest)),
        file.name,
        name or name_of(file),
        types.types,
    )
    typer.echo(draft.text([_verdict(draft, file, settings)]), nl=False)


@profile_app.command("try")
def try_profile(file: File, *, profile: Profile = None, rows: Rows = 10, as_json: AsJson = False) -> None:
    """Show what of a file would be stored and what would be rejected, and why; store nothing.

    Exit code 1 when the file would be quarantined as a whole.
    """
    settings = load_settings().settings
    trial = try_file(file, _chosen(profile, settings), settings.file_ingest, rows)
    if as_json:
        print_json(trial)
    else:
        _show(trial)
    if trial.refusal:
        raise typer.Exit(1)


def name_of(file: Path) -> str:
    """Return a name for the proposal for a file: its own, without dates, numbers and what names cannot hold."""
    words = re.sub(r"[0-9]{4}[-_.]?[0-9]{2}(?:[-_.]?[0-9]{2})?", "", file.name.partition(".")[0])
    return slug(words)[:60].strip("_") or "guessed"


def _verdict(draft: Draft, file: Path, settings: Settings) -> str:
    """Read the file by the proposal, and say how that went."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "profile.yaml")
        written.write_text(draft.text(), encoding="utf-8")
        trial = try_file(file, read_profile(written), settings.file_ingest, 0)
    if trial.refusal:
        return f"{file.name} cannot be read by this proposal yet: {trial.refusal}"
    said = f"Tried on {file.name}: {trial.rows_accepted:,} of {trial.rows_read:,} readings accepted"
    return f"{said}, {trial.rows_rejected:,} rejected ({counts(trial.rules)})." if trial.rows_rejected else f"{said}."


def _chosen(name: str | None, settings: Settings) -> ReaderProfile:
    """Return a profile by its name or path.

    Raises:
        SettingsError: the file is no profile.
    """
    if name is not None and name.endswith(YAML_ENDINGS):
        return read_profile(Path(name))
    return load_profiles(settings.file_ingest.profiles).named(name or settings.file_ingest.default_profile)


def _file_of(name: str, settings: Settings) -> Path:
    from ingest_project.core.yaml_models import yaml_files  # noqa: PLC0415

    paths = [*yaml_files([SHIPPED_PROFILES]), *yaml_files(settings.file_ingest.profiles)]
    for path in reversed(paths):
        try:
            if read_profile(path).name == name:
                return path
        except SettingsError:
            continue
    known = ", ".join(sorted(load_profiles(settings.file_ingest.profiles)))
    raise typer.BadParameter(f"There is no usable reader profile {name!r}. Known: {known}.")


def _show(trial: Trial) -> None:
    show_facts(
        [
            ("File", trial.file),
            ("Reader profile", trial.profile),
            ("Rows", f"{trial.rows_read:,} read, {trial.rows_accepted:,} accepted, {trial.rows_rejected:,} rejected"),
            ("Broken rules", counts(trial.rules)),
            ("Unknown columns", ", ".join(trial.unknown_columns)),
        ]
    )
    if trial.accepted:
        made = table(*(name.replace("_", " ").capitalize() for name in trial.accepted[0]))
        for row in trial.accepted:
            add_row(made, *row.values())
        show(made, f"Accepted, the first {len(trial.accepted):,}")
    if trial.rejected:
        made = table("Line", "Reasons", "Text", numbers=["Line"])
        for rejected in trial.rejected:
            add_row(
                made, rejected.line_number, ", ".join(rejected.reasons), shortened(rejected.raw_text, MAX_SHOWN_TEXT)
            )
        show(made, f"Rejected, the first {len(trial.rejected):,}")
    if trial.refusal:
        say(f"The file would be quarantined: {trial.refusal}", style="red")
    else:
        say(f"The file would be stored: {counted(trial.rows_accepted, 'row')}.", style="green")
