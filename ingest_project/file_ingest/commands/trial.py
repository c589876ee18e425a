"""Read a file as ingestion would, by the same readers and the same contract, store nothing, and show the outcome.

Loads readers, Polars and pandera: commands import it when they run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from ingest_project.contracts.columns import remedies_of
from ingest_project.contracts.files import SENSOR_READINGS, file_type_of, is_readable
from ingest_project.core.console import add_row, counted, counts, data_text, say, shortened, show, show_facts, table
from ingest_project.core.errors import FileRejectedError, SettingsError
from ingest_project.core.settings import Settings
from ingest_project.core.yaml_models import nearest
from ingest_project.file_ingest.contract import Contract, SensorContract, drift_of
from ingest_project.file_ingest.declared import DeclaredContract
from ingest_project.readers import without_empty_rescue
from ingest_project.readers.datasets import load_declarations, read_declaration
from ingest_project.readers.formats.csv_reader import header_search
from ingest_project.readers.formats.csv_text import encoding_of, find_header, text_blocks
from ingest_project.readers.guessing.proposal import Found, look_at
from ingest_project.readers.guessing.text import excerpt
from ingest_project.readers.layout import ReadLimits, RowsChunk
from ingest_project.readers.matching import SameProfile
from ingest_project.readers.profile_parts import changes_clocks
from ingest_project.readers.profiles import ReaderProfile, read_profile
from ingest_project.readers.reading import read_chunks

MAX_SHOWN_TEXT = 160
YAML_ENDINGS = (".yaml", ".yml")
TEXT_TYPES = frozenset({"csv", "tsv", "psv", "txt", "dat"})


class RejectedRow(msgspec.Struct, frozen=True):
    """One row that would be quarantined.

    Args:
        line_number: line of the file, or row of the sheet.
        reasons: every rule that it broke.
        raw_text: as written.
    """

    line_number: int
    reasons: tuple[str, ...]
    raw_text: str


class Trial(msgspec.Struct, kw_only=True):
    """Result that ingestion of a file would have.

    Args:
        file: its path.
        profile: name of the reader profile.
        dataset: the dataset whose contract applies.
        layout: how the file is divided into rows and cells, in words.
        refusal: why the whole file would be quarantined; None if it would be stored.
        rows_read: malformed ones included.
        rows_accepted, rows_rejected: of these.
        rules: how often each rule was broken.
        remedies: for some of them, in words.
        drift: how its columns differ from those of the dataset, in words.
        accepted, rejected: the first ones.
    """

    file: str
    profile: str
    dataset: str
    layout: str = ""
    refusal: str | None = None
    rows_read: int = 0
    rows_accepted: int = 0
    rows_rejected: int = 0
    rules: dict[str, int] = {}
    remedies: list[str] = []
    drift: str = ""
    accepted: list[dict[str, Any]] = []
    rejected: list[RejectedRow] = []


def type_of(path: Path) -> str:
    """Return the type of a file by its name; one without a known ending is taken as text."""
    return file_type_of(path.name) if is_readable(file_type_of(path.name)) else "csv"


def look(path: Path, settings: Settings) -> Found:
    """Find the table in a file, to propose how it is read; see `look_at`."""
    return look_at(path, type_of(path), ReadLimits.from_settings(settings.file_ingest))


def try_file(path: Path, profile: ReaderProfile, contract: Contract, rows: int, file_name: str = "") -> Trial:
    """Read and check a whole file.

    Args:
        path: path of its bytes.
        profile: the profile that reads it.
        contract: contract of its dataset.
        rows: how many accepted and rejected rows to keep.
        file_name: its own name or location, when `path` has another.
    """
    trial = Trial(file=str(path), profile=profile.name, dataset=contract.name)
    # Profiles may take columns from the folders above, as they do of a file that is ingested.
    name = file_name or str(path.absolute())
    # The name may not show that the text is compressed; then the layout is unknown until the text is read.
    with suppress(FileRejectedError):
        trial.layout = ", ".join(_layout(path, profile, contract))
    try:
        chunks = read_chunks(path, type_of(path), profile, contract.limits, name, contract.target)
        for group in _groups(chunks, contract):
            _check(trial, group, profile, contract, rows)
        contract.require_acceptable(trial.rows_read, trial.rows_rejected, trial.rules)
    except FileRejectedError as error:
        trial.refusal = str(error)
    trial.remedies = remedies_of(trial.rules)
    return trial


def _layout(path: Path, profile: ReaderProfile, contract: Contract) -> Iterator[str]:
    """Yield the layout of a file as far as known; its delimiter is found as the reader finds it."""
    kind = type_of(path)
    yield kind
    if kind in TEXT_TYPES:
        delimiter = "fixed width" if profile.fixed_width else profile.delimiter
        if delimiter is None:
            blocks = text_blocks(path, profile.encoding, contract.limits.chunk_bytes)
            search = header_search(SameProfile(profile), contract.target, contract.limits.max_row_bytes)
            delimiter = find_header(blocks, search)[0].delimiter
        yield encoding_of(path, profile.encoding)
        yield f"divided by {delimiter!r}" if len(delimiter) == 1 else delimiter
    if profile.skip_lines:
        yield f"{counted(profile.skip_lines, 'line')} above the header"
    zone = profile.timestamps.zone
    yield f"times in {zone} where they carry no offset"
    if changes_clocks(zone):
        yield f"the hour that its clocks pass twice: {profile.timestamps.ambiguous} (timestamps.ambiguous)"
    yield f"decimal {profile.numbers.decimal!r}"
    if profile.numbers.thousands:
        yield f"thousands {profile.numbers.thousands!r}"


def _groups(chunks: Iterator[RowsChunk], contract: Contract) -> Iterator[Sequence[RowsChunk]]:
    """Yield chunk by chunk, or all chunks together where a rule is about more than one row."""
    if contract.needs_whole_files:
        yield list(chunks)
    else:
        yield from ([chunk] for chunk in chunks)


def _check(trial: Trial, chunks: Sequence[RowsChunk], profile: ReaderProfile, contract: Contract, rows: int) -> None:
    read = pl.concat([chunk.rows for chunk in chunks]).with_columns(pl.lit(0, pl.UInt32).alias("file_index"))
    checked = contract.validated(read, profile)
    accepted, rejected = checked.accepted.drop("file_index"), checked.rejected
    malformed = pl.concat([chunk.malformed for chunk in chunks])
    trial.rows_accepted += accepted.height
    trial.rows_rejected += rejected.height + malformed.height
    trial.rows_read += read.height + malformed.height
    broken = Counter(trial.rules)
    broken.update(reason for reasons in rejected["reasons"] for reason in reasons)
    broken.update(malformed["reason"].to_list())
    trial.rules = dict(broken)
    rescued = contract.rescued(chunks[0].unknown_columns)
    drift = drift_of(chunks[0], contract.target, trial.rules, trial.rows_read, rescued)
    trial.drift = str(drift) if drift.found else ""
    contract.require_unchanged(drift)
    trial.accepted += accepted.head(rows - len(trial.accepted)).to_dicts()
    for chunk in chunks:
        trial.rejected += _first_rejected(chunk, rejected, rows - len(trial.rejected))


def _first_rejected(chunk: RowsChunk, rejected: pl.DataFrame, rows: int) -> list[RejectedRow]:
    """Return the first rejected rows of a chunk as they are written."""
    own = rejected.filter(pl.col("line_number").is_in(chunk.rows["line_number"].implode())).head(rows)
    lines = own["line_number"].to_list()
    texts = chunk.raw_text(lines)
    found = [
        RejectedRow(line, tuple(reasons), text)
        for line, reasons, text in zip(lines, own["reasons"], texts, strict=True)
    ]
    malformed = chunk.malformed.head(rows).select("line_number", "reason", "raw_text").iter_rows()
    found += [RejectedRow(line, (reason,), text) for line, reason, text in malformed]
    return sorted(found, key=lambda row: row.line_number)[:rows]


def contract_of(dataset: str, settings: Settings) -> Contract:
    """Return the contract of a dataset by its name, or of the declaration in a file."""
    if dataset == SENSOR_READINGS:
        return SensorContract.from_settings(settings.file_ingest)
    if dataset.endswith(YAML_ENDINGS):
        # The folder names the dataset.
        declaration = read_declaration(Path(dataset).resolve())
        problem = f"{dataset} declares no dataset."
    else:
        known = load_declarations(settings)
        declaration = known.get(dataset)
        broken = "".join(f" {one.problem}" for one in known.broken if one.name == dataset)
        problem = f"There is no usable dataset {dataset!r}{nearest(dataset, known)}. Known: {', '.join(known)}.{broken}"
    if declaration is None:
        raise SettingsError(problem)
    return DeclaredContract.of(declaration, settings)


def profile_of(name: str | None, contract: Contract, settings: Settings) -> ReaderProfile:
    """Return a reader profile by its name or from its file; that of the dataset by default."""
    if name is not None and name.endswith(YAML_ENDINGS):
        profile = read_profile(Path(name))
        profile.require_fits(contract.target)
        return profile
    own = settings.file_ingest.default_profile if contract.name == SENSOR_READINGS else contract.name
    try:
        return contract.profiles.named(name or own)
    except FileRejectedError as error:
        raise SettingsError(error.detail) from None


def excerpt_of(file: Path, folder: Path) -> Path:
    """Return a file, or the parts of a large text file that were read."""
    return excerpt(file, folder) if type_of(file) in TEXT_TYPES else file


def installed_for(file: Path, contract: Contract) -> Iterator[str]:
    """Name the reader profiles that read a file without rejecting a row: one of them may be made for it."""
    for name, profile in contract.profiles.items():
        trial = try_file(file, profile, contract, 0)
        if trial.refusal is None and not trial.rows_rejected:
            accepted = counted(trial.rows_accepted, "row")
            yield f"The profile {name} reads it too: {accepted} accepted. See `ingest profile show {name}`."


def verdict_on(sample: Path, file: Path, profile: ReaderProfile, contract: Contract) -> str:
    """Read the sample of a file by a proposal, and say how that went."""
    trial = try_file(sample, profile, contract, 0, str(file.absolute()))
    where = file.name if sample == file else f"the beginning and the end of {file.name}"
    if trial.refusal:
        return f"{file.name} cannot be read by this proposal yet: {trial.refusal}"
    said = f"Tried on {where}: {trial.rows_accepted:,} of {counted(trial.rows_read, 'row')} accepted"
    said += f", {trial.rows_rejected:,} rejected ({counts(trial.rules)})" if trial.rows_rejected else ""
    return f"{said}. {trial.drift}" if trial.drift else f"{said}."


def show_trial(trial: Trial) -> None:
    """Print what ingestion would do with a file."""
    read = f"{trial.rows_read:,} read, {trial.rows_accepted:,} accepted, {trial.rows_rejected:,} rejected"
    show_facts(
        [
            ("File", trial.file),
            ("Dataset", trial.dataset),
            ("Reader profile", trial.profile),
            ("Layout", trial.layout),
            ("Rows", read),
            ("Broken rules", counts(trial.rules)),
            ("Remedy", " ".join(trial.remedies)),
            ("Columns", trial.drift),
        ]
    )
    if trial.accepted:
        accepted = without_empty_rescue(trial.accepted)
        made = table(*accepted[0])
        for row in accepted:
            add_row(made, *map(data_text, row.values()))
        show(made, f"The first {len(trial.accepted):,} of {trial.rows_accepted:,} accepted rows")
    if trial.rejected:
        made = table("Line", "Reasons", "Text", numbers=["Line"])
        for one in trial.rejected:
            add_row(made, str(one.line_number), ", ".join(one.reasons), shortened(one.raw_text, MAX_SHOWN_TEXT))
        show(made, f"The first {len(trial.rejected):,} of {trial.rows_rejected:,} rejected rows")
    if trial.refusal:
        say(f"The file would be quarantined: {trial.refusal}", style="red")
    else:
        say(f"The file would be stored: {counted(trial.rows_accepted, 'row')}.", style="green")
