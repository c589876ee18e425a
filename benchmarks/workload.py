"""Generate the files to ingest from a seed, together with their expected result.

The expected counts and aggregates come from the numbers themselves, by numpy, before they are written as text. None of
the project's code takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Numbers = NDArray[np.float64]

HEADER = ("timestamp", "device_id", "sensor_type", "value", "unit")
FIRST_SECOND = 1_577_836_800  # 2020-01-01T00:00:00Z: fifty million seconds later is still in the past
DEVICES = 500
DEVICES_PER_FILE = 5
ROWS_AT_A_TIME = 200_000
BAD_FILE_SHARE = 0.02
BAD_ROW_SHARE = 0.01
TOO_MANY_BAD_ROWS_SHARE = 0.6


@dataclass(frozen=True)
class Sensor:
    """One kind of sensor; its readings have two decimals and lie within limits that every rule accepts."""

    name: str
    unit: str
    lowest: float
    highest: float


SENSORS = (
    Sensor("temperature", "celsius", -20.0, 40.0),
    Sensor("humidity", "percent", 5.0, 95.0),
    Sensor("pressure", "hPa", 950.0, 1050.0),
    Sensor("pm10", "ug/m3", 1.0, 180.0),
)
GROUPS_PER_FILE = DEVICES_PER_FILE * len(SENSORS)

# How a row can be bad: the column, and the text that stands there instead. Each breaks one rule.
FLAWS = (
    ("timestamp", "yesterday at noon"),
    ("timestamp", "2999-12-31T23:59:59Z"),
    ("device_id", ""),
    ("value", "broken"),
    ("value", "inf"),
    ("value", "-999999999"),
)
# How a file can be bad as a whole.
MISSING_COLUMN, TOO_MANY_BAD_ROWS, NO_ROWS, NOT_TEXT = "missing column", "too many bad rows", "no rows", "not text"
FILE_FLAWS = (MISSING_COLUMN, TOO_MANY_BAD_ROWS, NO_ROWS, NOT_TEXT)


@dataclass(frozen=True)
class Workload:
    """Written files and the rows that must be stored.

    Args:
        folder: holds the files.
        files: one row per file: file_name, size_bytes, flaw (null for a file that is ingested), rows (in the file),
            accepted, quarantined (rows; 0 and 0 where the whole file is refused), value_sum, second_sum, line_sum (sums
            of value, unix time and line number over the accepted rows).
        metrics: one row per ingested file, device and sensor type: file_name, device_id, sensor_type, min, max, mean,
            count, stddev (sample; null for one reading).
    """

    folder: Path
    files: pl.DataFrame
    metrics: pl.DataFrame

    @property
    def paths(self) -> list[Path]:
        """Paths of the files, in the order of their creation."""
        return [self.folder / name for name in self.files["file_name"]]

    @property
    def rows(self) -> int:
        """Number of rows in all files."""
        return int(self.files["rows"].sum())

    def good(self, count: int) -> Workload:
        """Return the first so many files that are not bad as a whole."""
        files = self.files.filter(pl.col("flaw").is_null()).head(count)
        return Workload(self.folder, files, self.metrics.join(files.select("file_name"), on="file_name", how="semi"))


@dataclass(frozen=True)
class _Block:
    """The readings of some files, one row of each matrix per file.

    Args:
        first_file: number of the first of them.
        flaws: of each file; None for one that is to be ingested.
        devices: number of the device of each reading.
        sensors: index into SENSORS of each reading.
        cents: a hundred times the value of each reading.
        seconds: unix time of each reading.
        bad: index into FLAWS of each reading; -1 for a good one.
    """

    first_file: int
    flaws: list[str | None]
    devices: Integers
    sensors: Integers
    cents: Integers
    seconds: Integers
    bad: Integers


def write_workload(folder: Path, files: int, rows_per_file: int, *, name: str = "readings", seed: int = 1) -> Workload:
    """Write the files; no two of them have the same content.

    Args:
        folder: is made; must not exist.
        files: how many; of two or more at least one is bad as a whole.
        rows_per_file: readings in each.
        name: the beginning of every file's name.
        seed: the same seed makes the same files.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    flaws = _choose_flaws(random, files)
    truths, metrics = [], []
    at_a_time = max(1, ROWS_AT_A_TIME // rows_per_file)
    for first in range(0, files, at_a_time):
        block = _make_block(random, first, flaws[first : first + at_a_time], rows_per_file)
        names = [f"{name}-{first + index:06d}.csv" for index in range(len(block.flaws))]
        sizes = [_write(folder / names[index], block, index, lines) for index, lines in enumerate(_texts(block))]
        truths.append(_truth(block, names, sizes))
        metrics.append(_metrics(block, names))
    return Workload(folder, pl.concat(truths), pl.concat(metrics))


def _choose_flaws(random: np.random.Generator, files: int) -> list[str | None]:
    count = max(1, round(files * BAD_FILE_SHARE)) if files > 1 else 0
    flaws: list[str | None] = [None] * files
    for turn, index in enumerate(sorted(random.choice(files, count, replace=False))):
        flaws[index] = FILE_FLAWS[turn % len(FILE_FLAWS)]
    return flaws


def _make_block(random: np.random.Generator, first_file: int, flaws: list[str | None], rows: int) -> _Block:
    shape = (len(flaws), rows)
    own_devices = random.permuted(np.tile(np.arange(DEVICES), (len(flaws), 1)), axis=1)[:, :DEVICES_PER_FILE]
    sensors = random.integers(len(SENSORS), size=shape)
    lowest = np.array([round(sensor.lowest * 100) for sensor in SENSORS])
    highest = np.array([round(sensor.highest * 100) for sensor in SENSORS])
    numbers = np.arange(first_file, first_file + len(flaws))
    return _Block(
        first_file,
        flaws,
        np.take_along_axis(own_devices, random.integers(DEVICES_PER_FILE, size=shape), axis=1),
        sensors,
        random.integers(lowest[sensors], highest[sensors], endpoint=True),
        FIRST_SECOND + numbers[:, None] * rows + np.arange(rows)[None, :],
        np.stack([_choose_bad_rows(random, rows, flaw) for flaw in flaws]),
    )


def _choose_bad_rows(random: np.random.Generator, rows: int, flaw: str | None) -> Integers:
    share = TOO_MANY_BAD_ROWS_SHARE if flaw == TOO_MANY_BAD_ROWS else BAD_ROW_SHARE
    bad = np.full(rows, -1)
    indices = random.choice(rows, round(rows * share), replace=False)
    bad[indices] = random.integers(len(FLAWS), size=len(indices))
    return bad


def _texts(block: _Block) -> Iterator[bytes]:
    """Return each file's lines below the header."""
    rows = block.cents.shape[1]
    lines = _cells(block).write_csv(None, include_header=False, quote_style="never").encode()
    ends = np.flatnonzero(np.frombuffer(lines, np.uint8) == ord("\n"))[rows - 1 :: rows] + 1
    start = 0
    for end in ends:
        yield lines[start:end]
        start = end


def _cells(block: _Block) -> pl.DataFrame:
    flat = pl.DataFrame({name: getattr(block, name).ravel() for name in ("devices", "sensors", "seconds", "bad")})
    # Divided by numpy: Polars multiplies by a hundredth, and 957.31 becomes 957.3100000000001.
    values = pl.Series((block.cents / 100).ravel())
    good = flat.select(
        bad="bad",
        timestamp=(pl.from_epoch("seconds", time_unit="s")).dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        device_id=pl.format("dev-{}", pl.col("devices").cast(pl.String).str.zfill(4)),
        sensor_type=pl.col("sensors").replace_strict(range(len(SENSORS)), [sensor.name for sensor in SENSORS]),
        value=values.cast(pl.String),
        unit=pl.col("sensors").replace_strict(range(len(SENSORS)), [sensor.unit for sensor in SENSORS]),
    )
    return good.select(_flawed(column) for column in HEADER)


def _flawed(column: str) -> pl.Expr:
    """Return the column with its flawed values in place."""
    cell = pl.col(column)
    for index, (of_column, text) in enumerate(FLAWS):
        if of_column == column:
            cell = pl.when(pl.col("bad") == index).then(pl.lit(text)).otherwise(cell)
    return cell.alias(column)


def _write(path: Path, block: _Block, index: int, lines: bytes) -> int:
    content = _content(block.flaws[index], block.first_file + index, lines)
    path.write_bytes(content)
    return len(content)


def _content(flaw: str | None, number: int, lines: bytes) -> bytes:
    header = ",".join(HEADER).encode() + b"\n"
    if flaw == MISSING_COLUMN:
        return header.replace(b"value", b"level") + lines
    if flaw == NO_ROWS:
        # A column of its own: files without rows would all be the same otherwise.
        return header.replace(b"\n", f",export_{number}\n".encode())
    if flaw == NOT_TEXT:
        # A picture under the wrong name.
        return b"\x89PNG\r\n\x1a\n" + np.random.default_rng(number).bytes(len(lines) // 4)
    return header + lines


def _truth(block: _Block, names: list[str], sizes: list[int]) -> pl.DataFrame:
    ingested = np.array([flaw is None for flaw in block.flaws])
    rows = block.cents.shape[1]
    accepted = (block.bad < 0) & ingested[:, None]
    line_numbers = np.arange(2, rows + 2)
    return pl.DataFrame(
        {
            "file_name": names,
            "size_bytes": sizes,
            "flaw": pl.Series(block.flaws, dtype=pl.String),
            "rows": [0 if flaw in {NO_ROWS, NOT_TEXT} else rows for flaw in block.flaws],
            "accepted": accepted.sum(axis=1),
            "quarantined": ((block.bad >= 0) & ingested[:, None]).sum(axis=1),
            "value_sum": (block.cents * accepted).sum(axis=1) / 100,
            "second_sum": (block.seconds * accepted).sum(axis=1),
            "line_sum": (line_numbers * accepted).sum(axis=1),
        }
    )


def _metrics(block: _Block, names: list[str]) -> pl.DataFrame:
    """Return plain statistics of each group's accepted values, with deviations from the group's mean."""
    ingested = np.array([flaw is None for flaw in block.flaws])
    accepted = ((block.bad < 0) & ingested[:, None]).ravel()
    files = np.repeat(np.arange(len(ingested)), block.cents.shape[1])[accepted]
    groups = (files * DEVICES + block.devices.ravel()[accepted]) * len(SENSORS) + block.sensors.ravel()[accepted]
    present, group_of = np.unique(groups, return_inverse=True)
    values = block.cents.ravel()[accepted] / 100
    count = np.bincount(group_of, minlength=len(present))
    mean = np.bincount(group_of, values, len(present)) / np.maximum(count, 1)
    squares = np.bincount(group_of, (values - mean[group_of]) ** 2, len(present))
    lowest, highest = np.full(len(present), np.inf), np.full(len(present), -np.inf)
    np.minimum.at(lowest, group_of, values)
    np.maximum.at(highest, group_of, values)
    several = count > 1
    stddev = np.sqrt(squares / np.where(several, count - 1, 1))
    sensor_names = pl.Series([sensor.name for sensor in SENSORS])
    return pl.DataFrame(
        {
            "file_name": pl.Series(names).gather(present // (DEVICES * len(SENSORS))),
            "device_id": [f"dev-{device:04d}" for device in present // len(SENSORS) % DEVICES],
            "sensor_type": sensor_names.gather(present % len(SENSORS)),
            "min": lowest,
            "max": highest,
            "mean": mean,
            "count": count,
            "stddev": pl.Series(stddev).set(pl.Series(~several), None),
        }
    )
