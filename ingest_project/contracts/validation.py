"""Validate rows with pandera, and turn each failed check into a reason on the rows that failed it.

A schema is made of declared columns, or is a pandera model of the user's own. Import this module where one is about to
be made: pandera takes half a second.

pandera reports the outcome of a check as one column of booleans; those are the masks. Its own lists of failure cases
are kept short: they would cost a Python object per bad row. The rows of many files are validated in one call, because
a call costs milliseconds whatever its size. So that a row's outcome never depends on which other files are in the
batch, uniqueness and the checks that a user wrote are evaluated file by file.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import pandera.polars as pa
import polars as pl
from pandera.api.function_dispatch import Dispatcher
from pandera.api.polars.types import PolarsData
from pandera.backends.polars.checks import PolarsCheckBackend
from pandera.config import ValidationDepth, config_context
from pandera.constants import CHECK_OUTPUT_KEY
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors, SchemaInitError
from pydantic import ValidationError

from ingest_project.contracts.columns import CLOCK_FAULTS, FAULT_OF, NUMBER_FAULTS, TEXT_OF, TYPES, Column, whole_text
from ingest_project.core.errors import CheckFailedError, SettingsError
from ingest_project.core.yaml_models import mistakes, nearest, nearest_or_known

# Column that tells the files of a batch apart; without it all rows are of one file.
FILE = "file_index"
POSITION = "row:position"
# Name of the check that combines all rules: while all rows are good, many rules cost no more than one.
ALL_RULES = "rules:all"
OUTCOMES = {POSITION: pl.get_index_type(), CHECK_OUTPUT_KEY: pl.Boolean}
# Endings of the reasons of pandera's own checks; they judge each value on its own.
BUILT_IN = (
    dict.fromkeys(("greater_than", "greater_than_or_equal_to", "less_than", "less_than_or_equal_to"), "out_of_range")
    | dict.fromkeys(("in_range",), "out_of_range")
    | dict.fromkeys(("isin", "notin", "equal_to", "not_equal_to"), "not_allowed")
    | dict.fromkeys(("str_matches", "str_contains", "str_startswith", "str_endswith"), "pattern")
    | {"str_length": "length"}
)
# Endings of the reasons of values that could not be read as the type of their column.
UNREADABLE = {
    pl.Int64: "not_an_integer",
    pl.Float64: "not_a_number",
    pl.Decimal: "not_a_decimal",
    pl.Boolean: "not_a_boolean",
    pl.Date: "not_a_date",
    pl.Datetime: "not_a_timestamp",
    pl.String: "not_text",
}


@dataclass(frozen=True)
class ValidatedRows:
    """Accepted and rejected rows, in their original order.

    Args:
        accepted: the columns of the input, without the texts of unreadable values.
        rejected: the columns of the input that the schema does not name, such as `file_index` and `line_number`, and
            `reasons`, the sorted names of all that is wrong with the row.
    """

    accepted: pl.DataFrame
    rejected: pl.DataFrame


def validate(rows: pl.DataFrame, schema: pa.DataFrameSchema) -> ValidatedRows:
    """Separate the rows that fulfil a schema from those that do not.

    Reasons are `<column>_missing`, `_out_of_range`, `_not_allowed`, `_pattern`, `_length`, `_duplicate` and, of values
    that could not be read, `_not_a_number` and the like, `_too_many_decimals`, `_ambiguous_time` or `_skipped_time`;
    or the name of a user's check, with its column in front where it is about one. A check with one result for many
    rows applies to all rows of the file.

    Args:
        rows: the columns of the schema in their types, and others. A column `TEXT_OF(name)` holds the texts that
            could not be read as the type of that column, null elsewhere; `FAULT_OF(name)` may say why.
        schema: made of declared columns or of a user's model. Its options about further columns, their order and the
            removal of rows do not apply: columns are matched when a file is read, and no row is dropped.

    Raises:
        CheckFailedError: a check raised an error, or returned something else than booleans.
        polars.exceptions.SchemaError: a column is of another type: a fault of the caller.
    """
    types = rows.schema
    if wrong := [name for name, one in schema.columns.items() if types.get(name, one.dtype.type) != one.dtype.type]:
        raise pl.exceptions.SchemaError(f"Not of the types of the schema: {', '.join(wrong)}")
    rules = _rules(schema, types)
    checked, broken = _outcome(rows, _reporting_schema(schema, rows, rules))
    if ALL_RULES in broken:
        broken |= _rule_by_rule(checked, broken.pop(ALL_RULES), rules)
    texts = {made(name) for name in schema.columns for made in (TEXT_OF, FAULT_OF)}
    kept = [name for name in rows.columns if name not in texts]
    others = [name for name in kept if name not in schema.columns]
    if not broken:
        nothing = rows.clear().with_columns(pl.lit(None, pl.List(pl.String)).alias("reasons"))
        return ValidatedRows(checked.select(kept), nothing.select(*others, "reasons"))
    masks = pl.DataFrame([broken[name].alias(name) for name in sorted(broken)])
    is_bad = masks.select(pl.any_horizontal(pl.all())).to_series()
    reasons = masks.filter(is_bad).select(
        pl.concat_list(pl.when(pl.col(name)).then(pl.lit(name)) for name in masks.columns)
        .list.drop_nulls()
        .alias("reasons")
    )
    rejected = rows.filter(is_bad).with_columns(reasons).select(*others, "reasons")
    return ValidatedRows(checked.filter(~is_bad).select(kept), rejected)


def needs_whole_files(schema: pa.DataFrameSchema) -> bool:
    """Return True if a check of the schema may look at more than one row, so that no file can be checked in parts."""
    columns = schema.columns.values()
    checks = [check for column in columns for check in column.checks]
    return (
        bool(schema.unique)
        or any(column.unique for column in columns)
        or not all(_is_about_values(check) for check in checks)
        or not all(_is_row_check(check) for check in schema.checks)
    )


@dataclass(frozen=True)
class Holds:
    """A rule about each row as a check function.

    Args:
        rule: true for a row that fulfils it; null counts as fulfilled.
    """

    rule: pl.Expr

    def __call__(self, data: PolarsData) -> pl.LazyFrame:
        """Evaluate the rule."""
        return data.lazyframe.select(self.rule)


def row_check(name: str, rule: pl.Expr) -> pa.Check:
    """Return a frame-level check named by its reason that is evaluated for all files at once, see `Holds`."""
    return pa.Check(Holds(rule), name=name, n_failure_cases=1)


def _outcome(rows: pl.DataFrame, schema: pa.DataFrameSchema) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    """Return the rows with their defaults, and by reason a mask of the rows it applies to."""
    # An environment variable of pandera's must not turn the validation off.
    with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
        try:
            return schema.validate(rows, lazy=True), {}
        except SchemaErrors as errors:
            broken: dict[str, pl.Series] = {}
            for error in errors.schema_errors:
                name, mask = _reason(error), _mask(error, errors)
                broken[name] = broken[name] | mask if name in broken else mask
            return errors.data, broken


def _mask(error: SchemaError, errors: SchemaErrors) -> pl.Series:
    if error.reason_code is SchemaErrorReason.CHECK_ERROR:
        raise CheckFailedError(_reason(error), str(error.failure_cases)) from errors
    if error.check_output is None:
        raise errors
    failed: pl.Series = ~error.check_output[CHECK_OUTPUT_KEY]
    return failed


def _reason(error: SchemaError) -> str:
    column = error.schema.name if isinstance(error.schema, pa.Column) else None
    return reason_of(error.check, column, error.check_index or 0)


def reason_of(check: pa.Check | str, column: str | None, index: int) -> str:
    """Return the reason for which rows fail a check, in lower case with underscores."""
    name = check if isinstance(check, str) else str(check.name)
    if isinstance(check, pa.Check) and _is_row_check(check):
        return name
    ending = BUILT_IN.get(name) or re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if ending in ("", "lambda", "partial"):
        ending = f"check_{index + 1}"
    return ending if column is None or ending.startswith(f"{column}_") else f"{column}_{ending}"


def _rules(schema: pa.DataFrameSchema, present: Container[str]) -> list[pa.Check]:
    """Return the checks that judge each row on its own, for rows with these columns; see `row_check`."""
    return [*filter(_is_row_check, schema.checks), *_missing_checks(schema, present), *_fault_checks(schema, present)]


def _reporting_schema(schema: pa.DataFrameSchema, rows: pl.DataFrame, rules: Sequence[pa.Check]) -> pa.DataFrameSchema:
    """Return a copy of the schema that reports every failed check of every row, see `validate`."""
    # Shallow copies: pandera copies the columns once more.
    prepared = copy.copy(schema)
    # A column without a rule would cost it half a millisecond too.
    prepared.columns = {name: copy.copy(column) for name, column in schema.columns.items() if _has_rules(column)}
    prepared.strict = prepared.ordered = prepared.drop_invalid_rows = prepared.add_missing_columns = False
    prepared.coerce, prepared.unique = False, None
    present = rows.schema
    names = [name for name in schema.columns if name in present]
    for name, column in prepared.columns.items():
        column.coerce = column.unique = column.drop_invalid_rows = False
        column.nullable = True
        column.checks = [
            _brief(check) if _is_about_values(check) else _by_file(check, name, names) for check in column.checks
        ]
    prepared.checks = [_by_file(check, None, names) for check in schema.checks if not _is_row_check(check)]
    prepared.checks += map(_distinct, _unique_keys(schema))
    if rules:
        together = pl.all_horizontal(_function(check).rule.fill_null(value=True) for check in rules)
        prepared.checks.append(row_check(ALL_RULES, together))
    return prepared


def _rule_by_rule(rows: pl.DataFrame, suspects: pl.Series, rules: Sequence[pa.Check]) -> dict[str, pl.Series]:
    """Return the masks of each rule, evaluated for the few rows that break some rule."""
    bad = rows.filter(suspects)
    # One query for all rules: each check costs pandera half a millisecond, for the same expression.
    masks = bad.with_columns(
        (~_function(check).rule).fill_null(value=False).alias(str(number)) for number, check in enumerate(rules)
    ).select(map(str, range(len(rules))))
    broken: dict[str, pl.Series] = {}
    nowhere = pl.Series([False]).new_from_index(0, rows.height)
    for check, mask in zip(rules, masks, strict=True):
        if mask.any():
            found = nowhere.clone().scatter(suspects.arg_true(), mask)
            name = str(check.name)
            broken[name] = broken[name] | found if name in broken else found
    return broken


def _function(check: pa.Check) -> Any:  # noqa: ANN401 - a function, or a `Holds`
    return check._check_fn  # noqa: SLF001 - pandera has no public name for it


def _is_row_check(check: pa.Check) -> bool:
    return isinstance(_function(check), Holds)


def _is_about_values(check: pa.Check) -> bool:
    """Return True for a check of a column that judges each value on its own."""
    function = _function(check)
    return check.element_wise or (isinstance(function, Dispatcher) and function.__name__ in BUILT_IN)


def _has_rules(column: pa.Column) -> bool:
    return bool(column.checks or column.parsers) or column.default is not None


def _brief(check: pa.Check) -> pa.Check:
    check = copy.copy(check)
    check.n_failure_cases = 1
    return check


def _missing_checks(schema: pa.DataFrameSchema, present: Container[str]) -> Iterator[pa.Check]:
    for name, column in schema.columns.items():
        if column.required and not column.nullable:
            is_given = pl.col(name).is_not_null()
            if TEXT_OF(name) in present:
                # A value that cannot be read is not missing.
                is_given |= pl.col(TEXT_OF(name)).is_not_null()
            yield row_check(f"{name}_missing", is_given)


def _fault_checks(schema: pa.DataFrameSchema, present: Container[str]) -> Iterator[pa.Check]:
    for name, column in schema.columns.items():
        if TEXT_OF(name) in present:
            is_json = (column.metadata or {}).get("type") == "json"
            ending = "not_json" if is_json else UNREADABLE[column.dtype.type.base_type()]
            readable = pl.col(TEXT_OF(name)).is_null()
            if FAULT_OF(name) in present:
                fault = pl.col(FAULT_OF(name))
                readable |= fault.is_not_null()
                faults = CLOCK_FAULTS if column.dtype.type.base_type() is pl.Datetime else NUMBER_FAULTS
                yield from (row_check(f"{name}_{each}", fault != each) for each in faults)
            yield row_check(f"{name}_{ending}", readable)


def _unique_keys(schema: pa.DataFrameSchema) -> Iterator[Sequence[str]]:
    yield from ([name] for name, column in schema.columns.items() if column.unique)
    unique = schema.unique or []
    yield from [unique] if all(isinstance(name, str) for name in unique) and unique else unique


def _distinct(names: Sequence[str]) -> pa.Check:
    """Return the check that no two rows of a file have the same values; as in SQL, a missing value equals no other."""

    def distinct(data: PolarsData) -> pl.LazyFrame:
        keys = [name for name in (FILE, *names) if name in data.lazyframe.collect_schema()]
        values = data.lazyframe.select(keys).collect()
        partial = values.select(pl.any_horizontal(pl.col(names).is_null())).to_series()
        return (~values.is_duplicated() | partial).to_frame().lazy()

    return pa.Check(distinct, name=f"{'_'.join(names)}_duplicate", n_failure_cases=1)


def _by_file(check: pa.Check, column: str | None, visible: Sequence[str]) -> pa.Check:
    """Return a check that applies a user's check to each file on its own, and to declared columns only."""
    apply = PolarsCheckBackend(check).apply

    def by_file(data: PolarsData) -> pl.LazyFrame:
        rows = data.lazyframe.collect().with_row_index(POSITION)
        files = rows.partition_by(FILE, maintain_order=True) if FILE in rows.columns else [rows]
        files = [file for file in files if file.height]
        found = [apply(PolarsData(file.select(visible).lazy(), column or "*")) for file in files]
        # Collected together: Polars evaluates them in parallel.
        frames = pl.collect_all(
            pl.LazyFrame({CHECK_OUTPUT_KEY: [each]}) if isinstance(each, bool) else each for each in found
        )
        outcomes = [_of_each_row(each, file) for each, file in zip(frames, files, strict=True)]
        return pl.concat([pl.DataFrame(schema=OUTCOMES), *outcomes]).sort(POSITION).select(CHECK_OUTPUT_KEY).lazy()

    return pa.Check(
        by_file, name=check.name, n_failure_cases=1, ignore_na=check.ignore_na, raise_warning=check.raise_warning
    )


