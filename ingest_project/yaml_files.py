"""YAML files that users write to describe their data; what is wrong with one is said in one line, with its place.

Each kind of file (reader profiles, Eventhouse queries, sensor types) is a pydantic model in the module that uses it.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import yaml

from ingest_project.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pydantic import BaseModel, ValidationError


def yaml_files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files among these paths, and those in the folders among them by name."""
    for path in paths:
        if path.is_dir():
            yield from sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        else:
            yield path


def yaml_content(path: Path, kind: str) -> Any:  # noqa: ANN401 - a YAML file may hold anything
    """What one file holds.

    Args:
        path: of the file.
        kind: what it is, for messages, e.g. `reader profile`.

    Raises:
        SettingsError: it cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"Cannot read the {kind} {path}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def mistakes(error: ValidationError, *models: type[BaseModel]) -> str:
    """Every mistake in a file with its place; a name that nothing has is told with the nearest one of the models'."""
    return "; ".join(_mistakes(error, [name for model in models for name in model.model_fields]))


def _mistakes(error: ValidationError, names: Sequence[str]) -> Iterator[str]:
    for problem in error.errors():
        place = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            guess = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1, cutoff=0.5)
            yield f"{place} is unknown" + (f", did you mean {guess[0]}?" if guess else "")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{place}: {message}" if place else message
