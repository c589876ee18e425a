"""`ingest profile`: list, check and try reader profiles, and propose one for a file.

All of them work with nothing running: they read files and settings, and store nothing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ingest_project.core.console import (
    AsJson,
    add_row,
    complain,
    counted,
    counts,
    print_json,
    report_check,
    say,
    shortened,
    show,
    show_facts,
    table,
)
from ingest_project.core.errors import FileRejectedError, SettingsError
from ingest_project.core.settings import Settings, load_settings
from ingest_project.core.yaml_models import yaml_files
from ingest_project.readers.target import without_empty_rescue

if TYPE_CHECKING:
    from ingest_project.file_ingest.commands.trial import Trial
    from ingest_project.file_ingest.contract import Contract
    from ingest_project.readers.guessing.proposal import Found
    from ingest_project.readers.profiles import ReaderProfile

MAX_SHOWN_TEXT = 160
MAX_NAME = 40
YAML_ENDINGS = (".yaml", ".yml")
SENSOR_READINGS = "sensor_readings"

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
    from ingest_project.file_ingest.sensor_readings import SensorTypes
    from ingest_project.readers.guessing.proposal import guess_profile
    from ingest_project.readers.profiles import read_profile

    settings = load_settings().settings
    types = SensorTypes.load(settings.file_ingest.sensor_types)
    draft = guess_profile(looked_at(file, settings), file.name, name or name_of(file), types.types)
    contract = contract_of(SENSOR_READINGS, settings)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "profile.yaml")
        written.write_text(draft.text(), encoding="utf-8")
        sample = excerpt_of(file, Path(folder))
        said = [verdict_on(sample, file, read_profile(written), contract), *_installed(sample, contract)]
    typer.echo(draft.text(said), nl=False)


@profile_app.command("try")
def try_profile(
    file: File, *, profile: Profile = None, dataset: Dataset = None, rows: Rows = 10, as_json: AsJson = False
) -> None:
    """Show what of a file would be stored and what would be rejected, and why; store nothing.

    Exit code 1 when the file would be quarantined as a whole.
    """
    from ingest_project.file_ingest.commands.trial import try_file

    settings = load_settings().settings
    contract = contract_of(dataset or SENSOR_READINGS, settings)
    trial = try_file(file, _profile_of(profile, contract, settings), contract, rows)
    if as_json:
        print_json(trial)
    else:
        _show(trial)
    if trial.refusal:
        raise typer.Exit(1)


def name_of(file: Path) -> str:
    """Return a name for the proposal for a file: its own, without dates and what names cannot hold."""
    from ingest_project.readers.guessing.names import slug

    words = slug(re.sub(r"[0-9]{4}[-_.]?[0-9]{2}(?:[-_.]?[0-9]{2})?", "", file.name.partition(".")[0]))
    return words.lstrip("0123456789_")[:MAX_NAME].strip("_") or "guessed"


def looked_at(file: Path, settings: Settings) -> Found:
    """Find the table in a file, within the limits of the settings."""
    from ingest_project.file_ingest.commands.trial import type_of
    from ingest_project.readers.guessing.proposal import look_at
    from ingest_project.readers.layout import ReadLimits

    return look_at(file, type_of(file), ReadLimits.from_settings(settings.file_ingest))


def contract_of(dataset: str, settings: Settings) -> Contract:
    """Return the contract of a dataset by its name, or of the declaration in a file."""
    from ingest_project.file_ingest.contract import SensorContract
    from ingest_project.file_ingest.declared import DeclaredContract
    from ingest_project.readers.datasets import load_declarations, read_declaration

    if dataset == SENSOR_READINGS:
        return SensorContract.from_settings(settings.file_ingest)
    if dataset.endswith(YAML_ENDINGS):
        # The folder names the dataset.
        declaration = read_declaration(Path(dataset).resolve())
        problem = f"{dataset} declares no dataset."
    else:
        known = load_declarations(settings)
        declaration = known.get(dataset)
        broken = "".join(f" {one.problem}" for one in known.broken if one.name == dataset)
        problem = f"There is no usable dataset {dataset!r}. Known: {', '.join(known)}.{broken}"
    if declaration is None:
        raise SettingsError(problem)
    return DeclaredContract.of(declaration, settings)


def _profile_of(name: str | None, contract: Contract, settings: Settings) -> ReaderProfile:
    from ingest_project.readers.profiles import read_profile

    if name is not None and name.endswith(YAML_ENDINGS):
        profile = read_profile(Path(name))
        profile.require_fits(contract.target)
        return profile
    own = settings.file_ingest.default_profile if contract.name == SENSOR_READINGS else contract.name
    try:
        return contract.profiles.named(name or own)
    except FileRejectedError as error:
        raise SettingsError(error.detail) from None


def excerpt_of(file: Path, folder: Path) -> Path:
    """Return a file, or the parts of a large text file that were looked at."""
    from ingest_project.file_ingest.commands.trial import TEXT_TYPES, type_of
    from ingest_project.readers.guessing.encoding import excerpt

    return excerpt(file, folder) if type_of(file) in TEXT_TYPES else file


def _installed(file: Path, contract: Contract) -> Iterator[str]:
    """Name the reader profiles that read a file without rejecting a row: one of them may be made for it."""
    from ingest_project.file_ingest.commands.trial import try_file

    for name, profile in contract.profiles.items():
        trial = try_file(file, profile, contract, 0)
        if trial.refusal is None and not trial.rows_rejected:
            accepted = counted(trial.rows_accepted, "row")
            yield f"The profile {name} reads it too: {accepted} accepted. See `ingest profile show {name}`."


def verdict_on(sample: Path, file: Path, profile: ReaderProfile, contract: Contract) -> str:
    """Read the sample of a file by a proposal, and say how that went."""
    from ingest_project.file_ingest.commands.trial import try_file

    trial = try_file(sample, profile, contract, 0, file.name)
    where = file.name if sample == file else f"the beginning and the end of {file.name}"
    if trial.refusal:
        return f"{file.name} cannot be read by this proposal yet: {trial.refusal}"
    said = f"Tried on {where}: {trial.rows_accepted:,} of {counted(trial.rows_read, 'row')} accepted"
    said += f", {trial.rows_rejected:,} rejected ({counts(trial.rules)})" if trial.rows_rejected else ""
    return f"{said}. {trial.drift}" if trial.drift else f"{said}."


def _plain(value: object) -> object:
    """Return a number as databases show it, without marks between thousands."""
    if isinstance(value, float):
        return f"{value:.15g}"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _show(trial: Trial) -> None:
    read = f"{trial.rows_read:,} read, {trial.rows_accepted:,} accepted, {trial.rows_rejected:,} rejected"
    show_facts(
        [
            ("File", trial.file),
            ("Dataset", trial.dataset),
            ("Reader profile", trial.profile),
            ("Layout", trial.layout),
            ("Rows", read),
            ("Broken rules", counts(trial.rules)),
            ("Remedy", " ".join(trial.remedies)),
            ("Columns", trial.drift),
        ]
    )
    if trial.accepted:
        accepted = without_empty_rescue(trial.accepted)
        made = table(*accepted[0])
        for row in accepted:
            add_row(made, *map(_plain, row.values()))
        show(made, f"The first {len(trial.accepted):,} of {trial.rows_accepted:,} accepted rows")
    if trial.rejected:
        made = table("Line", "Reasons", "Text", numbers=["Line"])
        for one in trial.rejected:
            add_row(made, str(one.line_number), ", ".join(one.reasons), shortened(one.raw_text, MAX_SHOWN_TEXT))
        show(made, f"The first {len(trial.rejected):,} of {trial.rows_rejected:,} rejected rows")
    if trial.refusal:
        say(f"The file would be quarantined: {trial.refusal}", style="red")
    else:
        say(f"The file would be stored: {counted(trial.rows_accepted, 'row')}.", style="green")
