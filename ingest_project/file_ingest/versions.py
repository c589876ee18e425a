"""Which version of a file counts: of one location the newest that was accepted, whatever the order they arrive in.

Decided inside the transaction that stores a version, while no other transaction decides about the same location. Rows
of an older version go in the moment the newer one's come; an older version that comes later is read, and not stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ingest_project.core.keys import digest_of
from ingest_project.file_ingest.file_record import VersionOrder
from ingest_project.file_ingest.result import FileResult
from ingest_project.file_ingest.warehouse.protocol import REPLACEABLE_STATES, VersionRow
from ingest_project.platform.work_queue.states import FileState
from ingest_project.readers.profiles import ReaderProfile, first_group


@dataclass(frozen=True)
class Settled:
    """Which of many versions count.

    Args:
        outcomes: as given, those that do not count as replaced.
        replaced: key of each version that counted, or waited for somebody to mend it, to the key of its successor.
    """

    outcomes: Sequence[FileResult]
    replaced: Mapping[str, str]


def settle(outcomes: Sequence[FileResult], stored: Sequence[VersionRow]) -> Settled:
    """Let the newest accepted version of each location count, and no other.

    Args:
        outcomes: of the files that are about to be stored.
        stored: the other versions of their locations.
    """
    own = {outcome.record.file_key for outcome in outcomes}
    others = [(row, VersionOrder(*row[3:])) for row in stored if row.file_key not in own]
    candidates = [(o.record.location_key, o.record.order) for o in outcomes if o.state is FileState.INGESTED]
    candidates += [(row.location_key, order) for row, order in others if row.stands]
    newest: dict[str, VersionOrder] = {}
    for location_key, order in candidates:
        newest[location_key] = max(order, newest.get(location_key, order))
    replaced = {
        row.file_key: successor.file_key
        for row, order in others
        if (successor := newest.get(row.location_key)) is not None
        and successor.file_key in own
        and order < successor
        and (row.stands or row.state in REPLACEABLE_STATES)
    }
    return Settled([_judged(outcome, newest.get(outcome.record.location_key)) for outcome in outcomes], replaced)


def meaning_of(profile: ReaderProfile, file_name: str, kind: str) -> str:
    """Hash what decides, beside a file's bytes, which rows they are: two files that differ in it are two files.

    Args:
        profile: that reads it, with all it says.
        file_name: what the profile takes from it counts, the rest does not.
        kind: file type, by which the bytes are read.
    """
    taken = {column: first_group(file_name, pattern) for column, pattern in profile.from_file_name.items()}
    return digest_of(profile.model_dump(mode="json", exclude={"description"}), taken, kind)


def _judged(outcome: FileResult, newest: VersionOrder | None) -> FileResult:
    if newest is None or outcome.record.order >= newest or outcome.state not in REPLACEABLE_STATES:
        return outcome
    before = "" if outcome.state is FileState.INGESTED else f" It would have been {outcome.state}: {outcome.reason}"
    reason = f"{newest.file_key} is newer and counts in its place.{before}"
    return replace(outcome, state=FileState.REPLACED, replaced_by=newest.file_key, reason=reason, sample=())
