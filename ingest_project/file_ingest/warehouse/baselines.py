"""Baselines: compare each file of a source with those that the source sent in recent weeks.

One row of `file_statistics` for each ingested file is written in the transaction of its rows. A baseline is computed
from a random sample of them, at most `SAMPLE_FILES` of a source, so that it costs the same however many files a source
sends. Median and median absolute deviation (MAD) are not moved by a few files that were wrong themselves.

The same version of a file counts once however often it is ingested, and of one location the newest version counts.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from statistics import median
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from ingest_project.core.settings import Settings
from ingest_project.core.settings.capabilities import FileIngestSettings
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.tables import file_statistics
from ingest_project.platform.database import reading
from ingest_project.platform.database.sql import contains, in_parts, rows_in
from ingest_project.platform.errors import storable

# Name of the check.
WITHIN_BASELINE = "within_baseline"
# Enough for a median that is off by a tenth of the spread.
SAMPLE_FILES = 256
# A lasting change counts as usual after half a week, if the sample has this many files of the last week.
RECENT, RECENT_FILES = timedelta(days=7), 30
# The MAD of a normal distribution times this is its standard deviation.
TO_DEVIATION = 1.4826
# No index takes more than 2,700 bytes, and a character has up to four.
MAX_SOURCE = 500
MAX_COLUMNS = 20
SOURCES_A_STATEMENT = 100
MAX_SOURCES = 2_000

ROWS, REJECTED, LATENESS, NULLS = "rows", "rejected_share", "lateness_seconds", "null_share:"
# A part of a path that names a time or a number, also as `day=15`.
NUMBERED = re.compile(r"([^\W\d]\w*=)?\d[\d._T:-]*")


class Tolerance(NamedTuple):
    """The least deviation that is unusual: where all files of a source are alike, their MAD is 0.

    Args:
        least: in the unit of the measure.
        share: of the median.
        below: a low value is unusual too.
    """

    least: float
    share: float
    below: bool = False


TOLERANCES = {ROWS: Tolerance(1, 0.1, below=True), REJECTED: Tolerance(0.02, 0), LATENESS: Tolerance(300, 0.1)}
OF_NULLS = Tolerance(0.02, 0)

Source = tuple[str, str]
"""Dataset and name of a source."""


class FileStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Recorded statistics of an ingested file; see the columns of `file_statistics`."""

    file_key: str
    dataset: str
    source: str
    arrived_at: datetime
    rows_read: int
    rows_quarantined: int
    null_counts: dict[str, int]
    lateness_seconds: float | None

    def values(self, columns: Iterable[str] = ()) -> dict[str, float]:
        """Return the compared values by measure.

        Args:
            columns: those of which a share of nulls is wanted although it is 0.
        """
        accepted = self.rows_read - self.rows_quarantined
        nulls = {**dict.fromkeys(columns, 0), **self.null_counts} if accepted > 0 else {}
        late = {} if self.lateness_seconds is None else {LATENESS: self.lateness_seconds}
        return {
            ROWS: float(self.rows_read),
            REJECTED: self.rows_quarantined / self.rows_read if self.rows_read else 0.0,
            **late,
            **{f"{NULLS}{name}": count / accepted for name, count in sorted(nulls.items())},
        }


class Usual(msgspec.Struct, frozen=True):
    """The usual values of one measure of a source.

    Args:
        low: None where no value is too low.
        files: the files that they are computed from.
    """

    median: float
    low: float | None
    high: float
    files: int


