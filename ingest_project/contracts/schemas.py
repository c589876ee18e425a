"""pandera schemas of declared columns, and the columns of a user's own pandera model, which may take their place.

Loads pandera, which takes half a second: import it where a schema is about to be made.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TypeGuard

import pandera.polars as pandera
import polars as pl
from pandera.errors import SchemaInitError
from pydantic import ValidationError

from ingest_project.contracts.columns import TYPES, Column, whole_text
from ingest_project.core.errors import SettingsError
from ingest_project.core.yaml_models import mistakes, nearest, nearest_or_known

SUPPORTED = (
    'str, int, float, bool, datetime.date, Annotated[pl.Datetime, "us", "UTC"] and Annotated[pl.Decimal, digits, '
    'decimal places]; JSON is str with metadata={"type": "json"}'
)


def schema_of(columns: Sequence[Column], model: str | None = None) -> pandera.DataFrameSchema:
    """Return the pandera schema of declared columns, whose names are distinct, or that of a user's model."""
    if model is not None:
        return model_named(model).to_schema()
    return pandera.DataFrameSchema(
        {
            column.name: pandera.Column(
                column.polars_type,
                nullable=not column.required,
                checks=_checks(column),
                description=column.description or None,
                metadata={"type": column.kind, "unit": column.unit},
            )
            for column in columns
        }
    )


def _checks(column: Column) -> list[pandera.Check]:
    checks: list[pandera.Check] = []
    if column.min is not None:
        checks.append(pandera.Check.ge(column.value_of(column.min)))
    if column.max is not None:
        checks.append(pandera.Check.le(column.value_of(column.max)))
    if column.pattern is not None:
        checks.append(pandera.Check.str_matches(whole_text(column.pattern)))
    if column.allowed is not None:
        checks.append(pandera.Check.isin([column.value_of(value) for value in column.allowed]))
    return checks


def model_named(name: str) -> type[pandera.DataFrameModel]:
    """Import a user's pandera model.

    Args:
        name: of the class, as `package.module:Class`.

    Raises:
        ValueError: there is no such class.
    """
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        guess = nearest(module.rpartition(".")[2], _modules_beside(module))
        raise ValueError(f"model: {name} cannot be imported, write package.module:Class: {error}{guess}") from None
    found = getattr(imported, attribute, None)
    if found is None:
        models = [one for one, value in vars(imported).items() if _is_model(value)]
        guess = nearest_or_known(attribute, models)
        raise ValueError(f"model: {name} cannot be imported, write package.module:Class{guess}")
    if not _is_model(found):
        raise ValueError(f"model: {name} is no pandera Polars DataFrameModel")
    return found


def _is_model(value: object) -> TypeGuard[type[pandera.DataFrameModel]]:
    is_class = isinstance(value, type) and issubclass(value, pandera.DataFrameModel)
    return is_class and value is not pandera.DataFrameModel


def _modules_beside(module: str) -> list[str]:
    """Return the names of the modules of the same package; of all packages for a module in none."""
    try:
        path = importlib.import_module(module.rpartition(".")[0]).__path__ if "." in module else None
    except (ImportError, ValueError, AttributeError):
        return []
    return [one.name for one in pkgutil.iter_modules(path)]


def columns_of(model: type[pandera.DataFrameModel]) -> tuple[Column, ...]:
    """Return the columns of a user's pandera model: names, types, nullability, units and descriptions.

    The rules stay in the model, which pandera applies. A column that may be absent, or has a default, is not required.

    Raises:
        SettingsError: the model cannot be built, or has a column of another type; names it and the supported types.
    """
    try:
        schema = model.to_schema()
    except (SchemaInitError, TypeError, ValueError) as error:
        raise SettingsError(f"{model.__name__} is no usable pandera Polars model: {error}") from error
    if not schema.columns:
        raise SettingsError(f"{model.__name__} has no columns.")
    return tuple(_column_of(model.__name__, name, column) for name, column in schema.columns.items())


def _column_of(model: str, name: str, column: pandera.Column) -> Column:
    metadata = column.metadata or {}
    if column.regex:
        raise SettingsError(f"{model}.{name} is a pattern of names; declare each column by its name.")
    try:
        return Column(
            name=name,
            type=_type_of(column.dtype and column.dtype.type, metadata.get("type")),
            required=column.required and not column.nullable and column.default is None,
            unit=metadata.get("unit"),
            description=column.description or "",
        )
    except ValidationError as error:
        raise SettingsError(f"{model}.{name}: {mistakes(error)}") from None
    except ValueError as error:
        raise SettingsError(f"{model}.{name}: {error}") from None


def _type_of(dtype: pl.DataType | None, declared: str | None) -> str:
    if isinstance(dtype, pl.Decimal) and dtype.precision is not None:
        return f"decimal({dtype.precision},{dtype.scale})"
    if dtype == pl.String and declared == "json":
        return "json"
    found = next((name for name, known in TYPES.items() if dtype is not None and known == dtype), None)
    if found is None:
        remedy = "; a time needs its zone and unit" if dtype == pl.Datetime else ""
        raise ValueError(f"{dtype} is not supported{remedy}. Supported are {SUPPORTED}.")
    return found
