"""A list of files through all steps: land, read and check, store, and say what became of each.

The next group of files is landed and checked in a second thread while this one is stored: reading is this process's
work and storing is mostly the database's. One file never hurts another: what is wrong with a file is found before the
transaction it shares with others, and should the database refuse a group for the sake of one, each goes alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ingest_project.ahead import one_ahead
from ingest_project.errors import IngestError, UnforeseenFailure
from ingest_project.file_ingest.large_file import refused_group, store_large_file
from ingest_project.file_ingest.outcome import Outcome, outcome_of_error
from ingest_project.file_ingest.raw_files import land
from ingest_project.file_ingest.storing import store
from ingest_project.file_ingest.validated_sensor_data import (
    CheckedGroup,
    Contract,
    OpenedFile,
    check_group,
    open_file,
)
from ingest_project.ledger.states import FileState
from ingest_project.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ingest_project.ledger.file_record import FileRecord
    from ingest_project.resources import Services

logger = get_logger(__name__)

# What one transaction and one call of the validation are given. Larger groups gain little and hold more memory.
GROUP_FILES = 128
# Groups grow to that size by doubling: storing starts as soon as a few files are read, not after the first hundred.
FIRST_GROUP_FILES = 16
GROUP_BYTES = 16 * 1024**2


@dataclass(frozen=True)
class PreparedGroup:
    """A group after landing and checking.

    Args:
        group: the small files, and those that were refused before any row was read.
        large: files to be read in chunks while they are stored.
        put_back: files whose source is away at the moment.
    """

    group: CheckedGroup
    large: Sequence[OpenedFile]
    put_back: Sequence[Outcome]


def ingest(
    records: Sequence[FileRecord], services: Services, contract: Contract, run_id: str
) -> Iterator[list[Outcome]]:
    """Take files through all steps.

    Args:
        records: from the ledger, in the order to work in.
        services: where to read from and store to.
        contract: what files must be.
        run_id: of the Dagster run, for the ledger and the quarantine.

    Yields:
        what became of each group of files, as soon as it is stored.
    """
    made = (prepare(group, services, contract) for group in split_into_groups(records))
    with one_ahead(made) as prepared_groups:
        for prepared in prepared_groups:
            yield finish(prepared, services, contract, run_id)


def split_into_groups(records: Sequence[FileRecord]) -> Iterator[list[FileRecord]]:
    """Cut a batch into groups of bounded count and size; a file of unknown size counts as nothing."""
    group: list[FileRecord] = []
    size_bytes, most_files = 0, FIRST_GROUP_FILES
    for record in records:
        if group and (len(group) == most_files or size_bytes + (record.event.size_bytes or 0) > GROUP_BYTES):
            yield group
            group, size_bytes, most_files = [], 0, min(2 * most_files, GROUP_FILES)
        group.append(record)
        size_bytes += record.event.size_bytes or 0
    if group:
        yield group


def prepare(records: Sequence[FileRecord], services: Services, contract: Contract) -> PreparedGroup:
    """Land the files of a group, and read and check the small ones."""
    early: list[Outcome] = []
    opened: list[OpenedFile] = []
    for record in records:
        landed = None
        try:
            landed = land(record, services)
            opened.append(open_file(record, landed, services.landing, contract))
        except IngestError as error:
            early.append(outcome_of_error(record, error, landed))
        except Exception as error:  # what one file brings to light must not take the others down
            logger.exception("file_not_read", partition_key=record.file_key)
            early.append(outcome_of_error(record, UnforeseenFailure("Reading the file", error), landed))
    small = [file for file in opened if file.second is None]
    for file in small:
        file.resources.close()
    group = check_group(small, contract)
    refused = [outcome for outcome in early if outcome.state is not FileState.PENDING]
    return PreparedGroup(
        replace(group, outcomes=[*refused, *group.outcomes]),
        [file for file in opened if file.second is not None],
        [outcome for outcome in early if outcome.state is FileState.PENDING],
    )


def finish(prepared: PreparedGroup, services: Services, contract: Contract, run_id: str) -> list[Outcome]:
    """Store a prepared group, and record in the ledger what became of each file."""
    outcomes = [*prepared.put_back, *store(prepared.group, services, run_id)]
    for file in prepared.large:
        with file.resources:
            outcomes.append(_large(file, services, contract, run_id))
    return [_put_back(outcome, services) if outcome.state is FileState.PENDING else outcome for outcome in outcomes]


def _put_back(outcome: Outcome, services: Services) -> Outcome:
    """Have a file tried again later; one with no attempt left is failed."""
    retries = services.settings.retries
    released = services.files.put_back(
        [outcome.record.file_key],
        outcome.reason or "",
        outcome.error_class or "",
        retries.max_attempts,
        retries.delay,
        datetime.now(UTC),
    )
    return replace(outcome, state=FileState.FAILED) if released.failed else outcome


def _large(file: OpenedFile, services: Services, contract: Contract, run_id: str) -> Outcome:
    try:
        outcome = store_large_file(file, services, contract, run_id)
    except IngestError as error:
        outcome = outcome_of_error(file.record, error, file.landed, profile=file.profile.name)
    if outcome.state in {FileState.QUARANTINED, FileState.FAILED}:
        (outcome,) = store(refused_group(outcome, contract), services, run_id)
    return outcome