class Judgement(msgspec.Struct, frozen=True):
    """One measure of a file and its usual range; `usual` is None if too few files are known."""

    measure: str
    value: float
    usual: Usual | None

    @property
    def outside(self) -> bool:
        """True where the value is not usual."""
        usual = self.usual
        return usual is not None and (self.value > usual.high or (usual.low is not None and self.value < usual.low))

    @property
    def label(self) -> str:
        """The measure as words; names of columns stay as they are."""
        column = self.measure.removeprefix(NULLS)
        return self.measure.replace("_", " ") if column == self.measure else f"share of nulls in {column}"

    def __str__(self) -> str:
        """Compare the value with the usual range."""
        if self.usual is None:
            return f"{self.label} {number(self.value)}: no baseline yet"
        return f"{self.label} {number(self.value)}: usual are {usual_range(self.usual)} of {self.usual.files} files"


class Verdict(msgspec.Struct, frozen=True):
    """One file, next to the files of its source.

    Args:
        files: in the sample that it is compared with.
        needed: files that a baseline needs.
    """

    dataset: str
    source: str
    judgements: tuple[Judgement, ...]
    files: int
    needed: int

    @property
    def outside(self) -> tuple[Judgement, ...]:
        """The measures that are not usual."""
        return tuple(one for one in self.judgements if one.outside)

    def __str__(self) -> str:
        """Describe it in one sentence."""
        if not any(one.usual for one in self.judgements):
            return f"No baseline yet: {self.files} of {self.needed} files of {self.source} are known."
        if self.outside:
            return f"Not usual for {self.source}: {'; '.join(map(str, self.outside[:MAX_COLUMNS]))}."
        return f"As usual, compared with {self.files} files of {self.source}."

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of a check result: source, and the measures."""
        return {"source": self.source, "files_known": self.files, "files_needed": self.needed, **self.measures()}

    def measures(self) -> dict[str, dict[str, Any]]:
        """Return for each measure value, median, usual range and number of files, unusual ones first."""
        unknown = dict.fromkeys(Usual.__struct_fields__)
        return {
            one.measure: {
                "value": one.value,
                "outside": one.outside,
                **(msgspec.structs.asdict(one.usual) if one.usual else unknown),
            }
            for one in sorted(self.judgements, key=lambda one: not one.outside)[: len(TOLERANCES) + MAX_COLUMNS]
        }


@dataclass
class Baseline:
    """Usual values of one source.

    Args:
        source: dataset and name.
        sample: of its files.
        settings: how many are needed, and how far a value may be from the median.
    """

    source: Source
    sample: Sequence[FileStatistics]
    settings: FileIngestSettings

    @cached_property
    def usual(self) -> dict[str, Usual]:
        """The usual values by measure; one with too few values is left out."""
        columns = sorted({name for one in self.sample for name in one.null_counts})
        values: defaultdict[str, list[float]] = defaultdict(list)
        for one in self.sample:
            for measure, value in one.values(columns).items():
                values[measure].append(value)
        return {
            measure: usual_values(found, TOLERANCES.get(measure, OF_NULLS), self.settings.baseline_width)
            for measure, found in values.items()
            if len(found) >= self.settings.baseline_min_files
        }

    def judge(self, file: FileStatistics) -> Verdict:
        """Compare a file with the others of its source."""
        if file.file_key in self._keys:
            others = [one for one in self.sample if one.file_key != file.file_key]
            return replace(self, sample=others).judge(file)
        columns = [measure.removeprefix(NULLS) for measure in self.usual if measure.startswith(NULLS)]
        # A column that is in no sample has no nulls there.
        unknown = Usual(0.0, None, OF_NULLS.least, len(self.sample)) if ROWS in self.usual else None
        judgements = [
            Judgement(measure, value, self.usual.get(measure, unknown if measure.startswith(NULLS) else None))
            for measure, value in file.values(columns).items()
        ]
        return Verdict(*self.source, tuple(judgements), len(self.sample), self.settings.baseline_min_files)

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset(one.file_key for one in self.sample)


class SourceReport(msgspec.Struct, frozen=True):
    """A source as people see it: its last file next to those before it.

    Args:
        file: key of the last file.
        at: when it arrived.
        verdict: on it.
        rows: numbers of rows of the last files in the sample, the oldest first.
    """

    dataset: str
    source: str
    file: str
    at: datetime
    verdict: Verdict
    rows: tuple[int, ...] = ()

    @property
    def outside(self) -> bool:
        """True where the last file is not usual."""
        return bool(self.verdict.outside)

    def as_record(self) -> dict[str, Any]:
        """Return the report as a program reads it: by measure value, median, usual range and number of files."""
        known = {"dataset": self.dataset, "source": self.source, "last_file": self.file, "arrived_at": self.at}
        return {**known, "outside": self.outside, "verdict": str(self.verdict), "measures": self.verdict.measures()}


def usual_values(values: Sequence[float], tolerance: Tolerance, width: float) -> Usual:
    """Return median and usual range of at least one value.

    The range is the median plus and minus `width` standard deviations, estimated from the MAD, and at least the
    tolerance. Half of the values may be anything without moving it far.
    """
    middle = median(values)
    deviation = TO_DEVIATION * median(abs(value - middle) for value in values)
    reach = max(width * deviation, tolerance.least, tolerance.share * abs(middle))
    return Usual(middle, max(0.0, middle - reach) if tolerance.below else None, middle + reach, len(values))


def usual_range(usual: Usual) -> str:
    """Return the range and the median as text."""
    low = "at most" if usual.low is None else f"{number(usual.low)} to"
    return f"{low} {number(usual.high)} (median {number(usual.median)})"


def number(value: float) -> str:
    """Return a number with the digits that matter to a person."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"  # noqa: PLR2004


