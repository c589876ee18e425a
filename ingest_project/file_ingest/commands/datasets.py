"""`ingest dataset`: list, check and try declared datasets, and propose one for a file.

All of them work with nothing running: they read files and settings, and store nothing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer

from ingest_project.core.console import AsJson, add_row, complain, counted, print_json, show, table
from ingest_project.core.errors import SettingsError
from ingest_project.core.settings import load_settings
from ingest_project.file_ingest.commands.profiles import (
    File,
    Name,
    Paths,
    contract_of,
    excerpt_of,
    looked_at,
    name_of,
    report_check,
    try_profile,
    verdict_on,
)

dataset_app = typer.Typer(help="Declared datasets: list, check, try, and propose one for a file.", no_args_is_help=True)
dataset_app.command("try")(try_profile)


def register_dataset(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(dataset_app, name="dataset")


@dataset_app.command("guess")
def guess_a_dataset(file: File, *, name: Name = None) -> None:
    """Propose the declaration of a dataset for a file, as the content of a `defs.yaml`."""
    from ingest_project.contracts.files import type_inside  # noqa: PLC0415
    from ingest_project.file_ingest.commands.trial import type_of  # noqa: PLC0415
    from ingest_project.readers.guessing.dataset import guess_dataset  # noqa: PLC0415

    settings = load_settings().settings
    named = name or name_of(file)
    draft = guess_dataset(looked_at(file, settings), file.name, type_inside(type_of(file)), named)
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
    from ingest_project.readers.datasets import load_declarations  # noqa: PLC0415

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
    """Check the declarations of the settings, or these. Exit code 1 when one is broken."""
    from ingest_project.readers.datasets import load_declarations, read_declaration  # noqa: PLC0415

    if not paths:
        found = load_declarations(load_settings().settings)
        report_check([one.problem for one in found.broken], counted(len(found), "dataset"), as_json=as_json)
        return
    files = [path / "defs.yaml" if path.is_dir() else path for path in paths]
    problems = []
    for path in files:
        try:
            read_declaration(path)
        except SettingsError as error:
            problems.append(str(error))
    report_check(problems, counted(len(files) - len(problems), "dataset"), as_json=as_json)
