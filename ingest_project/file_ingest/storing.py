"""Step 3: what was accepted and what was refused, stored in one transaction with the ledger.

Every write replaces what an earlier attempt at the same files wrote, so a second time ends in the same state; killed
in the middle it leaves nothing behind. Content that another file already stands for is noticed here, where two runs
cannot both believe to be first.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import polars as pl

from ingest_project.errors import PermanentError, TransientError
from ingest_project.file_ingest.outcome import Outcome, outcome_of_error
from ingest_project.file_ingest.quarantined_files import leave_quarantine, quarantine_file
from ingest_project.ledger.states import FileState
from ingest_project.logs import get_logger
from ingest_project.stores.frames import CLAIMS, FINISHED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ingest_project.file_ingest.validated_sensor_data import CheckedGroup
    from ingest_project.resources import Services
    from ingest_project.stores.warehouse import WarehouseTransaction

logger = get_logger(__name__)

# Within a run a short outage is waited out; a longer one puts the files back, to be asked for again later.
STORE_PAUSES_SECONDS = (0.5, 2.0)

Stored = TypeVar("Stored")


def store(group: CheckedGroup, services: Services, run_id: str) -> list[Outcome]:
    """Store a group of files and finish them in the ledger.

    Args:
        group: outcomes of all its files, and the frames of the ingested ones.
        services: where to.
        run_id: of the Dagster run.

    Returns:
        what became of each file, in order: as given, or duplicate, or pending where the database was away.
    """
    try:
        group = replace(group, outcomes=[_kept_if_refused(outcome, services, run_id) for outcome in group.outcomes])
        return retrying(lambda: _store_at_once(group, services, run_id))
    except TransientError as error:
        return [outcome_of_error(outcome.record, error, outcome.landed) for outcome in group.outcomes]
    except PermanentError as error:
        if len(group.outcomes) == 1:
            outcome = group.outcomes[0]
            return [failed(outcome, error, services, run_id)]
        logger.warning("group_refused", reason=str(error), files=len(group.outcomes))
        return [stored for outcome in group.outcomes for stored in store(only(group, outcome), services, run_id)]


def _kept_if_refused(outcome: Outcome, services: Services, run_id: str) -> Outcome:
    if outcome.state is not FileState.QUARANTINED:
        return outcome
    return quarantine_file(outcome, services.landing, services.quarantine, run_id)


def retrying(action: Callable[[], Stored]) -> Stored:
    """Run an action, again after a pause where it failed for a reason that may pass."""
    for pause_seconds in STORE_PAUSES_SECONDS:
        try:
            return action()
        except TransientError as error:
            logger.warning("store_retried", reason=str(error), pause_seconds=pause_seconds)
            time.sleep(pause_seconds)
    return action()


def failed(outcome: Outcome, error: PermanentError, services: Services, run_id: str) -> Outcome:
    """Record that a file cannot be stored, for a reason that lies neither in it nor in a passing outage."""
    refused = outcome_of_error(outcome.record, error, outcome.landed, profile=outcome.profile)
    with services.warehouse.transaction() as transaction:
        finish(transaction, [refused], run_id)
    return refused


def only(group: CheckedGroup, outcome: Outcome) -> CheckedGroup:
    """The part of a group that belongs to one of its files."""
    own = pl.col("file_key") == outcome.record.file_key
    return replace(
        group,
        outcomes=[outcome],
        accepted=group.accepted.filter(own),
        quarantined=group.quarantined.filter(own),
        metrics=group.metrics.filter(own),
    )


def _store_at_once(group: CheckedGroup, services: Services, run_id: str) -> list[Outcome]:
    with services.warehouse.transaction() as transaction:
        outcomes = without_duplicates(transaction, group.outcomes)
        duplicates = [outcome.record.file_key for outcome in outcomes if outcome.state is FileState.DUPLICATE]
        frames = [group.accepted, group.quarantined, group.metrics]
        if duplicates:
            frames = [frame.filter(~pl.col("file_key").is_in(duplicates)) for frame in frames]
        accepted, quarantined, metrics = frames
        transaction.replace_files([outcome.record.file_key for outcome in outcomes])
        transaction.append_readings(accepted)
        transaction.append_quarantined(quarantined)
        transaction.put_metrics(metrics)
        for outcome in outcomes:
            leave_quarantine(outcome, services.quarantine)
        finish(transaction, outcomes, run_id)
    return outcomes


def without_duplicates(transaction: WarehouseTransaction, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Claim the content of each ingested file; where another file already stands for it, this one is a duplicate."""
    claims = [
        (outcome.record.file_key, outcome.landed.sha256, outcome.profile)
        for outcome in outcomes
        if outcome.state is FileState.INGESTED and outcome.landed is not None
    ]
    owners = transaction.claim_contents(pl.DataFrame(claims, schema=CLAIMS, orient="row"))
    return [
        outcome
        if (owner := owners.get(outcome.record.file_key, outcome.record.file_key)) == outcome.record.file_key
        else replace(
            outcome, state=FileState.DUPLICATE, duplicate_of=owner, reason=f"The same content as {owner}.", sample=()
        )
        for outcome in outcomes
    ]


def finish(transaction: WarehouseTransaction, outcomes: Sequence[Outcome], run_id: str) -> None:
    """Record in the ledger what became of each file, inside the transaction that stores its rows."""
    transaction.release_contents(
        [o.record.file_key for o in outcomes if o.state in {FileState.QUARANTINED, FileState.FAILED}]
    )
    transaction.finish_files(
        pl.DataFrame(
            [
                {
                    "file_key": outcome.record.file_key,
                    "state": outcome.state.value,
                    "reason": outcome.reason,
                    "error_class": outcome.error_class,
                    "run_id": run_id,
                    "sha256": outcome.landed.sha256 if outcome.landed else None,
                    "landed_bytes": outcome.landed.size_bytes if outcome.landed else None,
                    "profile": outcome.profile or outcome.record.profile,
                    "duplicate_of": outcome.duplicate_of,
                    "rows_read": outcome.rows_read,
                    "rows_accepted": outcome.rows_accepted,
                    "rows_quarantined": outcome.rows_quarantined,
                    "rule_counts": json.dumps(outcome.rule_counts),
                }
                for outcome in outcomes
            ],
            schema=FINISHED,
        )
    )