def source_of(location: str) -> str:
    """Return the name of the source of a file: its folder, with `*` for parts that are dates or numbers.

    So the folders of all days are one source: `local:/data/2026/01/15/a.csv` is from `local:/data/*/*/*`.

    Args:
        location: canonical address of the file.
    """
    is_web = location.startswith(("http://", "https://"))
    folder = (location.partition("?")[0] if is_web else location).rpartition("/")[0]
    scheme, found, rest = folder.rpartition("://")
    host, slash, path = rest.partition("/") if found else ("", "", rest)
    parts = [_open(part) for part in path.split("/")]
    return storable(f"{scheme}{found}{host}{slash}{'/'.join(parts)}"[:MAX_SOURCE]) or "/"


def _open(part: str) -> str:
    numbered = NUMBERED.fullmatch(part)
    return f"{numbered[1] or ''}*" if numbered else part


def sample_order_of(file_key: str) -> int:
    """Return a number that orders files at random, the same for the same file."""
    return zlib.crc32(file_key.encode()) >> 1


def lateness_of(record: FileRecord) -> float | None:
    """Return the seconds from the last change of a file to its announcement.

    None where the time of the change is unknown, and for a file that is ingested again: its announcement is not the
    arrival. A time of change after the announcement counts as 0: clocks differ.
    """
    modified_at = record.event.modified_at
    if modified_at is None or record.rows_read is not None or record.sha256 is not None:
        return None
    modified_at = modified_at if modified_at.tzinfo else modified_at.replace(tzinfo=record.announced_at.tzinfo)
    return max(0.0, (record.announced_at - modified_at).total_seconds())


def read_baselines(
    connection: sa.Connection, sources: Collection[Source], settings: Settings, now: datetime
) -> dict[Source, Baseline]:
    """Read the baselines of sources, in one statement for up to a hundred of them."""
    columns = file_statistics.c
    since = now - timedelta(weeks=settings.file_ingest.baseline_weeks)
    found: dict[Source, list[FileStatistics]] = {source: [] for source in sources}
    for file in _each_of(
        connection,
        sources,
        lambda query: query.where(columns.arrived_at >= since).order_by(columns.sample_order),
        SAMPLE_FILES,
    ):
        found[file.dataset, file.source].append(file)
    return {source: Baseline(source, _recent(sample, now), settings.file_ingest) for source, sample in found.items()}


