"""Step 2: landed bytes to accepted rows, rejected rows and a verdict on each file.

Small files are read one by one and checked together: each call of the validation costs some
milliseconds, whatever its size. A larger file is checked chunk by chunk, see `pipeline.store_large_file`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ingest_project.core.errors import FileRejectedError, LimitExceededError
from ingest_project.core.items import grouped
from ingest_project.file_ingest.aggregation import NO_SUMMARIES, NONE_SHARED, counts_by_file, instants_by_file
from ingest_project.file_ingest.contract import Contract, drift_of, location_of
from ingest_project.file_ingest.file_queue import FileRecord
from ingest_project.file_ingest.result import FileResult, result_of_error
from ingest_project.file_ingest.tables import FileState
from ingest_project.file_ingest.warehouse.sql import QUARANTINED, DatasetTables
from ingest_project.platform.object_store.content_store import Landed, LandingStore
from ingest_project.readers import RESCUED, without_empty_rescue
from ingest_project.readers.layout import RowsChunk
from ingest_project.readers.profiles import ReaderProfile
from ingest_project.readers.reading import read_chunks

SAMPLE_ROWS = 5
PREVIEW_ROWS = 3
# Largest file that is checked in one piece, in bytes of text; it needs several times as much memory.
WHOLE_FILE_BYTES = 256 * 1024**2
METRICS_SHOWN = 5
# Columns whose nulls have a baseline; further ones have none.
MAX_NULL_COLUMNS = 100


@dataclass(frozen=True)
class OpenedFile:
    """A landed file whose first chunk has been read.

    Args:
        record: its queue entry.
        landed: its bytes in the landing store.
        profile: reader profile of the file.
        meaning: hash of everything but its bytes that determines its rows.
        first: its first chunk.
        rest: the other chunks; keeps the file open until `resources` are closed.
        resources: closes the resources that reading opened.
    """

    record: FileRecord
    landed: Landed
    profile: ReaderProfile
    meaning: str
    first: RowsChunk
    second: RowsChunk | None
    rest: Iterator[RowsChunk]
    resources: ExitStack

    @property
    def chunks(self) -> Iterator[RowsChunk]:
        """All chunks from the first on; may be walked once."""
        yield self.first
        if self.second is not None:
            yield self.second
            yield from self.rest


@dataclass(frozen=True)
class CheckedRows:
    """Rows checked against the contract.

    Args:
        accepted: file_key, line_number and the columns of the dataset.
        quarantined: file_key, line_number, raw_text, reasons.
        rows_read: rows by file key, malformed rows among them.
    """

    accepted: pl.DataFrame
    quarantined: pl.DataFrame
    rows_read: Mapping[str, int]

    def findings_by_file(self) -> dict[str, Findings]:
        """Return the findings of each file."""
        bad = dict(self.quarantined.group_by("file_key").len().iter_rows())
        samples = first_rows(self.quarantined, SAMPLE_ROWS)
        counts: dict[str, dict[str, int]] = {}
        broken = self.quarantined.select("file_key", rule="reasons").explode("rule").group_by("file_key", "rule").len()
        for file_key, rule, count in broken.sort("file_key", "rule").iter_rows():
            counts.setdefault(file_key, {})[rule] = count
        return {
            key: Findings(rows_read, bad.get(key, 0), counts.get(key, {}), samples.get(key, ()))
            for key, rows_read in self.rows_read.items()
        }


def first_rows(rows: pl.DataFrame, limit: int) -> dict[str, list[dict[str, object]]]:
    """Return the first rows of each file, by file key; files without any are absent.

    Args:
        rows: rows of many files, with their `file_key`.
        limit: most rows of one file.
    """
    if RESCUED in rows.columns and rows[RESCUED].null_count() == rows.height:
        rows = rows.drop(RESCUED)
    shown = rows.group_by("file_key", maintain_order=True).head(limit).iter_rows(named=True)
    first = grouped((row.pop("file_key"), row) for row in shown)
    return {key: without_empty_rescue(own) for key, own in first.items()} if RESCUED in rows.columns else first


@dataclass(frozen=True)
class CheckedGroup:
    """A group of small files, ready to be stored in one transaction.

    Args:
        results: one for each file, in order.
        accepted: rows of the ingested files only.
        quarantined: bad rows of the ingested files only.
        metrics: metrics of the ingested files.
        tables: where they belong.
    """

    results: Sequence[FileResult]
    accepted: pl.DataFrame
    quarantined: pl.DataFrame
    metrics: pl.DataFrame
    tables: DatasetTables


def open_file(record: FileRecord, landed: Landed, landing: LandingStore, contract: Contract) -> OpenedFile:
    """Begin to read a landed file.

    Raises:
        FileRejectedError: it cannot be read under its profile at all.
    """
    profile = contract.profile_of(record)
    with ExitStack() as resources:
        path: Path = resources.enter_context(landing.local_path(landed.sha256))
        chunks = read_chunks(path, record.event.kind, profile, contract.limits, location_of(record), contract.target)
        first = next(chunks, None)
        if first is None:
            raise FileRejectedError("no_rows", "The file has no rows.")
        meaning, second = contract.meaning_of(profile, record), next(chunks, None)
        if second is not None and contract.needs_whole_files:
            first, second = joined([first, second, *_require_fits_memory(chunks, landed)]), None
        return OpenedFile(record, landed, profile, meaning, first, second, chunks, resources.pop_all())


def _require_fits_memory(chunks: Iterator[RowsChunk], landed: Landed) -> Iterator[RowsChunk]:
    """Return the rest of a file that is to be checked in one piece.

    Raises:
        LimitExceededError: it is too large for that.
    """
    if landed.size_bytes > WHOLE_FILE_BYTES:
        raise LimitExceededError(
            "WHOLE_FILE_BYTES",
            f"A key or a check over several rows needs the whole file in memory, and it has {landed.size_bytes} bytes, "
            f"over {WHOLE_FILE_BYTES}",
        )
    return chunks


def _raw_text(chunks: Sequence[RowsChunk], first_lines: Sequence[int], line_numbers: Sequence[int]) -> list[str]:
    """Return the records of several chunks that start on these lines."""
    by_chunk = grouped((max(0, bisect_right(first_lines, line) - 1), line) for line in line_numbers)
    found: dict[int, str] = {}
    for index, lines in by_chunk.items():
        found |= zip(lines, chunks[index].raw_text(lines), strict=True)
    return [found[line] for line in line_numbers]


def joined(chunks: Sequence[RowsChunk]) -> RowsChunk:
    """Return the chunks of one file as one."""
    if len(chunks) == 1:
        return chunks[0]
    filled = [chunk for chunk in chunks if chunk.rows.height] or chunks[:1]
    rows = pl.concat([chunk.rows for chunk in filled], how="diagonal")
    malformed = pl.concat([chunk.malformed for chunk in chunks])
    first_lines = [int(chunk.rows["line_number"].min() or 0) for chunk in filled]  # type: ignore[arg-type]
    return replace(chunks[0], rows=rows, malformed=malformed, raw_text=partial(_raw_text, filled, first_lines))


@dataclass(frozen=True)
class Findings:
    """Counts and samples from reading and checking one file, or a part of it.

    Args:
        rows_read: readings, malformed rows included.
        rows_bad: those that broke a rule.
        rule_counts: how often each rule was broken.
        sample: some bad rows.
    """

    rows_read: int = 0
    rows_bad: int = 0
    rule_counts: Mapping[str, int] = field(default_factory=dict)
    sample: Sequence[Mapping[str, object]] = ()

    def __add__(self, other: Findings) -> Findings:
        """Add up the findings of two parts of a file."""
        return Findings(
            self.rows_read + other.rows_read,
            self.rows_bad + other.rows_bad,
            Counter(self.rule_counts) + Counter(other.rule_counts),
            [*self.sample, *other.sample][:SAMPLE_ROWS],
        )


def check_group(files: Sequence[OpenedFile], contract: Contract) -> CheckedGroup:
    """Check the rows of several small files together; no files make an empty group."""
    if not files:
        tables = contract.tables
        schemas = (tables.row_schema, QUARANTINED, tables.metric_schema)
        empty_rows, nothing_rejected, no_metrics = (pl.DataFrame(schema=schema) for schema in schemas)
        return CheckedGroup([], empty_rows, nothing_rejected, no_metrics, tables)
    unknown = [file.first.unknown_columns for file in files]
    checked = check_rows([(file.record.file_key, file.profile, file.first) for file in files], contract, unknown)
    findings = checked.findings_by_file()
    results = [judge(file, findings[file.record.file_key], contract) for file in files]
    rejected = [result.record.file_key for result in results if result.state is not FileState.INGESTED]
    accepted, quarantined = checked.accepted, checked.quarantined
    if rejected:
        accepted = accepted.filter(~pl.col("file_key").is_in(rejected))
        quarantined = quarantined.filter(~pl.col("file_key").is_in(rejected))
    metrics, shared = contract.summarised(accepted)
    previews = first_rows(accepted, PREVIEW_ROWS)
    shown, nulls = with_metrics(results, previews, metrics, shared), nulls_by_file(accepted)
    shown = [replace(result, null_counts=nulls.get(result.record.file_key, {})) for result in shown] if nulls else shown
    return CheckedGroup(shown, accepted, quarantined, metrics, contract.tables)


def nulls_by_file(accepted: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Count the nulls of each file by column; files and columns without any are left out.

    Args:
        accepted: rows of many files, with their `file_key`.
    """
    # Polars knows null counts without reading rows. `rescued_data` is left out: it is null in most rows.
    names = [name for name in accepted.columns if name != RESCUED and accepted[name].null_count()][:MAX_NULL_COLUMNS]
    if not names:
        return {}
    counts = accepted.group_by("file_key").agg(pl.col(names).null_count())
    return {row.pop("file_key"): {name: n for name, n in row.items() if n} for row in counts.iter_rows(named=True)}