def _of_each_row(found: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    outcomes = found[CHECK_OUTPUT_KEY]
    if outcomes.dtype != pl.Boolean:
        raise TypeError(f"results of type {outcomes.dtype}")
    if len(outcomes) == 1:
        outcomes = outcomes.new_from_index(0, rows.height)
    if len(outcomes) != rows.height:
        raise ValueError(f"{len(outcomes)} results for {rows.height} rows")
    return pl.DataFrame([rows[POSITION], outcomes])


SUPPORTED = (
    'str, int, float, bool, datetime.date, Annotated[pl.Datetime, "us", "UTC"] and Annotated[pl.Decimal, digits, '
    'decimal places]; JSON is str with metadata={"type": "json"}'
)


def schema_of(columns: Sequence[Column], model: str | None = None) -> pa.DataFrameSchema:
    """Return the pandera schema of declared columns, whose names are distinct, or that of a user's model."""
    if model is not None:
        return model_named(model).to_schema()
    fields = {
        column.name: pa.Column(
            column.polars_type,
            nullable=not column.required,
            description=column.description or None,
            metadata={"type": column.kind, "unit": column.unit},
        )
        for column in columns
    }
    return pa.DataFrameSchema(fields, checks=[row_check(*one) for column in columns for one in _declared_rules(column)])


def _declared_rules(column: Column) -> Iterator[tuple[str, pl.Expr]]:
    """Yield the reasons for which a value is refused, and the rules: a check of pandera's own for each takes longer."""
    value = pl.col(column.name)
    if column.min is not None:
        yield f"{column.name}_out_of_range", value >= column.value_of(column.min)
    if column.max is not None:
        yield f"{column.name}_out_of_range", value <= column.value_of(column.max)
    if column.pattern is not None:
        yield f"{column.name}_pattern", value.str.contains(whole_text(column.pattern))
    if column.allowed is not None:
        yield f"{column.name}_not_allowed", value.is_in([column.value_of(one) for one in column.allowed])


def model_named(name: str) -> type[pa.DataFrameModel]:
    """Import a user's pandera model.

    Args:
        name: name of the class, as `package.module:Class`.

    Raises:
        ValueError: there is no such class.
    """
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        guess = nearest(module.rpartition(".")[2], _sibling_modules(module))
        raise ValueError(f"model: {name} cannot be imported, write package.module:Class: {error}{guess}") from None
    found = getattr(imported, attribute, None)
    if found is None:
        models = [one for one, value in vars(imported).items() if _is_model(value)]
        guess = nearest_or_known(attribute, models)
        raise ValueError(f"model: {name} cannot be imported, write package.module:Class{guess}")
    if not _is_model(found):
        raise ValueError(f"model: {name} is no pandera Polars DataFrameModel")
    return found


def _is_model(value: object) -> TypeGuard[type[pa.DataFrameModel]]:
    is_class = isinstance(value, type) and issubclass(value, pa.DataFrameModel)
    return is_class and value is not pa.DataFrameModel


def _sibling_modules(module: str) -> list[str]:
    """Return the names of the modules of the same package; of all packages for a module in none."""
    try:
        path = importlib.import_module(module.rpartition(".")[0]).__path__ if "." in module else None
    except (ImportError, ValueError, AttributeError):
        return []
    return [one.name for one in pkgutil.iter_modules(path)]


def columns_of(model: type[pa.DataFrameModel]) -> tuple[Column, ...]:
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


def _column_of(model: str, name: str, column: pa.Column) -> Column:
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