def read_statistics(engine: sa.Engine, file_keys: Collection[str]) -> dict[str, FileStatistics]:
    """Return the recorded statistics of files by key; files that are not ingested have none."""
    query, key = sa.select(*_columns()), file_statistics.c.file_key
    with reading(engine) as connection:
        return {
            row.file_key: FileStatistics(**row._asdict()) for row in rows_in(connection, query, key, sorted(file_keys))
        }


def report_sources(
    engine: sa.Engine, settings: Settings, now: datetime, *, search: str = "", limit: int
) -> tuple[SourceReport, ...]:
    """Return the sources, those with an unusual last file first, then those that sent last.

    Args:
        engine: engine of the warehouse.
        settings: settings of the baselines.
        now: until which files count.
        search: only sources with this text in their name or dataset.
        limit: most sources; those that sent last are kept.
    """
    columns = file_statistics.c
    with reading(engine) as connection:
        sources = list(_sources(connection, search))
        found = _each_of(connection, sources, lambda query: query.order_by(columns.arrived_at.desc()), 1)
        newest = sorted(found, key=lambda file: file.arrived_at, reverse=True)[:limit]
        baselines = read_baselines(connection, [(file.dataset, file.source) for file in newest], settings, now)
    reports = [_report(file, baselines[file.dataset, file.source]) for file in newest]
    return tuple(sorted(reports, key=lambda one: (not one.outside, -one.at.timestamp())))


def correct_future_arrivals(connection: sa.Connection, now: datetime, latest: datetime) -> int:
    """Set arrivals later than `latest`, written by a clock that was ahead, to now; return how many there were."""
    columns = file_statistics.c
    return connection.execute(
        sa.update(file_statistics).where(columns.arrived_at > latest).values(arrived_at=now)
    ).rowcount


def _recent(sample: Sequence[FileStatistics], now: datetime) -> Sequence[FileStatistics]:
    """Return the files of the last week, where there are enough of them, or else all."""
    recent = [one for one in sample if one.arrived_at >= now - RECENT]
    return recent if len(recent) >= RECENT_FILES else sample


def _report(file: FileStatistics, baseline: Baseline) -> SourceReport:
    last = sorted(baseline.sample, key=lambda one: one.arrived_at)[-RECENT_FILES:]
    verdict = baseline.judge(file)
    return SourceReport(
        file.dataset, file.source, file.file_key, file.arrived_at, verdict, tuple(o.rows_read for o in last)
    )


def _columns() -> list[sa.Column[Any]]:
    return [file_statistics.c[name] for name in FileStatistics.__struct_fields__]


def _sources(connection: sa.Connection, search: str) -> Iterator[Source]:
    """Yield the sources one after the other: the index leads from each to the next one, past all of its files."""
    columns = file_statistics.c
    key = sa.tuple_(columns.dataset, columns.source)
    query = sa.select(columns.dataset, columns.source).order_by(columns.dataset, columns.source).limit(1)
    if search:
        query = query.where(contains(search, columns.dataset, columns.source))
    found = connection.execute(query).one_or_none()
    for _ in range(MAX_SOURCES):
        if found is None:
            return
        dataset, source = found
        yield dataset, source
        found = connection.execute(query.where(key > sa.tuple_(sa.literal(dataset), sa.literal(source)))).one_or_none()


def _each_of(
    connection: sa.Connection,
    sources: Collection[Source],
    chosen: Callable[[sa.Select[Any]], sa.Select[Any]],
    limit: int,
) -> Iterator[FileStatistics]:
    """Yield at most `limit` chosen files of each source."""
    columns = file_statistics.c
    for part in in_parts(sorted(sources), SOURCES_A_STATEMENT):
        selects = [
            sa.select(
                chosen(sa.select(*_columns()).where(columns.dataset == dataset, columns.source == source))
                .limit(limit)
                .subquery()
            )
            for dataset, source in part
        ]
        for row in connection.execute(sa.union_all(*selects)).mappings():
            yield FileStatistics(**row)