def with_metrics(
    results: Sequence[FileResult],
    previews: Mapping[str, Sequence[Mapping[str, object]]],
    metrics: pl.DataFrame,
    shared: pl.DataFrame,
) -> list[FileResult]:
    """Add samples and counts of the accepted rows, which Dagster shows, to results.

    Args:
        results: results of checked files.
        previews: first accepted rows by file key.
        metrics: summaries, as `aggregate_files` returns them.
        shared: instants, as `aggregate_files` returns them.
    """
    counts, instants, shown = counts_by_file(metrics), instants_by_file(shared), first_rows(metrics, METRICS_SHOWN)
    return [
        replace(
            result,
            preview=previews.get(key, []),
            metrics_shown=shown.get(key, []),
            summaries=counts.get(key, NO_SUMMARIES),
            instants=instants.get(key, NONE_SHARED),
        )
        for result in results
        for key in [result.record.file_key]
    ]


def judge(file: OpenedFile, findings: Findings, contract: Contract) -> FileResult:
    """Return the result of a file whose rows have all been checked: ingested, or quarantined as a whole."""
    rescued = contract.rescued(file.first.unknown_columns)
    known: dict[str, Any] = {
        "profile": file.profile.name,
        "rows_read": findings.rows_read,
        "rows_quarantined": findings.rows_bad,
        "sample": findings.sample,
        "drift": drift_of(file.first, contract.target, findings.rule_counts, findings.rows_read, rescued),
        "policy": contract.drift,
    }
    try:
        contract.require_unchanged(known["drift"])
        contract.require_acceptable(findings.rows_read, findings.rows_bad, findings.rule_counts)
    except FileRejectedError as error:
        counts = {error.rule: 1, **findings.rule_counts}
        return result_of_error(file.record, error, file.landed, rule_counts=counts, **known)
    return FileResult(
        file.record, FileState.INGESTED, file.landed, meaning=file.meaning, rule_counts=findings.rule_counts, **known
    )


