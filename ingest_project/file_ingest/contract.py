"""The requirements on the files of one dataset: how their rows are read, validated and summarised.

One implementation for sensor readings, with the rules that only they have, and one for every declared dataset, see
`declared`. The rest of the pipeline knows no dataset by name.

Nothing of a file is dropped silently. An undeclared column is kept as JSON next to its row (`rescue`), becomes a column
of the table (`evolve`), or rejects the file (`freeze`); each of the three reports it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import polars as pl
import sqlalchemy as sa

from ingest_project.contracts.columns import remedies_of
from ingest_project.contracts.files import SENSOR_READINGS
from ingest_project.contracts.validation import ValidatedRows
from ingest_project.core.errors import FileRejectedError
from ingest_project.core.items import digest_of
from ingest_project.core.settings import FileIngestSettings
from ingest_project.file_ingest.aggregation import aggregate_files
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.sensor_readings import SensorTypes, ValidationRules, validate
from ingest_project.file_ingest.warehouse.sql import SENSOR_TABLES, DatasetTables
from ingest_project.platform.database.declared_tables import require_types
from ingest_project.readers import READINGS, Target
from ingest_project.readers.casting import cast
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.matching import SameProfile
from ingest_project.readers.profile_parts import first_group
from ingest_project.readers.profiles import Profiles, ReaderProfile, load_profiles

SCHEMA_CHANGED = "schema_changed"
MAX_COLUMNS_SHOWN = 50
# Reasons of values that are not of the type of their column.
OTHER_TYPES = ("_not_a_", "_not_an_", "_unparseable")

Policy = Literal["rescue", "evolve", "freeze"]
FATES: Mapping[str, str] = {
    "rescue": "kept in rescued_data",
    "evolve": "added to the table",
    "freeze": "refused with the file",
}


@dataclass(frozen=True)
class Drift:
    """Differences between the columns of a file and the declared ones.

    Args:
        unknown: columns of the file that are not declared, and that its profile does not leave out on purpose.
        missing: declared columns that the file does not have, and need not have.
        retyped: columns in which more than half of the rows have values of another type.
        reordered: True if the declared columns come in another order.
        left_out: files of an archive that the profile does not choose.
        rescued: those of the unknown columns that stay in rescued_data although the dataset evolves.
    """

    unknown: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()
    reordered: bool = False
    left_out: tuple[str, ...] = ()
    rescued: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """True if anything but the order differs: columns are matched by their names."""
        return bool(self.unknown or self.missing or self.retyped)

    def __str__(self) -> str:
        """Describe the differences in words."""
        named = {"unknown": self.unknown, "missing": self.missing, "of another type": self.retyped}
        named |= {"not added but kept in rescued_data": self.rescued}
        parts = [f"{what}: {', '.join(names[:MAX_COLUMNS_SHOWN])}" for what, names in named.items() if names]
        return "; ".join([*parts, *(["the columns come in another order"] if self.reordered else [])])

    def metadata(self) -> dict[str, Any]:
        """Return the differences for the UI; empty if there are none."""
        named = {"unknown_columns": self.unknown, "missing_columns": self.missing, "retyped_columns": self.retyped}
        named |= {"members_left_out": self.left_out, "rescued_columns": self.rescued}
        shown: dict[str, Any] = {name: list(columns[:MAX_COLUMNS_SHOWN]) for name, columns in named.items() if columns}
        return shown | ({"columns_reordered": True} if self.reordered else {})


NO_DRIFT = Drift()


def drift_of(
    chunk: RowsChunk, target: Target, rule_counts: Mapping[str, int], rows_read: int, rescued: tuple[str, ...]
) -> Drift:
    """Return the drift of a file.

    Args:
        chunk: the first one of the file: a header says the same in all of them.
        target: the declared columns.
        rule_counts: how often each rule was broken.
        rows_read: rows of the file.
        rescued: see `Contract.rescued`.
    """
    wrong = dict.fromkeys(target.columns, 0)
    for rule, count in rule_counts.items():
        for column in target.columns:
            if rule.startswith(tuple(f"{column}{end}" for end in OTHER_TYPES)):
                wrong[column] += count
    retyped = tuple(column for column, count in wrong.items() if 2 * count > rows_read)
    # Where profiles name all columns, one that they do not name is not missing.
    missing = chunk.missing_columns if target.by_name else ()
    return Drift(chunk.unknown_columns, missing, retyped, chunk.reordered, chunk.left_out, rescued)


def require_unchanged(drift: Drift) -> None:
    """Reject a file whose columns differ from the declared ones in more than their order.

    Raises:
        FileRejectedError: `schema_changed`.
    """
    if drift.found:
        raise FileRejectedError(
            SCHEMA_CHANGED,
            f"Its columns are not those of the frozen dataset: {drift}. Declare them, or use drift: rescue.",
        )


SHOWN_RULES = 3


class Contract(ABC):
    """Requirements on a file: the profiles that can read it, the rules for its rows, and the limits.

    Attributes:
        name: of the dataset.
        tables: of its rows and metrics.
        profiles: reader profiles by name.
        limits: of sizes and counts.
        target: the columns that are read of a file.
        drift: policy for undeclared columns.
        share_setting: where `max_rejected_share` is set.
    """

    name: str
    tables: DatasetTables
    target: Target
    profiles: Profiles
    limits: ReadLimits
    drift: Policy = "rescue"
    share_setting: str = "INGEST_MAX_REJECTED_SHARE"

    @property
    @abstractmethod
    def max_rejected_share(self) -> float:
        """A file with a greater share of bad rows is quarantined whole."""

    @abstractmethod
    def validated(self, rows: pl.DataFrame, profile: ReaderProfile) -> ValidatedRows:
        """Give the rows of some files their types, and separate the good ones from the bad ones.

        Args:
            rows: as `reading.read_chunks` returns them, with `file_index`.
            profile: the profile that read them.
        """

    @abstractmethod
    def summarised(self, accepted: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the metrics of the files of accepted rows, and shared instants, see `aggregation.aggregate_files`."""

    @abstractmethod
    def broken_by_stored(self, rows: pl.DataFrame) -> Mapping[str, int]:
        """Count how often each rule is broken by stored rows; none should be."""

    def prepare_tables(self, engine: sa.Engine) -> DatasetTables:
        """Create the tables of the dataset, or add what is new to them; migrations make those of the shipped one.

        Raises:
            SchemaConflictError: a change would lose data, or a column has another type.
        """
        require_types(engine, *self.tables.stored)
        return self.tables

    def widened(self, engine: sa.Engine, names: Sequence[str]) -> DatasetTables:
        """Return the tables with columns for undeclared columns of files, if the dataset evolves."""
        return self.tables

    def evolved(self, rows: pl.DataFrame, names: Sequence[Sequence[str]]) -> pl.DataFrame:
        """Move undeclared columns to columns of their own, if the dataset evolves.

        Args:
            rows: with `file_index`.
            names: the undeclared columns of each file, by its index.
        """
        return rows

    def rescued(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the undeclared columns of a file that stay in `rescued_data` although the dataset evolves."""
        return ()

    def profile_of(self, record: FileRecord) -> ReaderProfile:
        """Return the profile that a file's event names, or the default one.

        Raises:
            FileRejectedError: no profile has that name, or it is broken.
        """
        return self.profiles.named(record.profile)

    @property
    def needs_whole_files(self) -> bool:
        """True if a rule looks at more than one row: then no file can be checked in parts."""
        return False

    def meaning_of(self, profile: ReaderProfile, record: FileRecord) -> str:
        """Hash everything but the bytes that determines the rows of a file, see `meaning_of`."""
        return meaning_of(profile, location_of(record), record.event.kind)

    def require_unchanged(self, drift: Drift) -> None:
        """Reject a file with other columns than the declared ones, if the dataset is frozen.

        Raises:
            FileRejectedError: `schema_changed`.
        """
        if self.drift == "freeze":
            require_unchanged(drift)

    def require_acceptable(self, rows_read: int, rows_rejected: int, rules: Mapping[str, int]) -> None:
        """Reject a file as a whole if it has no rows or too many bad ones.

        Args:
            rows_read: bad ones included.
            rows_rejected: those of them that are bad.
            rules: how often each rule was broken.

        Raises:
            FileRejectedError: it has no rows, or too great a share of bad ones.
        """
        if rows_read == 0:
            raise FileRejectedError("no_rows", "The file has a header but no rows.")
        share, limit = rows_rejected / rows_read, self.max_rejected_share
        if share > limit:
            detail = (
                f"{rows_rejected} of {rows_read} rows are bad ({share:.0%}; {self.share_setting} allows {limit:.0%})"
            )
            commonest = ", ".join(f"{rule} {count}" for rule, count in Counter(rules).most_common(SHOWN_RULES))
            raise FileRejectedError("too_many_bad_rows", " ".join([f"{detail}: {commonest}.", *remedies_of(rules)]))


@dataclass(frozen=True)
class SensorContract(Contract):
    """Requirements on sensor readings.

    Args:
        profiles: reader profiles by name.
        sensor_types: known types with their units and limits.
        limits: limits of sizes and counts.
        settings: the thresholds.
    """

    profiles: Profiles
    sensor_types: SensorTypes
    limits: ReadLimits
    settings: FileIngestSettings
    name: str = field(default=SENSOR_READINGS, init=False)
    tables: DatasetTables = field(default=SENSOR_TABLES, init=False)
    target: Target = field(default=READINGS, init=False)

    @classmethod
    def from_settings(cls, settings: FileIngestSettings) -> SensorContract:
        """Read the profiles and sensor types that the settings name.

        Raises:
            SettingsError: the file of sensor types is malformed; a broken profile is reported by the files that use it.
        """
        return cls(
            load_profiles(settings.profiles),
            SensorTypes.load(settings.sensor_types, settings.unknown_sensor_types),
            ReadLimits.from_settings(settings),
            settings,
        )

    @property
    def max_rejected_share(self) -> float:
        """A file with a greater share of bad rows is quarantined whole."""
        return self.settings.max_rejected_share

    def rules(self) -> ValidationRules:
        """Return the rules as of now: a timestamp is in the future or not at the time of the check."""
        settings = self.settings
        return ValidationRules(self.sensor_types, datetime.now(UTC), settings.future_tolerance, settings.earliest_time)

    def validated(self, rows: pl.DataFrame, profile: ReaderProfile) -> ValidatedRows:
        """Give readings their types, and separate the good ones from the bad ones."""
        checked = validate(cast(rows, profile), self.rules())
        return ValidatedRows(checked.accepted, checked.rejected)

    def summarised(self, accepted: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Summarise readings by file, device and sensor type, and find instants with several."""
        return aggregate_files(accepted)

    def broken_by_stored(self, rows: pl.DataFrame) -> Mapping[str, int]:
        """Count how often each rule is broken by stored readings."""
        # The rules read the text only where the typed value is null, which no stored value can be.
        text = rows.with_columns(pl.lit("").alias("timestamp_text"), pl.lit("").alias("value_text"))
        return counts_of(validate(text, self.rules()).rejected)


def location_of(record: FileRecord) -> str:
    """Return the folder of a file with its name, from which profiles may take columns."""
    return "".join(record.event.file_path.rpartition("/")[:2]) + record.event.file_name


def counts_of(rejected: pl.DataFrame) -> dict[str, int]:
    """Count how often each rule was broken by rejected rows."""
    return dict(rejected.select(rule=pl.col("reasons").explode()).group_by("rule").len().iter_rows())


def meaning_of(profile: ReaderProfile, location: str, kind: str, *more: object) -> str:
    """Hash everything but the bytes that determines the rows of a file, to detect duplicates.

    Args:
        profile: the profile that reads it.
        location: location of the file, or its name; only the parts that the profile reads from it are hashed.
        kind: file type, by which the bytes are read.
        more: other facts that determine them, e.g. the columns of a declared dataset.
    """
    name = location.rpartition("/")[2]
    taken = {column: first_group(name, pattern) for column, pattern in profile.from_file_name.items()}
    taken |= {column: first_group(location, pattern) for column, pattern in profile.from_path.items()}
    return digest_of(_read_as(SameProfile(profile)), taken, kind, *more)


@lru_cache(maxsize=64)
def _read_as(same: SameProfile) -> Mapping[str, object]:
    """Return the profile's reading options, which the files of a batch share."""
    return same.profile.model_dump(mode="json", exclude={"description"})
