"""Batch runs: one run that works on many entries of a queue, each of them a partition of its own.

A run that Dagster would call partitioned reports every output for every one of its partitions; here one file of a batch
may be stored while the next is quarantined. So a batch run has no partition: the queue knows its keys by batch id, and
`asset_events` reports each of them. A person who selects partitions in the UI, and a tick that found a single file, go
through the same code with Dagster's own keys.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import dagster as dg

from ingest_project.platform.work_queue.queue import Due

BATCH_TAG = "ingest/batch"
BATCH_ID_TAG = "ingest/batch_id"
BATCH_SIZE_TAG = "ingest/batch_size"
# Pools, whose limit is in dagster.yaml: they also bound what people start by hand, which has no batch tag.
DATABASE_POOL = "database"
ONELAKE_POOL = "onelake"
# Fewest entries for which a second run pays for its own start-up.
WORTH_SPLITTING = 200


def new_batch_id() -> str:
    """Return a unique batch id. Reusing an id would make Dagster treat the new request as a run it already launched."""
    return uuid.uuid4().hex


def split_evenly(
    keys: Sequence[str], largest: int, parallel: int, worth_splitting: int = WORTH_SPLITTING
) -> list[list[str]]:
    """Cut keys into batches of at most `largest`, and into `parallel` equal ones where each is worth a run's start-up.

    Args:
        keys: of the entries, in order.
        largest: most keys in one batch.
        parallel: runs that work at the same time.
        worth_splitting: fewest keys for which a second run pays for its own start-up.
    """
    if not keys:
        return []
    wanted = max(-(-len(keys) // largest), min(parallel, len(keys) // worth_splitting), 1)
    size = -(-len(keys) // wanted)
    return [list(keys[start : start + size]) for start in range(0, len(keys), size)]


def batches_of_due(due: Sequence[Due], largest: int, parallel: int) -> list[list[str]]:
    """Cut due entries into batches, those that wait longest first: each retry group alone, the others together.

    Args:
        due: in the order in which they wait.
        largest: most entries in one batch.
        parallel: runs that work at the same time.
    """
    groups: dict[str, list[str]] = {}
    for entry in due:
        if entry.retry_group is not None:
            groups.setdefault(entry.retry_group, []).append(entry.key)
    together = [entry.key for entry in due if entry.retry_group is None]
    batches = split_evenly(together, largest, parallel) + list(groups.values())
    order = {entry.key: number for number, entry in enumerate(due)}
    return sorted(batches, key=lambda batch: order[batch[0]])


def run_request(kind: str, batch_id: str, keys: Sequence[str], *, partitioned: bool = True) -> dg.RunRequest:
    """Request one run over these keys: an ordinary partitioned run for a single key, so that its page shows the file.

    Args:
        kind: what the keys are, e.g. `files`; runs of one kind are limited together in dagster.yaml.
        batch_id: under which the queue knows the keys; also the run key.
        keys: of the entries.
        partitioned: whether the keys are partitions.
    """
    tags = {BATCH_TAG: kind, BATCH_ID_TAG: batch_id, BATCH_SIZE_TAG: str(len(keys))}
    partition_key = keys[0] if partitioned and len(keys) == 1 else None
    return dg.RunRequest(run_key=batch_id, partition_key=partition_key, tags=tags)


def keys_of_run(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, keys_of_batch: Callable[[str], Sequence[str]]
) -> list[str]:
    """Return the keys that a run works on: those a person selected, its one partition, or those of its batch.

    Args:
        context: of the run.
        keys_of_batch: returns the queue's keys of a batch.

    Raises:
        Failure: the run names neither.
    """
    if context.has_partition_key or context.has_partition_key_range:
        return list(context.partition_keys)
    batch_id = context.run.tags.get(BATCH_ID_TAG)
    if batch_id is None:
        raise dg.Failure("This run names neither partitions nor a batch. Select partitions and materialise those.")
    return list(keys_of_batch(batch_id))
