"""Declared datasets: those of the settings' folder by name, the broken ones, and the dataset of a file.

A declaration is a `defs.yaml` in a folder of the setting INGEST_DECLARATIONS, of the component
`ingest_project.FileDataset`; its folder names the dataset. A broken one disables only itself.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ingest_project.contracts.files import SENSOR_READINGS, FileEvent
from ingest_project.core.console import counted
from ingest_project.core.errors import FileRejectedError, SettingsError, UnreadableMessageError
from ingest_project.core.logging import get_logger
from ingest_project.core.settings import Settings, load_settings
from ingest_project.core.yaml_models import AsWritten, line_of, mistakes_in, nearest, nearest_or_known, yaml_content
from ingest_project.readers.declaration import DatasetDeclaration, Measures, StoredIn
from ingest_project.readers.profiles import Profiles, load_profiles

logger = get_logger(__name__)

Declaration = TypeVar("Declaration", bound=BaseModel)

COMPONENT = "ingest_project.FileDataset"
COMPONENTS = (COMPONENT, "ingest_project.TopicStream", "ingest_project.Maintenance")
DECLARATION_FILES = ("defs.yaml", "defs.yml")
# Top-level keys of every Dagster component.
TOP_NAMES = ("type", "attributes", "template_vars_module", "requirements", "post_processing")


@dataclass(frozen=True)
class BrokenDeclaration:
    """A declaration that cannot be used.

    Args:
        name: of its dataset or stream.
        problem: file, line and mistake.
        jobs, paths: whose files belong to it, as far as they can be read: these files must not become another's.
    """

    name: str
    problem: str
    jobs: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


class Declarations(Mapping[str, DatasetDeclaration]):
    """Usable datasets by name, the shipped one among them, and the broken ones."""

    def __init__(self, usable: Sequence[DatasetDeclaration] = (), broken: Sequence[BrokenDeclaration] = ()) -> None:
        self.broken = tuple(broken)
        self._usable = {SENSOR_READINGS: SHIPPED} | {declaration.name: declaration for declaration in usable}
        candidates: Sequence[DatasetDeclaration | BrokenDeclaration] = (*self._usable.values(), *self.broken)
        # Declarations that claim files by job or path: every listed file is compared with each of them.
        self._claiming = [one for one in candidates if one.jobs or one.paths]

    def __getitem__(self, name: str) -> DatasetDeclaration:
        return self._usable[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._usable)

    def __len__(self) -> int:
        return len(self._usable)

    @property
    def declared(self) -> tuple[DatasetDeclaration, ...]:
        """All but the shipped one."""
        return tuple(one for name, one in self._usable.items() if name != SENSOR_READINGS)

    def dataset_of(self, metadata: Mapping[str, Any], job_id: str | None, file_path: str) -> DatasetDeclaration:
        """Return the dataset that a file belongs to: the one its metadata names, or whose job or path it has.

        Raises:
            UnreadableMessageError: the metadata names no dataset that can be used, or the file belongs to a broken one.
        """
        name = metadata.get("dataset")
        if name is None:
            claiming = self._claiming
            belongs = (one.name for one in claiming if _belongs(job_id or "", file_path, one.jobs, one.paths))
            name = next(belongs, SENSOR_READINGS)
        if name in self._usable:
            return self._usable[name]
        problems = [one.problem for one in self.broken if one.name == name]
        if problems:
            raise UnreadableMessageError(f"The dataset {name} cannot be used: {problems[0]}")
        raise UnreadableMessageError(f"There is no dataset {name!r}{nearest_or_known(str(name), self)}")

    def assignment(self, metadata: Mapping[str, Any], job_id: str, default_profile: str) -> object:
        """Return the facts that, besides paths, determine the datasets and profiles of a job's files, as JSON.

        Args:
            metadata: of the job.
            job_id: of the job.
            default_profile: of sensor readings.
        """
        named = (metadata.get("dataset"), metadata.get("format") or default_profile)
        profiles = {name: one.profile_of(metadata, default_profile) for name, one in self._usable.items()}
        return named, [
            (one.name, profiles.get(one.name), _belongs(job_id, "", one.jobs, ()), one.paths) for one in self._claiming
        ]

    def require_accepted(self, event: FileEvent) -> DatasetDeclaration:
        """Return the dataset of a file.

        Raises:
            UnreadableMessageError: it belongs to none, or has a type that its dataset does not take.
        """
        declaration = self.dataset_of(event.metadata, event.job_id, event.file_path)
        if not declaration.accepts(event):
            belongs = "" if declaration.name == SENSOR_READINGS else f" of the dataset {declaration.name}"
            raise UnreadableMessageError(
                f"Only {', '.join(declaration.file_types)} are ingested{belongs}, not {event.kind or 'no type'!r}."
            )
        return declaration

    def require_profile(self, metadata: Mapping[str, Any], settings: Settings) -> None:
        """Check the reader profile that the metadata of a file or a job name.

        Raises:
            UnreadableMessageError: no dataset has it.
        """
        if "format" not in metadata:
            return
        name, known = str(metadata["format"]), load_profiles(settings.file_ingest.profiles)
        if not any(name in one.profiles(known) for one in self._usable.values()):
            try:
                known.named(name)
            except FileRejectedError as error:
                raise UnreadableMessageError(str(error)) from error

    def refusal_of(self, event: FileEvent) -> str:
        """Return why a file is not ingested; empty if it is."""
        try:
            self.require_accepted(event)
        except UnreadableMessageError as error:
            return str(error)
        return ""


# Sensor readings have rules of their own, in `file_ingest.sensor_readings`, and tables that the migrations create.
SHIPPED = DatasetDeclaration(
    name=SENSOR_READINGS,
    description="Readings of sensors: device, type, time, value and unit.",
    measures=Measures(columns=("value",), group_by=("device_id", "sensor_type")),
    reader="canonical",
    target=StoredIn(table="raw_sensor_data"),
)


def load_declarations(settings: Settings) -> Declarations:
    """Load the datasets that are declared in the folder of the settings; log a broken one and list it as broken.

    Args:
        settings: name the folder; one that does not exist has no declarations.
    """
    profiles: Profiles | None = None
    usable: dict[str, DatasetDeclaration] = {}
    broken: list[BrokenDeclaration] = []
    tables: dict[str, str] = {}
    for path in declaration_files(settings.declarations):
        try:
            declaration = read_declaration(path)
            if declaration is None:
                continue
            _require_free(declaration, usable, tables, path)
            if isinstance(declaration.reader, str):
                profiles = profiles or load_profiles(settings.file_ingest.profiles)
                require_profile(declaration, profiles, path)
        except SettingsError as error:
            broken.append(_broken(path, str(error)))
            continue
        usable[declaration.name] = declaration
        tables |= dict.fromkeys(_tables_of(declaration), declaration.name)
    for one in broken:
        logger.warning("dataset_broken", dataset=one.name, problem=one.problem)
    return Declarations([*usable.values()], broken)


def declaration_files(folder: Path) -> Iterator[Path]:
    """Yield the files of declarations below a folder, in the order of their paths.

    Of a folder that cannot be listed it is the path that a declaration would have: reading that says why.
    """
    unlisted: list[OSError] = []
    paths = (Path(at, name) for at, _, names in os.walk(folder, onerror=unlisted.append) for name in names)
    found = [path for path in paths if path.name in DECLARATION_FILES and path.is_file()]
    hidden = (Path(error.filename) for error in unlisted if isinstance(error, PermissionError))
    yield from sorted([*found, *(path / DECLARATION_FILES[0] for path in hidden)])


@dataclass(frozen=True)
class CheckedDeclarations(Generic[Declaration]):
    """The declarations of one kind.

    Args:
        usable: those without a problem.
        problems: of the others, each with its file and line.
        of_another_kind: number of files that declare something else.
    """

    usable: Sequence[Declaration]
    problems: list[str]
    of_another_kind: int

    def others_by(self, kind: str) -> str:
        """Return the sentence about those of another kind; empty if there are none.

        Args:
            kind: the command that checks them, e.g. `dataset`.
        """
        number = self.of_another_kind
        checked = f"of another kind: `ingest {kind} check` checks those of {kind.removesuffix('s')}s."
        return f"{counted(number, 'declaration')} {checked}" if number else ""


def check_declarations(
    paths: Sequence[Path] | None,
    read: Callable[[Path], Declaration | None],
    load: Callable[[Settings], tuple[Sequence[Declaration], Sequence[BrokenDeclaration]]],
) -> CheckedDeclarations[Declaration]:
    """Read the declarations of one kind, each once.

    Args:
        paths: files, and folders of them; by default those of the settings.
        read: reads one file; returns None if it declares something else, and raises SettingsError if it is broken.
        load: loads those of the settings, which must also fit each other: the usable ones and the broken ones.
    """
    usable: list[Declaration] = []
    problems: list[str] = []
    if not paths:
        settings = load_settings().settings
        loaded, broken = load(settings)
        usable, problems = [*loaded], [one.problem for one in broken]
        files = [*declaration_files(settings.declarations)]
    else:
        files = [*_files_of(paths)]
        for file in files:
            try:
                if (declaration := read(file)) is not None:
                    usable.append(declaration)
            except SettingsError as error:
                problems.append(str(error))
    return CheckedDeclarations(usable, problems, len(files) - len(usable) - len(problems))


def _files_of(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        # A folder without declarations is one that is expected to have some.
        yield from [*declaration_files(path)] or [path / DECLARATION_FILES[0] if path.is_dir() else path]


def read_declaration(path: Path) -> DatasetDeclaration | None:
    """Read the dataset that one file declares; None if it declares something else.

    Raises:
        SettingsError: it cannot be read, or is not a declaration; names the file, the line and what is wrong.
    """
    content = yaml_content(path, "declaration", AsWritten)
    if not isinstance(content, dict) or "type" not in content:
        raise SettingsError(f"{path}, line 1: this is no declaration: write `type: {COMPONENT}` and `attributes:`.")
    component = str(content["type"])
    if component != COMPONENT:
        if component.partition(".")[0] == "ingest_project" and component not in COMPONENTS:
            line = line_of(path, ["type"])
            raise SettingsError(f"{path}, line {line}: there is no {component}{nearest(component, COMPONENTS)}.")
        return None
    return declared(DatasetDeclaration, "a dataset", path, content)


def declared(model: type[Declaration], noun: str, path: Path, content: Mapping[str, Any]) -> Declaration:
    """Return the declaration in a file's content; its folder names it by default.

    Raises:
        SettingsError: the attributes are not those of the model; names the file, the line and what is wrong.
    """
    for name in content:
        if name not in TOP_NAMES:
            line = line_of(path, [name])
            raise SettingsError(f"{path}, line {line}: {name} is unknown{nearest_or_known(name, TOP_NAMES)}")
    attributes = content.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise SettingsError(f"{path}, line {line_of(path, ['attributes'])}: attributes must be names and values.")
    try:
        return model.model_validate({"name": path.parent.name, **attributes})
    except ValidationError as error:
        raise SettingsError(mistakes_in(path, noun, error, within=["attributes"])) from None
    except SettingsError as error:
        part = "model" if attributes.get("model") else "reader"
        raise SettingsError(f"{path}, line {line_of(path, ['attributes', part])}: {error}") from None


def _require_free(
    declaration: DatasetDeclaration, usable: Mapping[str, DatasetDeclaration], tables: Mapping[str, str], path: Path
) -> None:
    """Refuse a second dataset of the same name, or with a table of another one."""
    if declaration.name in usable:
        raise SettingsError(f"{path}, line 1: another dataset is called {declaration.name!r}.")
    for table in _tables_of(declaration):
        if table in tables:
            line = line_of(path, ["attributes", "target"])
            raise SettingsError(f"{path}, line {line}: {tables[table]} stores in {table} already.")


def require_profile(declaration: DatasetDeclaration, profiles: Profiles, path: Path) -> None:
    """Require that the reader profile that a declaration names exists and fits.

    Raises:
        SettingsError: it does not; names the file and the line.
    """
    try:
        declaration.profiles(profiles)
    except SettingsError as error:
        raise SettingsError(f"{path}, line {line_of(path, ['attributes', 'reader'])}: {error}") from None


def _tables_of(declaration: DatasetDeclaration) -> Iterator[str]:
    metrics = declaration.metrics_table
    for table in (declaration.table, metrics, metrics and f"{metrics}_merged", declaration.target.delta):
        if table is not None:
            yield table


def _broken(path: Path, problem: str) -> BrokenDeclaration:
    """Keep the readable fields of a declaration that cannot be used."""
    try:
        content = yaml_content(path, "declaration")
        attributes = dict(content["attributes"])
    except (SettingsError, KeyError, TypeError, ValueError):
        attributes = {}
    jobs, paths = (
        tuple(map(str, found)) if isinstance(found := attributes.get(name), list) else () for name in ("jobs", "paths")
    )
    return BrokenDeclaration(str(attributes.get("name") or path.parent.name), problem, jobs, paths)


def _belongs(job_id: str, file_path: str, jobs: Sequence[str], paths: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(job_id, pattern) for pattern in jobs) or any(
        fnmatch.fnmatchcase(file_path, pattern) for pattern in paths
    )
