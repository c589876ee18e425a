"""Open one Parquet file in a separate process, so that a hostile file affects only this process.

Run by `parquet_reader` as a script in a confined process, see `excel_worker`. Writes all rows as an Arrow stream of
texts, row group by row group; the names of the columns and the kinds of their cells are in the metadata of its schema.
Or it writes one JSON object with the reason, as `rule`, `detail` and `limit`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from ingest_project.platform.confined import ContentRejectedError, convert_file
from ingest_project.readers.cells import BOOLEAN, DATE, NESTED, NUMBER, TEXT, duration_text, json_of, text_of

BUFFER_BYTES = 1024**2
MAX_BATCH_ROWS, MAX_BATCH_CELLS = 20_000, 200_000
DETAIL_SHOWN = 200
TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
# Kind of a column of floats: each cell is a number, exact or with more digits than a float keeps.
FLOAT = "r"
# Prefix of a cell with bytes that are not text: a character that no table stores, then PostgreSQL's notation.
NO_TEXT = "\0\\x"
OUT_OF_RANGE = f"{NO_TEXT} out of range"
NOT_FINITE = {"nan": '"NaN"', "inf": '"Infinity"', "-inf": '"-Infinity"'}


def convert(file: str, rows: str, *, paths: Sequence[str], max_columns: int) -> None:
    """Write all rows of a file.

    Raises:
        ContentRejectedError: the file has too many columns.
    """
    # Memory of Arrow's other pools is reserved ahead, and the address space is limited.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    # Arrow imports NumPy if it is installed, which takes half the time of a small file; nothing here uses it.
    sys.modules.setdefault("numpy", None)  # type: ignore[arg-type]
    import pyarrow as pa  # with the limits in force
    from pyarrow import parquet

    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    # INT96 reaches beyond the nanoseconds of 64 bits, which end in 2262: Spark and Hive write it, 9999 for "no end".
    options = {"pre_buffer": False, "buffer_size": BUFFER_BYTES, "coerce_int96_timestamp_unit": "us"}
    with parquet.ParquetFile(file, **options) as opened:
        schema = opened.schema_arrow
        if len(schema) > max_columns:
            detail = f"The file has {len(schema)} columns, over {max_columns}"
            raise ContentRejectedError("limit_exceeded", detail, "columns")
        paths = [path for path in paths if path not in schema.names and _path_exists(schema, path)]
        names = [*schema.names, *paths]
        kinds = [_kind(field.type) for field in schema] + [_kind(_type_at(schema, path)) for path in paths]
        described = {"names": json.dumps(names), "kinds": "".join(kinds)}
        texts = pa.schema([(str(index), pa.large_string()) for index in range(len(names))], described)
        with pa.OSFile(rows, "wb") as target, pa.ipc.new_stream(target, texts) as stream:
            for batch in _batches(opened, len(names)):
                columns = [*batch.columns, *(_column_at(batch, path) for path in paths)]
                arrays = [_texts(column) for column in columns]
                stream.write_batch(pa.record_batch(arrays, schema=texts))


def _described(error: Exception) -> ContentRejectedError:
    said = " ".join(str(error).split())[:DETAIL_SHOWN]
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return ContentRejectedError("limit_exceeded", "Its rows take more bytes than allowed", "expanded")
    if "crypt" in said:
        return ContentRejectedError("unreadable_container", "The Parquet file is encrypted.")
    return ContentRejectedError("unreadable_container", f"The Parquet file is damaged: {said}")


def _batches(file: Any, columns: int) -> Iterator[Any]:  # noqa: ANN401 - pyarrow is not typed
    rows = min(MAX_BATCH_ROWS, max(1, MAX_BATCH_CELLS // max(columns, 1)))
    for group in range(file.num_row_groups):
        yield from file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)


def _path_exists(schema: Any, path: str) -> bool:  # noqa: ANN401 - as above
    try:
        _type_at(schema, path)
    except KeyError:
        return False
    return True


def _type_at(schema: Any, path: str) -> Any:  # noqa: ANN401 - as above
    """Return the type of a nested field.

    Raises:
        KeyError: no field has this path, or two have.
    """
    first, *rest = path.split(".")
    found = schema.field(first).type
    for step in rest:
        index = found.get_field_index(step) if hasattr(found, "get_field_index") else -1
        if index < 0:
            raise KeyError(path)
        found = found.field(index).type
    return found


def _column_at(batch: Any, path: str) -> Any:  # noqa: ANN401 - as above
    from pyarrow import compute  # as above

    first, *rest = path.split(".")
    return compute.struct_field(batch.column(first), rest)


def _kind(kind: Any) -> str:  # noqa: ANN401 - as above
    """Return the kind of the cells of a column, see `cells`; a time with a zone is a text in ISO 8601."""
    from pyarrow import types  # as above

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_boolean(kind):
        return BOOLEAN
    if types.is_floating(kind):
        return FLOAT
    if types.is_integer(kind) or types.is_decimal(kind):
        return NUMBER
    if types.is_timestamp(kind) and kind.tz is None:
        return DATE
    return NESTED if types.is_nested(kind) else TEXT


def _texts(values: Any) -> Any:  # noqa: ANN401 - as above
    """Return the exact text of each value; null where it is missing."""
    import pyarrow as pa  # as above
    from pyarrow import compute, types

    if values.type == pa.uuid():
        return pa.array([None if one is None else str(one) for one in values.to_pylist()], pa.large_string())
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if types.is_timestamp(kind) or types.is_time(kind):
        zone = "Z" if types.is_timestamp(kind) and kind.tz else ""
        plain = values.cast(pa.timestamp(kind.unit)) if zone else values
        texts = compute.replace_substring(plain.cast(pa.string()), " ", "T")
        # Arrow writes a text that begins with `<` for a time outside the calendar or the day.
        impossible = compute.starts_with(texts, "<")
        texts = compute.binary_join_element_wise(texts, zone, "")
        return compute.if_else(impossible, OUT_OF_RANGE, texts).cast(pa.large_string())
    if types.is_floating(kind):
        values = _floats(values)
    if types.is_duration(kind):
        return pa.array(_durations(values), pa.large_string())
    if types.is_nested(kind):
        found = (None if text == "null" else OUT_OF_RANGE if "\0" in text else text for text in _json_texts(values))
        return pa.array(found, pa.large_string())
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid:
        return pa.array(map(_text_or_bytes, values.to_pylist()), pa.large_string())


def _floats(values: Any) -> Any:  # noqa: ANN401 - as above
    """Return floats with the fewest digits that identify them; of whole ones all digits, which may be more."""
    import pyarrow as pa  # as above
    from pyarrow import compute

    wide = values.cast(pa.float64())
    if values.type != pa.float32():
        return wide.cast(pa.large_string())
    whole = compute.equal(wide, compute.floor(wide))
    return compute.if_else(whole, wide.cast(pa.large_string()), values.cast(pa.large_string()))


def _text_or_bytes(value: bytes | None) -> str | None:
    """Return bytes as text where they are UTF-8, as many writers store texts; others in hexadecimal digits."""
    if value is None:
        return None
    text = text_of(value)
    return NO_TEXT + value.hex() if text is None else text


def _json_texts(values: Any) -> list[str]:  # noqa: ANN401 - as above
    """Return each value as JSON, its parts as in columns of their own; a time out of range leaves a NUL in it."""
    import pyarrow as pa  # as above
    from pyarrow import types

    kind = values.type
    if isinstance(values, pa.ExtensionArray) and kind != pa.uuid():
        return _json_texts(values.storage)
    if not types.is_nested(kind):
        # Bytes that are no text are kept in hexadecimal digits.
        return [_json_of(text, _kind(kind), is_time=types.is_temporal(kind)) for text in _texts(values).to_pylist()]
    if types.is_struct(kind):
        found = _objects(values, [field.name for field in kind])
    else:
        parts = [one.values if one.is_valid else () for one in values]
        inside = [part for part in parts if len(part)]
        texts = iter(_inner_texts(pa.concat_arrays(inside), is_map=types.is_map(kind)) if inside else ())
        found = [f"[{','.join(islice(texts, len(part)))}]" for part in parts]
    return [text if valid else "null" for text, valid in zip(found, values.is_valid().to_pylist(), strict=True)]


def _json_of(text: str | None, kind: str, *, is_time: bool) -> str:
    if text is None or kind in {NUMBER, BOOLEAN}:
        return text or "null"
    if kind == FLOAT:
        return NOT_FINITE.get(text, text)
    return text if is_time and text.startswith(NO_TEXT) else json_of(text.removeprefix("\0"))


def _objects(values: Any, names: Sequence[str]) -> list[str]:  # noqa: ANN401 - as above
    columns = [_json_texts(column) for column in values.flatten()]
    counts = [names[:index].count(name) + 1 for index, name in enumerate(names)]
    keys = [json_of(name if n == 1 else f"{name} [{n}]") for name, n in zip(names, counts, strict=True)]
    rows = zip(*columns, strict=True) if columns else ((),) * len(values)
    return ["{" + ",".join(map("{}:{}".format, keys, row)) + "}" for row in rows]


def _inner_texts(values: Any, *, is_map: bool) -> list[str]:  # noqa: ANN401 - as above
    """Return the elements of lists; the entries of maps as pairs, because a map may have a key twice."""
    if not is_map:
        return _json_texts(values)
    return [f"[{key},{value}]" for key, value in zip(*map(_json_texts, values.flatten()), strict=True)]


def _durations(values: Any) -> list[str | None]:  # noqa: ANN401 - as above
    import pyarrow as pa  # as above

    per_second = TICKS[values.type.unit]
    ticks = values.cast(pa.int64()).to_pylist()
    return [None if one is None else duration_text(one, per_second) for one in ticks]


if __name__ == "__main__":
    sys.exit(convert_file(convert, _described))