def check_rows(
    chunks: Sequence[tuple[str, ReaderProfile, RowsChunk]], contract: Contract, evolving: Sequence[Sequence[str]] = ()
) -> CheckedRows:
    """Check chunks of one or many files against the contract.

    Args:
        chunks: file key, profile and rows of each.
        contract: the rules.
        evolving: of each chunk the undeclared columns that may get a column of their own, if the dataset evolves.
    """
    keys = [file_key for file_key, _, _ in chunks]
    accepted, rejected = [], []
    for profile in {profile.name: profile for _, profile, _ in chunks}.values():
        own = [(index, chunk.rows) for index, (_, used, chunk) in enumerate(chunks) if used.name == profile.name]
        # Rows of workbooks have columns with the kinds of their cells, those of text do not.
        rows = pl.concat([each for _, each in own], how="diagonal")
        indices = np.repeat([index for index, _ in own], [each.height for _, each in own])
        rows = rows.with_columns(pl.Series("file_index", indices, pl.UInt32))
        checked = contract.validated(rows, profile)
        accepted.append(checked.accepted)
        rejected.append(checked.rejected)
    key_of = pl.Series("file_key", keys, pl.String)
    rows = contract.evolved(pl.concat(accepted), evolving)
    rows = rows.with_columns(key_of.gather(rows["file_index"])).drop("file_index")
    rows_read: dict[str, int] = {}
    for file_key, _, chunk in chunks:
        rows_read[file_key] = rows_read.get(file_key, 0) + chunk.rows.height + chunk.malformed.height
    return CheckedRows(rows, _quarantined_rows(chunks, pl.concat(rejected)), rows_read)


def _quarantined_rows(chunks: Sequence[tuple[str, ReaderProfile, RowsChunk]], rejected: pl.DataFrame) -> pl.DataFrame:
    rejected = rejected.sort("file_index", maintain_order=True)
    lines_of_files = rejected.group_by("file_index", maintain_order=True).agg("line_number")
    raw_text = [text for index, lines in lines_of_files.iter_rows() for text in chunks[index][2].raw_text(lines)]
    keys = pl.Series("file_key", [file_key for file_key, _, _ in chunks], pl.String)
    parts = [
        rejected.select(
            keys.gather(rejected["file_index"]), "line_number", pl.Series("raw_text", raw_text, pl.String), "reasons"
        )
    ]
    parts.extend(
        chunk.malformed.select(
            pl.lit(file_key).alias("file_key"), "line_number", "raw_text", pl.concat_list("reason").alias("reasons")
        )
        for file_key, _, chunk in chunks
        if chunk.malformed.height
    )
    return pl.concat(parts).sort("file_key", "line_number", maintain_order=True)
