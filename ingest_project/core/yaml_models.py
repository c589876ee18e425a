"""Read YAML files with which users configure the system, and validate them with pydantic models.

Each kind of file (settings, reader profiles, Eventhouse queries, sensor types) has a model in the module that uses it.
An error in a file is reported in one line, with its position. Fields of the settings also have environment variables.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, InitErrorDetails

from ingest_project.core.errors import SettingsError
from ingest_project.core.secrets import FILE, is_secret, secret_or_reference, with_references

Position = Sequence[str | int]

LIST_SHAPES = 'write a,b or ["a", "b"]'
# An IPv6 address in brackets, with or without a port, is not JSON.
BRACKETED_ADDRESSES = re.compile(r"\[[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\][^\[\]\"{}]*(,.*)?")
# Limit of one file: the parser takes minutes for more. A Kubernetes ConfigMap has the same limit.
MAX_YAML_BYTES = 1024**2
BOOLEAN_TAG = "tag:yaml.org,2002:bool"
LONGEST = {"seconds": 36_525 * 86_400, "hours": 36_525 * 24, "days": 36_525}


def yaml_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield these files, and the files in these folders sorted by name.

    Yield an unreadable folder itself, so that reading it reports the reason.
    """
    for path in paths:
        # An unreadable path is not an error here either.
        if os.path.isdir(path) and os.access(path, os.R_OK, effective_ids=True):  # noqa: PTH112
            yield from sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        else:
            yield path


