"""YAML files that users write to describe their data; what is wrong with one is said in one line, with its place.

Each kind of file (reader profiles, Eventhouse queries, sensor types) is a pydantic model in the module that uses it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ingest_project.core.errors import SettingsError


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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: not UTF-8, or a date such as 2026-13-45.
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def line_of(path: Path, place: Sequence[str | int]) -> int:
    """The line of a YAML file on which a place in it stands, or what of it there is; the first line is 1.

    Args:
        path: of a file that is YAML.
        place: names and indexes from the top, as pydantic gives them.
    """
    node = yaml.compose(path.read_text(encoding="utf-8"))
    if node is None:
        return 1
    line = node.start_mark.line
    for step in place:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = (node.value[step], node.value[step])
        else:
            found = None
        if found is None:
            break
        line, node = found[0].start_mark.line, found[1]
    return int(line) + 1


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
