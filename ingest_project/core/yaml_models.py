"""YAML files that users write to configure the system; an error in one is reported in one line, with its position.

Each kind of file (settings, reader profiles, Eventhouse queries, sensor types) is a pydantic model in the module that
uses it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ingest_project.core.errors import SettingsError


def yaml_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the files among these paths, and those in the folders among them in the order of their names."""
    for path in paths:
        if path.is_dir():
            yield from sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        else:
            yield path


def yaml_content(path: Path, kind: str) -> Any:  # noqa: ANN401 - a YAML file may hold anything
    """Return the content of one file.

    Args:
        path: of the file.
        kind: for messages, e.g. `reader profile`.

    Raises:
        SettingsError: it cannot be read, or is not YAML. Its text is not quoted: it may hold a password.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"Cannot read the {kind} {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not YAML: it is not UTF-8.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SettingsError(f"{path} is not YAML: {_yaml_problem(error)}.") from None


def line_of(path: Path, position: Sequence[str | int]) -> int:
    """Return the line of a position in a YAML file, or of its nearest part that exists; the first line is 1.

    Args:
        path: of a file that is YAML.
        position: names and indexes from the top, as pydantic gives them.
    """
    node = yaml.compose(path.read_text(encoding="utf-8"))
    if node is None:
        return 1
    line = node.start_mark.line
    for step in position:
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
    """Describe every mistake in a file with its position; an unknown name with the nearest one of the models."""
    return "; ".join(_mistakes(error, [name for model in models for name in model.model_fields]))


def _mistakes(error: ValidationError, names: Sequence[str]) -> Iterator[str]:
    for problem in error.errors():
        position = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            guess = difflib.get_close_matches(str(problem["loc"][-1]), names, n=1, cutoff=0.5)
            yield f"{position} is unknown" + (f", did you mean {guess[0]}?" if guess else "")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            yield f"{position}: {message}" if position else message


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        problem = re.sub(r" '(?!<)[^']*'", "", error.problem or "it cannot be read")
        return f"{problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    if isinstance(error, yaml.YAMLError):
        return "it holds characters that YAML does not allow"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it holds a date that does not exist"