# For files that programs write: libyaml takes a tenth of the time, but its messages are less detailed.
FAST_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class AsWritten(yaml.SafeLoader):
    """Loads only `true` and `false` as booleans, so that names and values such as `on` and `No` stay texts.

    A duplicate name is an error.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002 - of PyYAML
        """Return the names and values of a node; refuse a duplicate name."""
        self.flatten_mapping(node)
        found: dict[Any, Any] = {}
        for name, value in node.value:
            key = name.value if isinstance(name, yaml.ScalarNode) else self.construct_object(name, deep=True)
            if not isinstance(key, str) or key in found:
                problem = "a name occurs twice" if isinstance(key, str) else "a name is no text"
                raise yaml.constructor.ConstructorError(None, None, problem, name.start_mark)
            found[key] = self.construct_object(value, deep=deep)
        return found


AsWritten.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != BOOLEAN_TAG]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
AsWritten.add_implicit_resolver(BOOLEAN_TAG, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def yaml_content(path: Path, kind: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:  # noqa: ANN401 - a YAML file may contain anything
    """Return the content of one file.

    Args:
        path: path of the file.
        kind: kind of file for messages, e.g. `reader profile`.
        loader: YAML loader.

    Raises:
        SettingsError: the file cannot be read, or is not YAML. The message quotes no text, which may be a password.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            raise SettingsError(f"The {kind} {path} has more than {MAX_YAML_BYTES // 1024} KiB.")
        return yaml.load(content.decode(), loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise SettingsError(f"Cannot read the {kind} {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not YAML: it is not UTF-8.") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise SettingsError(f"{path} is not YAML: {_yaml_problem(error)}.") from None


def line_of(path: Path, position: Position) -> int:
    """Return the line of a position in a YAML file, or of its nearest part that exists; the first line is 1.

    Args:
        path: path of a valid YAML file.
        position: names and indexes from the top, as pydantic reports them.
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


def only_known_names(schema: dict[str, Any]) -> None:
    """Make `dg check yaml` list the known names: by itself it only says that a name was not expected."""
    schema["propertyNames"] = {"enum": [*schema["properties"]]}


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question that proposes the most similar name; empty without a similar one."""
    guess = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f", did you mean {guess[0]}?" if guess else ""


def nearest_or_known(name: str, names: Iterable[str]) -> str:
    """Return a question that proposes the most similar name, or else a sentence with all names."""
    known = list(names)
    return nearest(name, known) or f". Known: {', '.join(known) or 'none'}."


class Declared(BaseModel):
    """A part of a declaration. Every validation, even Dagster's, reports an unknown name with the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=only_known_names, defer_build=True)

    @model_validator(mode="wrap")
    @classmethod
    def _propose_names(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401 - whatever the file contains
        try:
            return validate(given)
        except ValidationError as error:
            found = [_with_proposal(one, cls.model_fields) for one in error.errors(include_url=False)]
            raise ValidationError.from_exception_data(error.title, found) from None


class UnknownNameError(ValueError):
    """A name is unknown; the message proposes the nearest one."""


def _with_proposal(problem: ErrorDetails, names: Iterable[str]) -> InitErrorDetails:
    """Return a mistake with a proposal: the nearest known name or value."""
    kind, context = problem["type"], problem.get("ctx", {})
    # Dagster recreates the error, and supports only pydantic's own types.
    if kind == "extra_forbidden":
        unknown = UnknownNameError("is unknown" + nearest(str(problem["loc"][-1]), names))
        kind, context = "value_error", {"error": unknown}
    elif kind == "literal_error":
        values = re.findall("'([^']*)'", context["expected"])
        kind, context = "value_error", {"error": ValueError(problem["msg"] + nearest(str(problem["input"]), values))}
    return {"type": kind, "loc": problem["loc"], "input": problem["input"], "ctx": context}


# Descriptions of YAML values, instead of the names of Python's types.
SHAPES = dict.fromkeys(("tuple_type", "list_type"), "write a list, like [a, b]")
SHAPES |= dict.fromkeys(
    ("model_type", "model_attributes_type", "dict_type"), "write names and values, like {name: value}"
)
SHAPES |= dict.fromkeys(("bool_parsing", "bool_type"), "write true or false")


class ContradictionsError(ValueError):
    """The parts of a declaration contradict each other.

    Args:
        problems: the problems; one with a position begins with it, as in `key.columns: there is no column x`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = [(_place_in(problem), problem) for problem in problems]


def _place_in(problem: str) -> Position:
    where, colon, _ = problem.partition(": ")
    return tuple(where.split(".")) if colon and re.fullmatch(r"[a-z_.]+", where) else ()


def within(field: str, error: ValidationError) -> ValidationError:
    """Return the mistakes of a part as mistakes in a field of its parent."""
    lines = [_with_proposal(one, ()) for one in error.errors(include_url=False)]
    for line in lines:
        line["loc"] = (field, *line.get("loc", ()))
    return ValidationError.from_exception_data(error.title, lines)


def mistakes(error: ValidationError) -> str:
    """Describe every mistake in a file with its position."""
    return "; ".join(text for _, text in _mistakes(error))


def mistakes_in(path: Path, kind: str, error: ValidationError, within: Position = ()) -> str:
    """Describe every mistake in a file with its line; with several mistakes, one per line of text.

    Args:
        path: path of a valid YAML file.
        kind: expected kind of content, e.g. `a dataset`.
        error: validation error of the content.
        within: position of the content in the file.
    """
    located = _located(error)
    found = sorted((line_of(path, [*within, *position]), text, missing) for position, text, missing in located)
    # A missing field has no line.
    first = min(line for line, _, missing in found if not missing or all(each[2] for each in found))
    if len(found) == 1:
        return f"{path}, line {first}: this is not {kind}: {found[0][1]}"
    return "\n  ".join(
        [f"{path}, line {first}: this is not {kind}:", *(f"line {line}: {text}" for line, text, _ in found)]
    )


def _located(error: ValidationError) -> Iterator[tuple[Position, str, bool]]:
    """Yield position and description of each mistake, and True if something is missing there."""
    for problem, text in _mistakes(error):
        cause = problem.get("ctx", {}).get("error")
        for inner, what in getattr(cause, "problems", None) or [((), "")]:
            position = (*problem["loc"], *inner)
            where = ".".join(map(str, position))
            shown = (what if not where or what.startswith(f"{where}: ") else f"{where}: {what}") if what else text
            yield position, shown, problem["type"] == "missing"


def _mistakes(error: ValidationError) -> Iterator[tuple[ErrorDetails, str]]:
    for problem in error.errors():
        position = ".".join(str(step) for step in problem["loc"])
        if isinstance(cause := problem.get("ctx", {}).get("error"), UnknownNameError):
            yield problem, f"{position} {cause}"
            continue
        message = problem["msg"].removeprefix("Value error, ")
        message = SHAPES.get(problem["type"], message)
        if problem["type"] == "string_pattern_mismatch" and problem["ctx"]["pattern"].startswith("^[a-z"):
            message = (
                f"{str(problem['input'])[:80]!r} is no name: write it in lower case with underscores, like air_temp"
            )
        yield problem, f"{position}: {message}" if position else message


def _yaml_problem(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        problem = re.sub(r" '(?!<)[^']*'", "", error.problem or "it cannot be read")
        return f"{problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    if isinstance(error, yaml.YAMLError):
        return "it contains characters that YAML does not allow"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it contains a date that does not exist"


@dataclass(frozen=True)
class Env:
    """The environment variables that set a field; the first one that is set wins."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True)
class EnvFamily:
    """Variables that together set a mapping: in `ONELAKE_*_PATH`, ONELAKE_CLAIMS_PATH sets the entry `claims`."""

    prefix: str
    suffix: str

    def __str__(self) -> str:
        """Return the family as people write it: `ONELAKE_*_PATH`."""
        return f"{self.prefix}*{self.suffix}"

    def entry(self, variable: str) -> str | None:
        """Return the entry that a variable sets, in lower case; None if the variable does not belong to the family."""
        if not (variable.startswith(self.prefix) and variable.endswith(self.suffix)):
            return None
        return variable[len(self.prefix) : len(variable) - len(self.suffix)].lower() or None


def as_list(value: object) -> object:
    """Parse a list from `a,b`, one item per line, or JSON, the only form whose items may contain commas and quotes."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("{") or (text.startswith("[") and not BRACKETED_ADDRESSES.fullmatch(text)):
        parsed = _parsed(text, LIST_SHAPES)
        if not isinstance(parsed, list):
            raise ValueError(f"it is not a list; {LIST_SHAPES}")
        return parsed
    parts = [part.strip() for part in re.split(r"[,\n]", text) if part.strip()]
    if any(set(part) & set("\"'") for part in parts):
        raise ValueError(f"quotes would become part of the value; {LIST_SHAPES}")
    return parts


def _read_json(value: object) -> object:
    return _parsed(value) if isinstance(value, str) else value


def _parsed(text: str, remedy: str = 'write {"name": ...}') -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        # The error does not quote the text, which may contain a password.
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"it is not JSON{where}; {remedy}") from None


def _bounded_duration(value: object, info: ValidationInfo) -> object:
    """Reject durations that Python cannot add to today's date."""
    unit = (info.field_name or "").rpartition("_")[2]
    if isinstance(value, int | float) and unit in LONGEST and value > LONGEST[unit]:
        raise ValueError(f"it is at most {LONGEST[unit]:,} {unit}, a hundred years")
    return value


# Suffix of a field, or in capitals of an environment variable, that names the file with a secret.
FILE_ENDING = "_file"


class Section(BaseModel):
    """A section of the settings: unknown names are errors, values are immutable, the docstring describes each field.

    A secret may be a reference to its location, and `password_file` names the file that contains `password`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _read_files(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        read = dict(values)
        for name in (name for name, field in cls.model_fields.items() if is_secret(field.annotation)):
            if path := read.pop(f"{name}{FILE_ENDING}", None):
                if read.get(name):
                    raise ValueError(f"{name} and {name}{FILE_ENDING} are both set; set one of them")
                read[name] = f"{FILE}://{Path(str(path)).absolute()}"
        return read

    @field_validator("*", mode="before")
    @classmethod
    def _read_references(cls, value: object, info: ValidationInfo) -> object:
        return secret_or_reference(value) if is_secret(cls.model_fields[info.field_name or ""].annotation) else value

    @field_validator("*", mode="after")
    @classmethod
    def _read_references_inside(cls, value: object) -> object:
        return with_references(value) if isinstance(value, list | dict) else value

    _bounded_duration = field_validator("*", mode="after")(_bounded_duration)


CommaList = Annotated[list[str], BeforeValidator(as_list)]


PathList = Annotated[list[Path], BeforeValidator(as_list)]


SecondsList = Annotated[list[float], BeforeValidator(as_list)]


# Marks a structured field: nested in config.yaml, JSON in an environment variable.
AsJson = BeforeValidator(_read_json)


@cache
def leaves(model: type[BaseModel], prefix: str = "") -> tuple[tuple[str, FieldInfo], ...]:
    """Return every field with a value, with its path in the tree, e.g. `kafka.group_id`."""
    found: list[tuple[str, FieldInfo]] = []
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += leaves(field.annotation, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", field))
    return tuple(found)


def variables_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the environment variables that set a field; the first one that is set wins."""
    return next((mark.names for mark in field.metadata if isinstance(mark, Env)), ())


def family_of(field: FieldInfo) -> EnvFamily | None:
    """Return the family of variables that sets a field's entries, if it has one."""
    return next((mark for mark in field.metadata if isinstance(mark, EnvFamily)), None)


@cache
def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Return the descriptions in a section's docstring, by field name."""
    arguments = (inspect.getdoc(section) or "").partition("\nArgs:\n")[2]
    found = re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()).removesuffix(".") for name, text in found}
