"""How one run carries many partitions: it is asked for with an explicit list of keys, and what it leaves is given back.

A run that Dagster would call partitioned reports every output for every one of its partitions; here one file of a batch
may be stored while the next is quarantined. So a batch run has no partition: its keys come from the ledger by batch id,
and `asset_events` reports each of them. A person who selects partitions in the UI, and a tick that found a
single file, go through the same code with Dagster's own keys.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import dagster as dg

from ingest_project.core.settings import RetrySettings
from ingest_project.platform.dagster.run_records import failure_of_run

BATCH_TAG = "ingest/batch"
BATCH_ID_TAG = "ingest/batch_id"
BATCH_SIZE_TAG = "ingest/batch_size"
# Pools, whose limit is in dagster.yaml: they also bound what people start by hand, which has no batch tag.
DATABASE_POOL = "database"
ONELAKE_POOL = "onelake"
LONGEST_REASON = 300


class DueEntry(Protocol):
    """An entry whose time has come."""

    @property
    def key(self) -> str:
        """Of the ledger."""
        ...

    @property
    def retry_group(self) -> str | None:
        """The half of a lost batch that it is tried with, alone; None where it may go with any other."""
        ...


class RequestLedger(Protocol):
    """What a ledger of files or jobs offers so that runs can be asked for."""

    def request(self, batch_id: str, keys: Sequence[str], now: datetime) -> Sequence[str]:
        """Claim what is still pending for a batch; returns what was claimed."""
        ...


def new_batch_id() -> str:
    """A name no batch ever had: a batch that is asked for again must not be taken for a run that already was."""
    return uuid.uuid4().hex


def split_evenly(keys: Sequence[str], largest: int, parallel: int, worth_splitting: int) -> list[list[str]]:
    """Cut keys into batches of at most `largest`, and into `parallel` equal ones where each is worth a run's start-up.

    Args:
        keys: what is to be done, in order.
        largest: most keys in one batch.
        parallel: runs that work side by side.
        worth_splitting: fewest keys for which a second run pays for its own start-up.
    """
    if not keys:
        return []
    wanted = max(-(-len(keys) // largest), min(parallel, len(keys) // worth_splitting), 1)
    size = -(-len(keys) // wanted)
    return [list(keys[start : start + size]) for start in range(0, len(keys), size)]


def batches_of_due(due: Sequence[DueEntry], largest: int, parallel: int, worth_splitting: int) -> list[list[str]]:
    """Cut due entries into batches, those that wait longest first: each retry group by itself, the others together.

    Args:
        due: in the order in which they wait.
        largest: see `split_evenly`, as the two others.
        parallel: see there.
        worth_splitting: see there.
    """
    groups: dict[str, list[str]] = {}
    for entry in due:
        if entry.retry_group is not None:
            groups.setdefault(entry.retry_group, []).append(entry.key)
    together = [entry.key for entry in due if entry.retry_group is None]
    batches = split_evenly(together, largest, parallel, worth_splitting) + list(groups.values())
    place = {entry.key: number for number, entry in enumerate(due)}
    return sorted(batches, key=lambda batch: place[batch[0]])


def run_request(kind: str, batch_id: str, keys: Sequence[str], *, partitioned: bool = True) -> dg.RunRequest:
    """Ask for one run over these keys: an ordinary partitioned run for a single key, so that its page shows the file.

    Args:
        kind: what the keys are, e.g. `files`; runs of one kind are limited together in dagster.yaml.
        batch_id: under which the ledger knows the keys; also the run key.
        keys: of the ledger.
        partitioned: whether the keys are partitions.
    """
    tags = {BATCH_TAG: kind, BATCH_ID_TAG: batch_id, BATCH_SIZE_TAG: str(len(keys))}
    partition_key = keys[0] if partitioned and len(keys) == 1 else None
    return dg.RunRequest(run_key=batch_id, partition_key=partition_key, tags=tags)


def request_batches(
    kind: str, ledger: RequestLedger, batches: Sequence[Sequence[str]], now: datetime, *, partitioned: bool = True
) -> list[dg.RunRequest]:
    """Claim each batch in the ledger and ask for its run; what somebody else claimed meanwhile is left out."""
    requests = []
    for keys in batches:
        batch_id = new_batch_id()
        claimed = ledger.request(batch_id, keys, now)
        if claimed:
            requests.append(run_request(kind, batch_id, claimed, partitioned=partitioned))
    return requests


def keys_of_run(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, keys_of_batch: Callable[[str], Sequence[str]]
) -> list[str]:
    """The partitions this run is for.

    Args:
        context: of the run.
        keys_of_batch: asks the ledger for the keys of a batch.

    Returns:
        the keys a person selected, the one key of a single-partition run, or those the ledger holds for the batch.
    """
    if context.has_partition_key or context.has_partition_key_range:
        return list(context.partition_keys)
    batch_id = context.run.tags.get(BATCH_ID_TAG)
    if batch_id is None:
        raise dg.Failure("This run names neither partitions nor a batch. Select partitions and materialise those.")
    return list(keys_of_batch(batch_id))


class LeaseProtocol(Protocol):
    """Files or jobs that one batch, or one run of it, should be working on."""

    @property
    def batch_id(self) -> str | None:
        """The batch; None where a person took them by hand."""
        ...

    @property
    def run_id(self) -> str | None:
        """The run; None while none has started on them."""
        ...


class RequeuedProtocol(Protocol):
    """What became of entries that were given back."""

    @property
    def failed(self) -> Sequence[str]:
        """Keys of those that had no attempt left."""
        ...


class HoldingLedger(Protocol):
    """What a ledger of files or jobs offers so that abandoned work is found and asked for again."""

    def held(self, queue_name: str, untouched_since: datetime) -> Sequence[LeaseProtocol]:
        """Groups that some run should be working on and that nothing has touched since then."""
        ...

    def release(  # noqa: PLR0913, PLR0917 - the retry rule is two settings
        self,
        batch_id: str | None,
        run_id: str | None,
        reason: str,
        max_attempts: int,
        delay: Callable[[int], timedelta],
        now: datetime,
    ) -> RequeuedProtocol:
        """Back to pending with a pause, or to failed where every attempt is used up."""
        ...


def requeue_orphaned(
    instance: dg.DagsterInstance, ledger: HoldingLedger, queue_name: str, retries: RetrySettings
) -> list[str]:
    """Give back what no live run holds: its launch failed, it was killed, or the tick that asked was never saved.

    Args:
        instance: knows the runs.
        ledger: of files or jobs.
        queue_name: of the asking sensor, usually the topic it reads; each sensor looks after its own.
        retries: how long a run may take to appear, and when what it left is tried again.

    Returns:
        keys of those that had no attempt left and are failed.
    """
    now = datetime.now(UTC)
    failed: list[str] = []
    for holding in ledger.held(queue_name, now - retries.launch_grace):
        if not _is_alive(instance, holding):
            released = ledger.release(
                holding.batch_id,
                holding.run_id,
                _why_lost(instance, holding),
                retries.max_attempts,
                retries.delay,
                now,
            )
            failed += released.failed
    return failed


def _why_lost(instance: dg.DagsterInstance, holding: LeaseProtocol) -> str:
    """Say that the run is over, and what Dagster recorded of its end: an exception, or how its process died."""
    held_by = f"run {holding.run_id}" if holding.run_id else f"batch {holding.batch_id}"
    said = failure_of_run(instance, holding.run_id)[:LONGEST_REASON] if holding.run_id else ""
    return f"The {held_by} ended before this was done{': ' + said if said else '.'}"


def _is_alive(instance: dg.DagsterInstance, holding: LeaseProtocol) -> bool:
    """Whether the run that works on these is there: it, or another attempt at the same batch, is not finished."""
    filters = [dg.RunsFilter(run_ids=[holding.run_id])] if holding.run_id else []
    if holding.batch_id:
        filters.append(dg.RunsFilter(tags={BATCH_ID_TAG: holding.batch_id}))
    return any(not run.is_finished for found in filters for run in instance.get_runs(filters=found, limit=10))
